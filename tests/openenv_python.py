"""The Python that runs OpenEnv servers in tests.

The package openenv needs versions of mcp that vLLM excludes, so it is rarely in kray's own environment. `make openenv` puts it
into .venv-openenv, `make test-all` too; KRAY_OPENENV_PYTHON names another interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APP = ROOT / "tests/openenv_app"


def own_environment() -> dict[str, str]:
    """Return the environment of a Python with packages of its own."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@cache
def openenv_python() -> str:
    """Return the interpreter; skip the test where there is none."""
    for python in (os.environ.get("KRAY_OPENENV_PYTHON", ""), str(ROOT / ".venv-openenv/bin/python"), sys.executable):
        if python and Path(python).is_file():
            command = [python, "-c", "import openenv.core.env_server"]
            found = subprocess.run(command, capture_output=True, timeout=120, env=own_environment())
            if found.returncode == 0:
                return python
    pytest.skip("no Python with openenv: run `make openenv`")
