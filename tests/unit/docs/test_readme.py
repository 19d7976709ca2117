"""The pages agree with the code."""

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from kray.config import load_config
from kray.metrics import describe

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


def test_the_metrics_table_is_the_codes():
    assert describe() in README


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"\b(?:jobs|kray|configs|cluster|tests)/[\w./-]*\w\.(?:py|yaml|md|sh)\b", text))
    named |= {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_example_of_a_configuration_is_one(tmp_path):
    block = re.search(r"^    model: .*\n(?:    .*\n)+", README, re.M)
    file = tmp_path / "mine.yaml"
    file.write_text(textwrap.dedent(block[0]))
    config = load_config(file, [])
    assert config.prompts.test.path == "/data/test.jsonl"
    assert config.train.ranks == 4


def test_the_changelog_knows_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_ci_calls_what_the_makefile_has():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    targets = re.findall(r"run: make (\w+)", workflow)
    assert targets == ["install", "lint", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
