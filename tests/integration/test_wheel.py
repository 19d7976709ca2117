"""The wheel that users install holds every package, the marker of typed packages and one version."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kray

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_every_module(tmp_path):
    pytest.importorskip("setuptools", reason="without it a build needs the network")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "kray", source / "kray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*build, "-w", str(tmp_path), str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.split("-")[:2] == ["kray", kray.__version__]
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "kray").rglob("*.py")}
    assert modules | {"kray/py.typed"} <= held
    assert not [name for name in held if not name.startswith(("kray/", f"kray-{kray.__version__}.dist-info/"))]
