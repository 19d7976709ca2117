"""Makes the fixture of tiny_runs.py known to this folder's tests."""

from tiny_runs import run_tiny  # noqa: F401
