"""Jobs run in this process, which saves the seconds in which a new Python imports torch.

For jobs that end before they start Ray; others need a process of their own.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_job(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python jobs/<name>.py <arguments>` in the repository's root; return its exit code and output."""
    output, errors = io.StringIO(), io.StringIO()
    before = sys.argv, list(sys.path), os.getcwd()
    sys.argv = [f"jobs/{name}.py", *map(str, arguments)]
    os.chdir(ROOT)
    code: object = 0
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv, sys.path[:] = before[0], before[1]
        os.chdir(before[2])
    assert isinstance(code, int), code
    return subprocess.CompletedProcess([name, *arguments], code, output.getvalue(), errors.getvalue())
