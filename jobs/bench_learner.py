"""How fast the learner trains: tokens a second and peak memory, against a plain torch loop on the same rows.

    python jobs/bench_learner.py --json learner.json
    OMP_NUM_THREADS=2 python jobs/bench_learner.py --workloads chat --ranks 1    # 135M parameters, as in quickstart.yaml
    python jobs/bench_learner.py --device cuda --shape 1.5b --tokens 4096 --json mfu.json

On the CPU: plain loop, the packed learner's matrix products and nothing else, the learner padded, and packed on 1 and 2 ranks,
one thread a rank. --device cuda measures model FLOPs utilisation instead, in bf16 with random weights. --json FILE gets all
figures, versions and settings.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from kray.bench import learner as bench
from kray.bench.figures_file import versions, write_figures
from kray.config.train_schema import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workloads", nargs="+", choices=list(bench.WORKLOADS), default=list(bench.WORKLOADS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="cpu: default float32")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2], help="cpu: numbers of ranks (default 1 2)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after two of warm-up (default 5)")
    parser.add_argument("--shape", choices=list(bench.SHAPES), default="0.5b", help="cuda: the model (default 0.5b)")
    parser.add_argument("--tokens", type=int, default=4096, help="cuda: tokens of each rollout (default 4096)")
    parser.add_argument("--microbatch", type=int, default=16384, help="cuda: tokens of a micro-batch (default 16384)")
    parser.add_argument("--checkpointing", action="store_true", help="cuda: recompute activations")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the decoder layers")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()
    bench.environment()
    train = TrainConfig(lr=1e-5, compile=options.compile)
    if options.device == "cuda":
        train.microbatch_tokens, train.activation_checkpointing = options.microbatch, options.checkpointing
        result = bench.utilisation(options.shape, options.tokens, options.steps, train)
        print(
            f"{options.shape} on {result['device']}: {result['tokens_per_s']:,.0f} tokens/s, "
            f"{result['tflops']:.0f} TFLOP/s, MFU {result['mfu']:.1%}, {result['peak_memory_gib']:.1f} GiB"
        )
        results = {options.shape: result}
    else:
        results = {}
        for name in options.workloads:
            results[name] = bench.compare(name, options.steps, options.ranks, train, "cpu", options.dtype)
            print(f"\n{name}{'':20}    tokens/s  x plain  x products   step s    cpu s  first s  peak GiB  padding")
            for label, r in results[name].items():
                print(
                    f"{label:26} {r['tokens_per_s']:12,.0f} {r['speedup']:8.2f} {r['products']:11.2f} {r['step_s']:8.3f} "
                    f"{r['cpu_s']:8.3f} {r['first_step_s']:8.3f} {r['peak_memory_gib']:9.2f} {r['padding_ratio']:8.1%}"
                )
    if options.json:
        settings = {
            "options": vars(options),
            "train": asdict(train),
            "cores": os.cpu_count(),
            "versions": versions("torch", "transformers"),
            "threads": os.environ["OMP_NUM_THREADS"],
        }
        write_figures(options.json, {"results": results, "settings": settings})


if __name__ == "__main__":
    main()
