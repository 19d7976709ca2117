"""Small data files of the shapes in which other trainers ship their data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def verl_rows(sums: list[tuple[int, int]], source: str = "tiny/sums") -> list[dict[str, Any]]:
    """Return rows as verl's scripts write them: chat messages, the ground truth in a struct, extra_info."""
    return [
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": f"{a}+{b}"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(a + b)},
            "extra_info": {"split": "train", "index": index, "weight": 0.5, "steps": [a, b]},
        }
        for index, (a, b) in enumerate(sums)
    ]


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as a Parquet file, as Dataset.to_parquet does."""
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(str(file))
    return file


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def trl_rows(sums: list[tuple[int, int]], chat: bool = False) -> list[dict[str, Any]]:
    """Return rows as TRL's trainers take them: a prompt, and columns for the reward functions."""
    return [
        {
            "prompt": [{"role": "user", "content": f"{a}+{b}"}] if chat else f"{a}+{b}=",
            "solution": str(a + b),
            "level": "hard" if a > 5 else "easy",
        }
        for a, b in sums
    ]


def verifiers_rows(sums: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return rows as environments of verifiers have them: question, answer, info, task."""
    return [
        {"question": f"{a}+{b}=", "answer": str(a + b), "info": {"below": 100, "terms": [a, b]}, "task": "sums"}
        for a, b in sums
    ]
