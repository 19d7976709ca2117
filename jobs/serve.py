"""Serve a trained policy, the planner or the rewards over HTTP, until Ctrl-C.

    python jobs/serve.py policy ~/kray-runs/quickstart-20261121-101500         # OpenAI's API at http://127.0.0.1:8000/v1
    python jobs/serve.py policy ~/models/mine --name mine --max-replicas 4     # a Hugging Face folder, 1 to 4 engines
    python jobs/serve.py planner --state ~/kray-beliefs --port 8001            # budgets for a trainer that is not kray
    python jobs/serve.py rewards --workers 8 --max-replicas 4 --port 8002      # then train with reward.url=http://...:8002

Requests carry a key: that of KRAY_API_KEY, else one that is made and kept in a file. Without a Ray job or RAY_ADDRESS a Ray
of its own is started for the time. On a cluster where Serve runs already, a service joins it with a --prefix of its own.
docs/serving.md has the details.
"""

from __future__ import annotations

import argparse

from kray.cluster.address import require_cluster
from kray.launch.main import guarded
from kray.serve.services import serve_planner, serve_policy, serve_rewards


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--host", default="127.0.0.1", help="to listen at (default: %(default)s)")
    shared.add_argument("--port", type=int, default=8000)
    shared.add_argument("--prefix", default="/", help="of the paths, where several services share a port")
    shared.add_argument("--no-key", action="store_true", help="answer without a key; for a loopback host only")
    shared.add_argument("--concurrency", type=int, default=64, help="requests under way in a replica; above: 429")
    shared.add_argument("--request-mib", type=float, default=8.0, help="largest request; above: 413")
    shared.add_argument("--drain-s", type=float, default=30.0, help="for requests under way when it ends")
    shared.add_argument("--start-s", type=float, default=600.0, help="for replicas to come up")
    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("--min-replicas", type=int, default=1)
    many.add_argument("--max-replicas", type=int, default=1)
    parts = parser.add_subparsers(dest="service", required=True)

    policy = parts.add_parser("policy", parents=[shared, many], help="a trained policy behind OpenAI's API")
    policy.add_argument("folder", help="a run, a checkpoint or a Hugging Face folder")
    policy.add_argument("overrides", nargs="*", metavar="a.b=c", help="after the folder: what has changed since")
    policy.add_argument("--step", type=int, help="of the checkpoint to take from a run (default: the newest)")
    policy.add_argument("--cache", help="where exports are kept (default: ~/.cache/kray/exports); shared, on a cluster")
    policy.add_argument("--name", default="", help="what clients call the model (default: the folder's name)")
    policy.add_argument("--context", type=int, default=0, help="tokens of prompt and response (default: the model's)")
    policy.add_argument(
        "--max-tokens", type=int, default=0, help="response tokens a request may ask for, over its samples"
    )
    policy.add_argument("--sequences", type=int, default=128, help="that one engine generates at a time")
    policy.add_argument("--cpus", type=int, default=1, help="of one replica")
    policy.add_argument("--gpus", type=int, default=0, help="of one replica, 0 or 1")
    policy.add_argument("--kv-cache-gib", type=float, default=1.0, help="of one replica on CPU")
    policy.set_defaults(serve=serve_policy)

    planner = parts.add_parser("planner", parents=[shared], help="budgets for the prompts of any trainer")
    planner.add_argument("--state", default="", metavar="FOLDER", help="where runs' beliefs are kept, and found again")
    planner.add_argument("--max-runs", type=int, default=64, help="held at a time")
    planner.add_argument("--max-prompts", type=int, default=1_000_000, help="of one run")
    planner.set_defaults(serve=serve_planner, min_replicas=1, max_replicas=1)

    rewards = parts.add_parser("rewards", parents=[shared, many], help="verifiers, in processes with deadlines")
    rewards.add_argument(
        "--verifier", action="append", default=[], metavar="PKG.MOD:FN", help="another that may be called"
    )
    rewards.add_argument("--workers", type=int, default=1, help="processes of one replica for each verifier")
    rewards.add_argument("--timeout-s", type=float, default=10.0, help="for one answer")
    rewards.add_argument("--memory-gib", type=float, default=4.0, help="of one process")
    rewards.add_argument("--isolation", choices=("strict", "best_effort"), default="strict", help="of programs")
    rewards.set_defaults(serve=serve_rewards)

    arguments = parser.parse_args()
    require_cluster()
    return arguments.serve(arguments)


if __name__ == "__main__":
    guarded(main)
