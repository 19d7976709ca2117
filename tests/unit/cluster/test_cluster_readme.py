"""cluster/README.md leads through files that exist, in commands that can be counted, and repeats no number that is wrong."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kray.config import load_config
from kray.config.placement import cluster_rows

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "cluster" / "README.md").read_text()
SECTIONS = {title: body for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)}


def test_every_file_of_the_folder_is_explained_and_every_file_that_is_named_exists():
    for file in (ROOT / "cluster").iterdir():
        if file.name == "README.md":
            continue
        assert f"`{file.name}`" in TEXT, file.name
    for name in set(re.findall(r"(?:cluster|configs|jobs)/[\w.-]+\.(?:yaml|py|sh|gpu|cpu)\b", TEXT)):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("title", ["AWS: from an account to a run and MLflow", "Kubernetes"])
def test_from_an_account_to_mlflow_takes_less_than_ten_commands(title):
    numbers = [int(n) for n in re.findall(r"# (\d)(?:$|:)", SECTIONS[title], re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) < 10
    assert "5000" in SECTIONS[title], "it ends at MLflow"


def test_the_jobs_that_it_submits_are_sound():
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
    for label in ("learner ranks on", "engines on", "engines that fit", "nodes at work"):
        assert f"    {label:<26} {rows[label]}\n" in TEXT
