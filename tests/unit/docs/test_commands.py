"""Every command that a page or a door's own help shows is one that its program understands. Nothing is started."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kray.config import load_config
from kray.errors import ConfigError

ROOT = Path(__file__).parents[3]
PLACEHOLDER = "PLACEHOLDER"  # for what a person fills in: <run>
PAGES = ("README.md", "CONTRIBUTING.md", "cluster/README.md")


def shown(text: str) -> list[str]:
    """Commands of indented blocks: a backslash joins lines, && parts them, and what follows # is a word on them."""
    lines = re.findall(r"^ {4}(.*)$", text, re.M)
    joined = "\n".join(lines).replace("\\\n", " ")
    commands = [re.sub(r"\s+#.*$", "", part).strip(" &") for line in joined.splitlines() for part in line.split("&&")]
    return [command for command in commands if re.match(r"([A-Z_]+=\S+ )*(make|ray|python|\S*bin/\w+) ", command)]


def commands() -> list[tuple[str, str]]:
    """(where it stands, command)."""
    found = [(page, command) for page in PAGES for command in shown((ROOT / page).read_text())]
    for file in sorted((ROOT / "jobs").glob("*.py")):
        help_text = ast.get_docstring(ast.parse(file.read_text())) or ""
        found += [(f"jobs/{file.name}", command) for command in shown(help_text)]
    return found


def words_of(command: str) -> list[str]:
    words = shlex.split(re.sub(r"<[^>]*>", PLACEHOLDER, command))
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        words.pop(0)
    return words


class Parsed(Exception):
    """The arguments that a job was given, before it does anything."""


def parse(job: str, arguments: list[str], monkeypatch) -> argparse.Namespace | None:
    """What the job understands; None where it only prints its help. SystemExit(2) for what it does not know."""
    for name in ("parse_args", "parse_intermixed_args"):
        real = getattr(argparse.ArgumentParser, name)

        def stop(self, *given, real=real, **options):
            raise Parsed(real(self, *given, **options))

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.setattr(sys, "argv", [job, *arguments])
    specification = importlib.util.spec_from_file_location("door", ROOT / job)
    door = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(door)
    try:
        door.main()
    except Parsed as parsed:
        return parsed.args[0]
    except SystemExit as end:
        if end.code:
            raise
    return None


def check_job(words: list[str], monkeypatch) -> None:
    job, *arguments = words
    assert (ROOT / job).is_file(), job
    if job == "jobs/submit.py":  # takes another job's command line as it is
        if arguments[0] != "--help":
            check_job(arguments, monkeypatch)
        return
    with monkeypatch.context() as patch:
        known = parse(job, arguments, patch)
    if known is None:
        assert arguments == ["--help"]
        return
    for name in ("config", "study", "cluster"):
        file = getattr(known, name, "")
        assert not file or PLACEHOLDER in file or (ROOT / file).is_file(), file
    if getattr(known, "config", "") and PLACEHOLDER not in known.config:
        load_config(ROOT / known.config, known.overrides)
    if hasattr(known, "study"):
        load_comparison(known.study, known.methods, known.seeds)


@functools.cache
def load_comparison(file: str, methods: str, seeds: str) -> None:
    from kray.compare.study import load_study

    load_study(str(ROOT / file), methods, seeds, "")


def check_make(words: list[str]) -> None:
    """make -n: the targets exist, and the overrides reach the program that is called."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert all(value in done.stdout for value in given.values()), done.stdout
    arguments = shlex.split(given.get("ARGS", ""))
    if "train" in words or "check" in words:
        load_config(ROOT / given.get("CONFIG", "configs/quickstart.yaml"), arguments)
    else:
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests")), arguments


def check_ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    name, *arguments = words
    cli.commands[name].make_context(name, arguments)  # a usage error for what it does not know


@pytest.mark.parametrize(("place", "command"), commands())
def test_a_command_is_understood(place, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = words_of(command)
    name = Path(program).name
    if name == "make":
        check_make(words)
    elif name == "python":
        check_job(words, monkeypatch)
    elif name == "ray":
        check_ray(words)
    elif name != "pip":
        pytest.fail(f"{place}: nobody knows whether {command!r} is right")


def test_commands_are_found_and_wrong_ones_are_noticed(monkeypatch, capsys):
    places = [place for place, _ in commands()]
    assert {*PAGES, "jobs/train.py", "jobs/compare.py", "jobs/bench_pool.py"} <= set(places)
    assert len(places) > 50
    monkeypatch.chdir(ROOT)
    for words in (["jobs/simulate.py", "--popolation", "hard"], ["jobs/bench_pool.py", "--engines", "x"]):
        with pytest.raises(SystemExit) as caught:
            check_job(words, monkeypatch)
        assert caught.value.code == 2
    quick = ["jobs/train.py", "--config", "configs/quickstart.yaml"]
    for words in (["jobs/nowhere.py"], [*quick[:2], "configs/nowhere.yaml"], [*quick, "--cluster", "cluster/x.yaml"]):
        with pytest.raises(AssertionError, match=r"nowhere|cluster/x"):
            check_job(words, monkeypatch)
    with pytest.raises(ConfigError, match=r"plan\.budgett is not a key"):
        check_job([*quick, "plan.budgett=1"], monkeypatch)
    with pytest.raises(ConfigError, match=r"plan\.budgett is not a key"):
        check_make(["train", "ARGS=plan.budgett=1"])
    with pytest.raises(AssertionError, match="tarin"):
        check_make(["tarin"])
    capsys.readouterr()
