"""Commands against addresses that do not answer, and a real GCS."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from listeners import COMMANDS, LIMIT_S, listener

from kray.cluster.address import (
    API,
    CLUSTER,
    REACH_S,
    answers,
    require_cluster,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    for name in (CLUSTER, API, "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_process_ends_in_time_where_nobody_answers(name, tmp_path):
    """Each command as a process of its own, against a port that takes connections and never says anything."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with listener() as place:
        variable = {API: f"http://{place}"} if name == "submit" else {CLUSTER: place}
        arguments = [part.replace("{tmp}", str(tmp_path)) for part in COMMANDS[name]]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, f"jobs/{name}.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60,
            env=os.environ | variable,
        )  # fmt: skip
        took = time.monotonic() - started
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"no answer from {place}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert REACH_S <= took < LIMIT_S


def test_a_real_gcs_answers(ray_local, monkeypatch):
    address = ray_local.get_runtime_context().gcs_address
    assert answers(address, REACH_S)
    monkeypatch.setenv(CLUSTER, f" {address} ")
    assert require_cluster() == address == os.environ[CLUSTER]
    monkeypatch.setenv(CLUSTER, " auto ")
    assert require_cluster() == "auto"
