"""Makes the fixtures of tiny_runs.py known to this folder's tests."""

from tiny_runs import run_tiny, straight_run  # noqa: F401
