"""Every command that a page or a job's own help shows is understood by its program. Nothing is started."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from doc_pages import ROOT, blocks, code_spans, page_names, read

from kray.config import load_config
from kray.errors import ConfigError

# What a reader fills in: <run>
PLACEHOLDER = "PLACEHOLDER"
# Programs whose arguments are not checked here.
OTHERS = ("pip", "chmod", "docker", "kubectl", "sed", "aws", "gcloud", "export")


def commands_in(text: str) -> list[str]:
    """Return the commands of shell text: a backslash joins lines, && separates commands, # begins a comment."""
    joined = text.replace("\\\n", " ")
    parts = [re.sub(r"(^|\s+)#.*$", "", part).strip(" &") for line in joined.splitlines() for part in line.split("&&")]
    return [part for part in parts if part]


def shown(text: str) -> list[str]:
    """Return the commands of a page's bash blocks and of its indented lines that begin with a known program."""
    fenced = [command for block in blocks(text, "bash") for command in commands_in(block)]
    indented = commands_in("\n".join(re.findall(r"^ {4}(.*)$", text, re.M)))
    known = r"([A-Z_]+=\S+ )*(make|ray|python|\S*bin/\w+) "
    return fenced + [command for command in indented if re.match(known, command) and command not in fenced]


def commands() -> list[tuple[str, str]]:
    """Return (place, command) of all pages and of the jobs' help texts."""
    found = [(page, command) for page in page_names() for command in shown(read(page))]
    for page in page_names():
        spans = [span for span in code_spans(read(page)) if re.match(r"python jobs/\w+\.py|make \w", span)]
        found += [(page, re.sub(r"\b(FILE|RUN|FOLDER|STUDY)\b", "<this>", span)) for span in spans]
    for file in sorted((ROOT / "jobs").glob("*.py")):
        help_text = ast.get_docstring(ast.parse(file.read_text())) or ""
        found += [(f"jobs/{file.name}", command) for command in shown(help_text)]
    return list(dict.fromkeys(found))


def words_of(command: str) -> list[str]:
    """Return the command's words, without variables set for it, with optional parts in brackets."""
    text = re.sub(r"key=value \.\.\.|[\[\]]", "", re.sub(r"<[^>]*>", PLACEHOLDER, command))
    words = shlex.split(text)
    while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        words.pop(0)
    return words[2:] if words[:1] == ["timeout"] else words


@functools.cache
def configuration(name: str) -> Path:
    """Return the configuration's file; mine.yaml is the one that docs/getting-started.md shows."""
    if name != "mine.yaml":
        return ROOT / name
    file = Path(tempfile.mkdtemp()) / name
    file.write_text(next(block for block in blocks(read("docs/getting-started.md"), "yaml") if "model:" in block))
    return file


class Parsed(Exception):
    """Carries a job's parsed arguments; raised before the job does anything."""


def parse(job: str, arguments: list[str], monkeypatch) -> argparse.Namespace | None:
    """Return the arguments as the job parses them; None if it only prints its help.

    Raises:
        SystemExit: the job rejects them, with code 2.
    """
    for name in ("parse_args", "parse_intermixed_args"):
        real = getattr(argparse.ArgumentParser, name)

        def stop(self, *given, real=real, **options):
            raise Parsed(real(self, *given, **options))

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.setattr(sys, "argv", [job, *arguments])
    specification = importlib.util.spec_from_file_location("job", ROOT / job)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    try:
        module.main()
    except Parsed as parsed:
        return parsed.args[0]
    except SystemExit as end:
        if end.code:
            raise
    return None


def check_job(words: list[str], monkeypatch) -> None:
    job, *arguments = words
    assert (ROOT / job).is_file(), job
    if job == "jobs/model_table.py":  # writes a page and takes no arguments
        return
    # It takes another job's command line as it is.
    if job == "jobs/submit.py":
        if arguments and arguments[0] != "--help":
            check_job(arguments, monkeypatch)
        return
    with monkeypatch.context() as patch:
        known = parse(job, arguments, patch)
    if known is None:
        assert arguments == ["--help"]
        return
    for name in ("config", "study", "cluster"):
        file = getattr(known, name, "")
        assert not file or PLACEHOLDER in file or configuration(file).is_file(), file
    if getattr(known, "config", "") and PLACEHOLDER not in known.config:
        load_config(configuration(known.config), known.overrides)
    if hasattr(known, "study") and PLACEHOLDER not in known.study:
        assert re.fullmatch(r"[\d,-]*", known.seeds)
        load_comparison(known.study, known.methods)


@functools.cache
def load_comparison(file: str, methods: str) -> None:
    """Load the study with one seed; all seeds take as many times longer."""
    from kray.compare.study import load_study

    load_study(str(ROOT / file), methods, "0", "")


def check_make(words: list[str]) -> None:
    """Check with make -n that the targets exist and the overrides reach the program that is called."""
    done = subprocess.run(["make", "--always-make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert all(value in done.stdout for value in given.values()), done.stdout
    arguments = shlex.split(given.get("ARGS", ""))
    if "train" in words or "check" in words:
        load_config(configuration(given.get("CONFIG", "configs/quickstart.yaml")), arguments)
    else:
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests")), arguments


def check_ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    name, *arguments = words
    # Raises a usage error for what it does not know.
    cli.commands[name].make_context(name, arguments)


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
    elif name not in OTHERS:
        pytest.fail(f"{place}: this test cannot check {command!r}")


def test_commands_are_found_and_wrong_ones_are_noticed(monkeypatch, capsys):
    places = [place for place, _ in commands()]
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "docs/getting-started.md",
        "docs/clusters.md",
        "jobs/train.py",
        "jobs/compare.py",
        "jobs/bench_pool.py",
    } <= set(places)
    assert len(places) > 100
    monkeypatch.chdir(ROOT)
    for words in (["jobs/simulate.py", "--popolation", "hard"], ["jobs/bench_pool.py", "--engines", "x"]):
        with pytest.raises(SystemExit) as caught:
            check_job(words, monkeypatch)
        assert caught.value.code == 2
    quick = ["jobs/train.py", "--config", "configs/tiny.yaml"]
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
