"""How often the math verifier is wrong, and how long it takes, on pairs of answers whose correctness is known.

    python jobs/bench_math.py
    python jobs/bench_math.py --draws 9000 --seed 1 --rival --json math.json
    python jobs/bench_math.py --pairs pairs.jsonl     # rows of your own: {"answer": ..., "response": ..., "reward": 0 or 1}

Pairs are made by kray/bench/math_pairs: an answer, usual ways to write the same, and what a single mistake makes of it.
--rival also scores them with the math-verify package as its documentation does, both sides in a box
(`make install` installs it).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kray.bench.math_pairs import pairs
from kray.bench.math_pairs.rates import Pair, boxed_by_math_verify, rates
from kray.launch.main import guarded
from kray.rewards import score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=900, help="answers drawn, each of some 16 pairs (default: 900)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--pairs", help="judge the rows of this JSONL file instead")
    parser.add_argument("--rival", action="store_true", help="judge with math-verify, too")
    parser.add_argument("--show", type=int, default=5, help="wrong verdicts to print (default: 5)")
    parser.add_argument("--json", help="write all figures to this file")
    arguments = parser.parse_args()
    if arguments.pairs:
        lines = Path(arguments.pairs).read_text(encoding="utf-8").splitlines()
        rows = [
            Pair(**{name: row[name] for name in ("answer", "response", "reward")}) for row in map(json.loads, lines)
        ]
    else:
        rows = [Pair(answer, given, float(right)) for _, answer, given, right in pairs(arguments.draws, arguments.seed)]
    judges: dict[str, Callable[[str, str], float]] = {"kray": lambda given, answer: score("math", given, answer).value}
    if arguments.rival:
        judges["math-verify"] = boxed_by_math_verify
    results: dict[str, dict[str, Any]] = {}
    for name, judge in judges.items():
        results[name], wrong = rates(judge, rows)
        print(f"{name:<12} {results[name]}")
        for pair in wrong[: arguments.show]:
            print(f"    should be {pair.reward:g}: {pair.answer!r} <- {pair.response!r}")
    if arguments.json:
        versions = {"python": platform.python_version(), "cores": os.cpu_count()}
        Path(arguments.json).write_text(
            json.dumps(versions | {"settings": vars(arguments), "results": results}, indent=1)
        )
    return 0


if __name__ == "__main__":
    guarded(main)
