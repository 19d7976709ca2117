"""docs/clusters.md leads through files that exist, in few commands, and repeats no number that is wrong."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from doc_pages import ROOT, read
from paper_models import SMALL_PAPER, paper_sizes

from kray.config import load_config
from kray.config.cluster_file import load_cluster
from kray.config.memory import GIB
from kray.config.memory_check import Devices, memory_rows, require_fits
from kray.config.node_memory import node_rows
from kray.config.placement import cluster_rows

TEXT = read("docs/clusters.md")
# Cluster file -> GiB that its GPUs leave to a process. Any GPU may be in a Kubernetes of one's own: the smallest.
CARDS = {"aws": 44, "gcp": 22.5, "kuberay-cluster": 22.5}
# Configurations for them, all of Qwen2.5-0.5B.
SMALL = ("gsm8k", "code", "logic", "gem", "skyrl-gym")
SECTIONS = {title: body for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)}


def test_every_file_of_the_folder_is_explained():
    names = {file.name for file in (ROOT / "cluster").iterdir()} - {"README.md"}
    assert [name for name in sorted(names) if f"`{name}`" not in TEXT] == []


@pytest.mark.parametrize("title", ["AWS: from an account to a run and MLflow", "Kubernetes"])
def test_from_an_account_to_mlflow_takes_less_than_ten_commands(title):
    numbers = [int(n) for n in re.findall(r"# (\d)(?:$|:)", SECTIONS[title], re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) < 10
    assert "5000" in SECTIONS[title], "the last steps open MLflow"


def test_submitted_jobs_are_valid():
    commands = SECTIONS["AWS: from an account to a run and MLflow"].replace("\\\n", " ")
    line = next(line for line in commands.splitlines() if "jobs/submit.py" in line)
    words = shlex.split(line.partition("#")[0])
    config = load_config(ROOT / words[words.index("--config") + 1], words[words.index("--config") + 2 :])
    assert config.run.dir.startswith("/mnt/kray/")
    assert config.prompts.train.path == config.prompts.test.path == "openai/gsm8k"
    assert (config.prompts.train.split, config.prompts.test.split) == ("train", "test")
    store = re.search(r"--backend-store-uri (\S+)'", commands).group(1)
    assert store == config.track.uri


def test_the_table_of_costs_names_the_machines_of_the_files():
    for name, key in (("aws.yaml", "InstanceType"), ("gcp.yaml", "machineType")):
        row = next(line for line in SECTIONS["What it costs while idle"].splitlines() if line.startswith(f"| {name}"))
        groups = yaml.safe_load((ROOT / "cluster" / name).read_text())["available_node_types"]
        cells = [cell.strip() for cell in row.split("|")[2:5]]
        for cell, group in zip(cells, ("head", "learner", "rollout"), strict=True):
            assert groups[group]["node_config"][key] in cell
        assert f"{groups['learner']['min_workers']} x" in cells[1]


def test_the_example_of_a_check_is_what_is_printed():
    rows = dict(cluster_rows(load_config(ROOT / "configs" / "gsm8k.yaml"), str(ROOT / "cluster" / "aws.yaml")))
    for label in ("learner ranks on", "engines on", "engines that fit", "nodes in use"):
        assert f"\n{label:<26} {rows[label]}\n" in TEXT


@pytest.mark.parametrize(
    ("name", "cluster", "card"),
    [*((name, cluster, card) for name in SMALL for cluster, card in CARDS.items()), ("math-7b", "kuberay-job", 79)],
)
def test_configurations_fit_the_cards_of_the_clusters(name, cluster, card):
    config, path = load_config(ROOT / "configs" / f"{name}.yaml"), ROOT / "cluster" / f"{cluster}.yaml"
    sizes = SMALL_PAPER["0.5b"] if name in SMALL else paper_sizes(config.model.path)
    assert ("0.5B" in config.model.path) == (name in SMALL)
    devices = Devices(gpu=int(card * GIB))
    require_fits(config, sizes, devices)
    rows = [*cluster_rows(config, str(path)), *memory_rows(config, sizes, devices)]
    rows += node_rows(config, sizes, load_cluster(path))
    assert f" of {card:.1f} GiB" in dict(rows)["memory of a rank"]


def test_every_configuration_for_gpus_is_compared_with_a_card():
    """Those for one card in test_colocation.py, the fleets in test_fleet_page.py."""
    files = sorted((ROOT / "configs").glob("*.yaml"))
    small = [file.stem for file in files if re.search(r"^  path: Qwen/.*0\.5B", file.read_text(), re.M)]
    assert sorted(set(small) - {"one-card-0.5b"}) == sorted(SMALL)
