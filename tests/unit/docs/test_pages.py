"""Links, files, configuration keys, metrics and code that the pages show are those of the repository."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from doc_pages import ROOT, anchors, blocks, code_spans, page_names, prose, read

import kray
from kray.config import KrayConfig, load_config
from kray.driver.console import step_line
from kray.environments.registry import check_environment
from kray.metrics import METRICS, documented
from kray.rewards import score

PAGES = page_names()
GENERATED = {"docs/models.md"} | {page for page in PAGES if page.startswith("docs/reference/")}
WRITTEN = sorted(set(PAGES) - GENERATED)
# The example of a misspelt key.
MISSPELT = "plan.budgett"
LONGEST = {"README.md": 150, "CHANGELOG.md": 1000}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_exist(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(read(page))):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", WRITTEN)
def test_files_that_a_page_names_exist(page):
    """CHANGELOG.md also names what was removed."""
    if page == "CHANGELOG.md":
        return
    named = set(re.findall(r"(?<![\w/.-])(?:jobs|kray|configs|cluster|tests|docs|examples)/[\w./-]*\w", read(page)))
    files = {name for name in named if re.search(r"\.(py|yaml|md|sh|json|gpu|cpu)$", name)}
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []


def keys_of(kind: type, prefix: str = "") -> dict[str, bool]:
    """Return every key of the schema, and whether free keys may stand below it."""
    found: dict[str, bool] = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name.rstrip("_")
        options = [hints[field.name], *typing.get_args(hints[field.name])]
        found[name] = any(typing.get_origin(option) is dict for option in options)
        for option in options:
            if dataclasses.is_dataclass(option):
                found |= keys_of(option, f"{name}.")
    return found


def unknown_keys(text: str) -> list[str]:
    """Return the dotted names in code spans that begin with a section of the configuration and are no keys."""
    keys = keys_of(KrayConfig)
    sections = "|".join(key for key in keys if any(other.startswith(f"{key}.") for other in keys) and "." not in key)
    unknown = []
    for span in code_spans(text):
        for name in re.findall(rf"(?<![\w./-])(?:{sections})(?:\.[a-z]\w*)+", span):
            free = any(name.startswith(f"{key}.") and keys[key] for key in keys)
            if (
                name not in keys
                and not free
                and name != MISSPELT
                and not re.search(r"\.(jsonl|py|yaml|json|csv|parquet)$", name)
            ):
                unknown.append(name)
    return unknown


@pytest.mark.parametrize("page", sorted({*WRITTEN} - {"CHANGELOG.md"}))
def test_configuration_keys_that_a_page_names_exist(page):
    assert unknown_keys(read(page)) == []


def unknown_metrics(text: str) -> list[str]:
    prefixes = {name.split("/")[0] for name in METRICS if "/" in name}
    names = [name for span in code_spans(text) for name in span.split(", ") if re.fullmatch(r"[a-z_]+/[\w<>]+", name)]
    return [name for name in names if name.split("/")[0] in prefixes and not documented(name)]


@pytest.mark.parametrize("page", WRITTEN)
def test_metrics_that_a_page_names_are_declared(page):
    assert unknown_metrics(read(page)) == []


def test_unknown_keys_and_metrics_are_noticed():
    assert unknown_keys("see `plan.bugdet=3` and `plan.budget`, `reward.options.anything`") == ["plan.bugdet"]
    assert unknown_metrics("`train/loss`, `eval/accuracy_<set>`, `train/lost`, `kray/driver`") == ["train/lost"]


@pytest.mark.parametrize("page", WRITTEN)
def test_configurations_that_a_page_shows_are_valid(page, tmp_path):
    for block in blocks(read(page), "yaml"):
        file = tmp_path / "shown.yaml"
        file.write_text(block if re.search(r"^model:", block, re.M) else f"{block}\nmodel: {{tiny: {{}}}}\n")
        load_config(file, [])


@pytest.mark.parametrize("page", WRITTEN)
def test_pages_are_short(page):
    assert len(read(page).splitlines()) <= LONGEST.get(page, 250)


def test_every_page_is_in_the_index():
    index = read("docs/README.md")
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", index)}
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert pages - linked == set()
    assert "](docs/README.md)" in read("README.md")


def shown_python(page: str, word: str) -> str:
    return next(block for block in blocks(read(page), "python") if word in block)


@pytest.mark.parametrize("page", [page for page in WRITTEN if blocks(read(page), "python")])
def test_python_that_a_page_shows_runs(page, capsys):
    for block in blocks(read(page), "python"):
        exec(compile(block, page, "exec"), {"__name__": "shown"})


def test_the_shown_rewards_judge(tmp_path, monkeypatch):
    (tmp_path / "myrewards.py").write_text(shown_python("docs/getting-started.md", "def closeness"))
    (tmp_path / "myjudge.py").write_text(shown_python("docs/verifiers.md", "def judge"))
    monkeypatch.syspath_prepend(tmp_path)
    assert score("myrewards:closeness", "The answer is 36", "36").value == 1.0
    assert score("myrewards:closeness", "about 31", "36", scale=20.0).value == pytest.approx(0.75)
    assert score("myrewards:closeness", "no idea", "36").value == 0.0
    assert score("myjudge:judge", "it is Paris", "paris").value == 1.0
    assert score("myjudge:judge", "it is Paris", "paris", case=True).value == 0.0


def test_the_shown_environment_is_one(tmp_path, monkeypatch):
    (tmp_path / "myenvs.py").write_text(shown_python("docs/getting-started.md", "class GuessTheNumber"))
    monkeypatch.syspath_prepend(tmp_path)
    check_environment("myenvs:GuessTheNumber", {"largest": 50})
    import myenvs

    game = myenvs.GuessTheNumber(largest=1)
    assert "1 to 1" in game.reset(None, 0)
    assert game.step("I guess 1")[1] is True
    assert game.reward() == 1.0


def test_the_path_of_getting_started_passes_the_check(tmp_path):
    """The page's prompts, configuration and reward, with a tiny policy in place of the hub's model."""
    page = read("docs/getting-started.md")
    more = [f'{{"question": "What is {n} + {n}?", "answer": "{2 * n}"}}\n' for n in range(128)]
    rows = blocks(page, "jsonl")[0] + "".join(more)
    (tmp_path / "data").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "data" / name).write_text(rows)
    (tmp_path / "myrewards.py").write_text(shown_python("docs/getting-started.md", "def closeness"))
    whole = next(block for block in blocks(page, "yaml") if "model:" in block)
    (tmp_path / "mine.yaml").write_text(whole)
    own = ["reward.verifier=myrewards:closeness", "reward.options.scale=20.0"]
    tiny = ["model.path=", "model.tiny={}", "model.dtype=float32", "rollout.gpus_per_engine=0", "train.gpus_per_rank=0"]
    command = [sys.executable, str(ROOT / "jobs/train.py"), "--config", "mine.yaml", "--check", *tiny]
    home = os.environ | {"HOME": str(tmp_path)}
    for overrides in ([], own):
        done = subprocess.run(
            [*command, *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=home
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"^train prompts +130$", done.stdout, re.M)
        # The tiny policy's tokenizer has no letters, so the prompts themselves are not legible.
        assert "answer '36'" in done.stdout


def test_the_step_lines_that_readme_shows_are_the_consoles():
    """The words are compared; figures, and parts too short to be shown, differ."""
    metrics = {name: 1.0 for name in METRICS}
    printed = " ".join(step_line(1, 80, metrics, left_s) for left_s in (60.0, 600.0))
    words = set(re.findall(r"[a-z][a-z/-]+", printed))
    lines = re.findall(r"^step .*$", read("README.md"), re.M)
    assert lines
    for line in lines:
        assert set(re.findall(r"[a-z][a-z/-]+", line)) <= words
        assert "reward" in line
        assert line.endswith(" left")


def test_the_changelog_has_the_version():
    assert re.search(rf"^## \[{re.escape(kray.__version__)}\]", read("CHANGELOG.md"), re.M)


def test_ci_calls_targets_of_the_makefile():
    targets = re.findall(r"run: make (\w+)", read_file(".github/workflows/ci.yml"))
    assert targets == ["install", "lint", "test"]
    assert all(re.search(rf"^{target}:", read_file("Makefile"), re.M) for target in targets)


def read_file(name: str) -> str:
    return Path(ROOT / name).read_text()
