"""Serve a trained policy, the planner or the rewards over HTTP until Ctrl-C.

    python jobs/serve.py policy ~/kray-runs/quickstart-20261121-101500         # OpenAI's API at http://127.0.0.1:8000/v1
    python jobs/serve.py policy ~/models/mine --name mine --max-replicas 4     # a Hugging Face folder, 1 to 4 engines
    python jobs/serve.py planner --state ~/kray-beliefs --port 8001            # budgets for a trainer that is not kray
    python jobs/serve.py rewards --workers 8 --max-replicas 4 --port 8002      # then train with reward.url=http://...:8002

Requests carry a key: that of KRAY_API_KEY, else one that is created and stored in a file. Without a Ray job or RAY_ADDRESS the
service starts a Ray of its own. On a cluster where Serve already runs, it joins with a --prefix of its own.
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
    shared.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    shared.add_argument("--port", type=int, default=8000)
    shared.add_argument("--prefix", default="/", help="prefix of the paths, where several services share a port")
    shared.add_argument("--no-key", action="store_true", help="accept requests without a key; for a loopback host only")
    shared.add_argument(
        "--concurrency", type=int, default=64, help="requests that a replica handles at a time; above: 429"
    )
    shared.add_argument("--request-mib", type=float, default=8.0, help="largest request in MiB; above: 413")
    shared.add_argument(
        "--drain-s", type=float, default=30.0, help="seconds for running requests when the service stops"
    )
    shared.add_argument("--start-s", type=float, default=600.0, help="seconds for replicas to start")
    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("--min-replicas", type=int, default=1)
    many.add_argument("--max-replicas", type=int, default=1)
    parts = parser.add_subparsers(dest="service", required=True)

    policy = parts.add_parser("policy", parents=[shared, many], help="a trained policy behind OpenAI's API")
    policy.add_argument("folder", help="a run, a checkpoint or a Hugging Face folder")
    policy.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="overrides of the run's configuration, such as moved files"
    )
    policy.add_argument("--step", type=int, help="step of the checkpoint to take from a run (default: the newest)")
    policy.add_argument("--cache", help="folder of exports (default: ~/.cache/kray/exports); shared on a cluster")
    policy.add_argument("--name", default="", help="name of the model in the API (default: the folder's name)")
    policy.add_argument("--context", type=int, default=0, help="tokens of prompt and response (default: the model's)")
    policy.add_argument("--max-tokens", type=int, default=0, help="response tokens of a request, over all its samples")
    policy.add_argument("--sequences", type=int, default=128, help="responses that one engine generates at a time")
    policy.add_argument("--cpus", type=int, default=1, help="CPU cores of one replica")
    policy.add_argument("--gpus", type=int, default=0, help="GPUs of one replica, 0 or 1")
    policy.add_argument(
        "--kv-cache-gib", type=float, default=1.0, help="memory for keys and values of one replica on CPU, in GiB"
    )
    policy.set_defaults(serve=serve_policy)

    planner = parts.add_parser("planner", parents=[shared], help="budgets for the prompts of any trainer")
    planner.add_argument("--state", default="", metavar="FOLDER", help="where the beliefs of runs are stored")
    planner.add_argument("--max-runs", type=int, default=64, help="most runs at a time")
    planner.add_argument("--max-prompts", type=int, default=1_000_000, help="most prompts of one run")
    planner.set_defaults(serve=serve_planner, min_replicas=1, max_replicas=1)

    rewards = parts.add_parser("rewards", parents=[shared, many], help="verifiers, run in processes with deadlines")
    rewards.add_argument(
        "--verifier", action="append", default=[], metavar="PKG.MOD:FN", help="another verifier that may be called"
    )
    rewards.add_argument("--workers", type=int, default=1, help="processes of a replica for each verifier")
    rewards.add_argument("--timeout-s", type=float, default=10.0, help="seconds for one response")
    rewards.add_argument("--memory-gib", type=float, default=4.0, help="memory limit of one process")
    rewards.add_argument(
        "--isolation", choices=("strict", "best_effort"), default="strict", help="isolation of programs"
    )
    rewards.set_defaults(serve=serve_rewards)

    arguments = parser.parse_args()
    require_cluster()
    return arguments.serve(arguments)


if __name__ == "__main__":
    guarded(main)
