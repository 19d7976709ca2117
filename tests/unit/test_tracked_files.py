"""What the repository may hold: files of its own, and nothing that an install makes."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def git(*arguments: str) -> list[str]:
    """The lines that a git command prints.

    Skips the test where this is no checkout.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"git cannot read this checkout: {done.stderr.strip()}")
    return done.stdout.splitlines()


def test_no_ignored_file_and_no_link_is_committed():
    # A committed link to a machine's own .venv-openenv stopped `make test-all` in every clone.
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []
    assert [line for line in git("ls-files", "--stage") if line.startswith("120000")] == []


@pytest.mark.parametrize("made", [".venv", ".venv-openenv", "kray.egg-info", ".mypy_cache"])
def test_what_an_install_makes_is_ignored_as_a_folder_and_as_a_link(made):
    lines = git("check-ignore", "--no-index", made)
    assert made in lines
