"""Train a policy: GRPO whose rollouts are spent by a knapsack planner.

    python jobs/train.py --config configs/quickstart.yaml --check
    python jobs/train.py --config configs/gsm8k.yaml --check --cluster cluster/aws.yaml --gpu-gib 44
    python jobs/train.py --config configs/gsm8k.yaml model.path=Qwen/Qwen2.5-0.5B-Instruct train.lr=2e-6
    python jobs/train.py --config configs/quickstart.yaml resume=auto

Every key and its default is in kray/config/schema.py; `a.b=c` overrides a key. Without RAY_ADDRESS a Ray of its own is
started; on a cluster: python jobs/submit.py jobs/train.py --config ...
"""

from __future__ import annotations

import argparse

from kray.cluster.address import require_cluster
from kray.config import load_checked
from kray.config.resume import load_resumed
from kray.driver.output import say
from kray.launch.check import check
from kray.launch.main import guarded
from kray.launch.train import intact, train
from kray.train.checkpoints import find_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument(
        "--check", action="store_true", help="read the data and the model's files, print what would run; start nothing"
    )
    parser.add_argument("--cluster", default="", help="with --check: a file of cluster/ to fit the actors on")
    parser.add_argument(
        "--gpu-gib", type=float, default=0.0, help="with --check: memory of a GPU, if not this machine's"
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides of single keys")
    arguments = parser.parse_intermixed_args()
    if (arguments.cluster or arguments.gpu_gib) and not arguments.check:
        parser.error(f"{'--cluster' if arguments.cluster else '--gpu-gib'} goes with --check")
    if not 0 <= arguments.gpu_gib < 1e6:
        parser.error(f"--gpu-gib must be a number of GiB, not {arguments.gpu_gib:g}")
    config = load_checked(arguments.config, arguments.overrides)
    if not arguments.check:
        require_cluster()
    checkpoint = find_checkpoint(config.resume, config.run.dir, config.run.name)
    if checkpoint is not None:
        config = load_resumed(arguments.config, arguments.overrides, checkpoint.parent.parent)
    if arguments.check:
        print(check(config, intact(checkpoint, set_aside=False), arguments.cluster, arguments.gpu_gib))
    else:
        say(train(config, checkpoint))
    return 0


if __name__ == "__main__":
    guarded(main)
