"""The tables of docs/fleet.md, as `--check --cluster --gpu-gib` prints them.

python tests/fleet_tables.py     # writes them into the page again, after a change of kray's memory code, a config or a file
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from paper_models import PAPER, paper_sizes

from kray.config import load_config
from kray.config.cluster_file import load_cluster
from kray.config.memory import GIB, rank_memory
from kray.config.memory_check import CONTEXT, Devices, memory_rows, require_fits
from kray.config.node_memory import node_rows
from kray.config.placement import cluster_rows

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "fleet.md"
# GiB that a GPU of 80 GB leaves to a process.
GPU_GIB = 79
FLEETS = tuple(sorted((file.stem for file in (ROOT / "configs").glob("fleet-*.yaml")), key=lambda name: len(name)))
RANKS = (4, 8, 12, 16, 24, 32)
RANKS_BLOCK = re.compile(r"^\| ranks \|.*?\n(?=\n)", re.S | re.M)
# A command of the page, and the block below it.
BLOCK = re.compile(r"(--config configs/(fleet-\w+)\.yaml --check [^\n]*\n```\n\n```text\n)(.*?)(```)", re.S)


def table(fleet: str) -> str:
    """Return the rows about actors, nodes and memory of configs/<fleet>.yaml on cluster/<fleet>.yaml.

    Raises:
        ConfigError: It does not fit.
    """
    config, path = load_config(ROOT / "configs" / f"{fleet}.yaml"), f"cluster/{fleet}.yaml"
    cluster = load_cluster(ROOT / path)
    sizes, devices = paper_sizes(config.model.path), Devices(gpu=GPU_GIB * GIB, cluster=cluster)
    require_fits(config, sizes, devices)
    placed = [(k, v.replace(str(ROOT / path), path)) for k, v in cluster_rows(config, str(ROOT / path))]
    rows = [*placed, *memory_rows(config, sizes, devices), *node_rows(config, sizes, cluster)]
    return "".join(f"{label:<26} {value}\n" for label, value in rows)


def ranks_table() -> str:
    """Return what a rank of each model needs by the number of ranks, as the 7B fleet but with short micro-batches."""
    config = load_config(ROOT / "configs" / "fleet-7b.yaml", ["train.microbatch_tokens=4096"])
    lines = ["| ranks | " + " | ".join(str(ranks) for ranks in RANKS) + " |", "|---" * (len(RANKS) + 1) + "|"]
    for path in PAPER:
        cells = []
        for ranks in RANKS:
            config.train.ranks = ranks
            needed = rank_memory(config, paper_sizes(path)).total + CONTEXT
            cells.append(f"{needed / GIB:.1f}" if needed <= GPU_GIB * GIB else f"({needed / GIB:.1f})")
        lines.append(f"| {path.partition('/')[2]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    """Return the page with its tables as they are now."""
    page = RANKS_BLOCK.sub(lambda _: ranks_table(), page)
    return BLOCK.sub(lambda found: f"{found[1]}{table(found[2])}{found[4]}", page)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} written")
