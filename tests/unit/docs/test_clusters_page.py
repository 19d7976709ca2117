"""docs/clusters.md leads through files that exist, in few commands, and repeats no number that is wrong."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from doc_pages import ROOT, read

from kray.config import load_config
from kray.config.placement import cluster_rows

TEXT = read("docs/clusters.md")
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
