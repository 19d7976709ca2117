"""Makes the fixtures of nim_runs.py and tiny_runs.py known to this folder's tests."""

from nim_runs import nim_policy, run_nim  # noqa: F401
from tiny_runs import run_tiny, straight_run  # noqa: F401
