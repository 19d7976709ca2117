"""docs/fleet.md repeats what `--check` prints, and its cluster files give what the tables say is needed."""

from __future__ import annotations

import pytest
from doc_pages import ROOT, read
from fleet_tables import BLOCK, FLEETS, GPU_GIB, renewed, table
from paper_models import paper_sizes

from kray.config import load_config
from kray.config.cluster_file import load_cluster
from kray.config.memory import GIB, rank_memory
from kray.config.memory_check import CONTEXT
from kray.config.node_memory import node_needs, store_of
from kray.config.placement import place

PAGE = read("docs/fleet.md")


def test_the_tables_are_what_check_prints():
    assert [found[2] for found in BLOCK.finditer(PAGE)] == list(FLEETS)
    assert renewed(PAGE) == PAGE, "python tests/fleet_tables.py renews them"


def test_what_more_ranks_do_not_shrink():
    config = load_config(ROOT / "configs" / "fleet-7b.yaml", ["train.microbatch_tokens=4096", "train.ranks=24"])
    memory = rank_memory(config, paper_sizes("meta-llama/Llama-3.3-70B-Instruct"))
    assert f"for 70B they are {(memory.total + CONTEXT - memory.state) / GIB:.0f} GiB" in PAGE


@pytest.mark.parametrize("fleet", FLEETS)
def test_commands_name_the_files_of_one_fleet(fleet):
    command = f"--config configs/{fleet}.yaml --check --cluster cluster/{fleet}.yaml --gpu-gib {GPU_GIB}\n"
    assert command in PAGE
    assert command in (ROOT / "configs" / f"{fleet}.yaml").read_text()


@pytest.mark.parametrize("fleet", FLEETS)
def test_nodes_are_full_and_have_the_memory(fleet):
    config, cluster = load_config(ROOT / "configs" / f"{fleet}.yaml"), load_cluster(ROOT / "cluster" / f"{fleet}.yaml")
    fit = place(config, cluster)
    node = next(group for group in cluster.workers if group.name == "node")
    asked = config.train.ranks * config.train.gpus_per_rank + config.rollout.engines * config.rollout.gpus_per_engine
    assert asked == node.gpus * node.most
    assert fit.engines["node"] == config.rollout.engines
    assert "note" not in table(fleet)
    need = node_needs(config, paper_sizes(config.model.path), cluster, fit)["node"]
    assert need.store <= store_of(node) <= node.shm
    # Room for the processes themselves.
    assert need.most + 64 * GIB <= node.memory
