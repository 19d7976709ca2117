"""Submits a job to a Ray cluster through its dashboard, starting a Ray head on this machine where none runs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kray.cluster.address import (
    API,
    API_PORT,
    CLUSTER,
    Endpoint,
    Unreachable,
    given_cluster,
    reach,
    read_api,
    read_cluster,
    require_cluster,
)
from kray.cluster.session import LOCAL_RAY
from kray.cluster.token import AUTH_MODE, protect_token
from kray.config import redact
from kray.driver.provenance import git_commit
from kray.errors import ConfigError, KrayError
from kray.launch.job_log import STOP_S

LOCAL_API = f"http://127.0.0.1:{API_PORT}"
# Seconds for a head to start and to take jobs, and for a single command of Ray.
START_S = 90.0
COMMAND_S = 300.0
BIN = Path(sys.executable).parent
# Variables that a job needs of this environment; and folders of this machine, which only a head of ours has as well: a
# cluster has its own, also behind a tunnel.
CARRIED = ("MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE")
CARRIED_FOLDERS = ("KRAY_CACHE", "XDG_CACHE_HOME", "HF_HOME")


def submit(command: Sequence[str], working_dir: Path) -> tuple[Any, str]:
    """Submit `python <command>` as a Ray job.

    The job goes to RAY_API_SERVER_ADDRESS, or to the head on 127.0.0.1:8265. Where none listens on this machine, one is
    started, which stays up for the next job.

    Args:
        command: A script in `working_dir` and its arguments.
        working_dir: Uploaded as the job's working directory.

    Returns:
        Ray's JobSubmissionClient and the job's submission id.

    Raises:
        ConfigError: An address is wrong, nothing answers there, or a variable to be carried holds a password.
        KrayError: No head could be started, or Ray refuses the job.
    """
    address, endpoint = _api_address()
    if not endpoint.loopback:
        _refuse_passwords()
    running = _dashboard_answers(address, endpoint)
    # Ray's client takes the address from here, whatever RAY_ADDRESS holds.
    os.environ[API] = address
    if endpoint.loopback:
        # Ray reads these when it is imported.
        for key, value in (LOCAL_RAY | {AUTH_MODE: "token"}).items():
            os.environ.setdefault(key, value)
        # Nobody else on this machine can submit jobs to the local head.
        protect_token()
    client = _client(address) if running else _start_head(address, endpoint.port)
    if client is None:
        raise ConfigError(f"{API}={address}: a dashboard answers there, but Ray's job API does not")
    name = f"kray-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    _submit(address, name, command, working_dir)
    print(f"job {name} on {address}: python {redact(shlex.join(command))}", flush=True)
    return client, name


def _submit(address: str, name: str, command: Sequence[str], working_dir: Path) -> None:
    variables = {"KRAY_GIT_COMMIT": git_commit(), "RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_S:.0f}", "PYTHONUNBUFFERED": "1"}
    carried = CARRIED + (CARRIED_FOLDERS if _is_own_head(address) else ())
    variables |= {key: os.environ[key] for key in carried if key in os.environ}
    arguments = ["ray", "job", "submit", "--no-wait", "--address", address, "--submission-id", name]
    deadline = time.monotonic() + START_S
    # Variables go through a file, which only this user can read: every user of the machine sees the arguments.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as runtime_env:
        json.dump({"env_vars": variables}, runtime_env)
        runtime_env.flush()
        arguments += ["--working-dir", str(working_dir), "--runtime-env", runtime_env.name, "--", "python", *command]
        while (done := _run(*arguments)).returncode:
            # A head that has just started answers before it can take jobs.
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                raise KrayError(f"ray job submit: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
            time.sleep(1)


def _api_address() -> tuple[str, Endpoint]:
    """Return the address of the job API, as it was given and parsed."""
    given = os.environ.get(API, "").strip()
    cluster = "" if given else require_cluster()
    if cluster and cluster != "auto" and not (found := read_cluster(cluster)).loopback:
        raise ConfigError(
            f"{CLUSTER}={cluster} names a cluster to join, and jobs are submitted to a cluster's dashboard: set {API}, as in "
            f"{API}=http://{Endpoint(found.host, API_PORT)}"
        )
    address = given or LOCAL_API
    return address, read_api(address)


def _refuse_passwords() -> None:
    for name in CARRIED:
        if urlsplit(os.environ.get(name, "")).password:
            raise ConfigError(
                f"{name} holds a password, and Ray's dashboard shows the variables of a job: set it where the cluster's nodes "
                "start, and unset it here"
            )


def _dashboard_answers(address: str, endpoint: Endpoint) -> bool:
    """Return whether a dashboard answers; False only where a head may be started on this machine."""
    try:
        reach(endpoint, f"{API}={address}")
    except Unreachable:
        joins = bool(given_cluster()) and not os.environ.get(API)
        if endpoint.host not in ("127.0.0.1", "localhost") or endpoint.scheme != "http" or endpoint.path or joins:
            raise
        return False
    return True


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this Python environment."""
    try:
        return subprocess.run([str(BIN / program), *arguments], capture_output=True, text=True, timeout=COMMAND_S)
    except subprocess.TimeoutExpired:
        raise KrayError(f"{' '.join([program, *arguments[:2]])} did not end within {COMMAND_S:.0f} s") from None


def _client(address: str) -> Any:
    """Return a client of the dashboard, None when nothing answers there."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise KrayError(f"{address} requires another token: {str(error).splitlines()[0]}") from error
    except (ConnectionError, RuntimeError):
        return None


def _head_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kray"


def _is_own_head(address: str) -> bool:
    """Return whether the address is that of a running head that `_start_head` started."""
    try:
        os.kill(int((_head_folder() / "ray-head.pid").read_text()), 0)
        return (_head_folder() / "ray-head.address").read_text() == address
    except (OSError, ValueError):
        return False


def _start_head(address: str, port: int) -> Any:
    """Start a Ray head on 127.0.0.1, which stays up when this process ends; return a client of its dashboard."""
    folder = _head_folder()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "ray-head.log"
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    # Any free ports: other Rays may run on this machine.
    command += ["--port=0", "--dashboard-agent-listen-port=0"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--num-cpus={max(2, os.cpu_count() or 1)}"]
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    with log.open("w") as output:
        head = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    (folder / "ray-head.pid").write_text(str(head.pid))
    (folder / "ray-head.address").write_text(address)
    print(f"no Ray answers on {address}: starting a head (log: {log}; `make stop` ends it)", flush=True)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if head.poll() is not None:
            raise KrayError(f"the Ray head ended at once, see {log}:\n{log.read_text()[-800:]}")
        client = _client(address)
        if client is not None:
            return client
        time.sleep(0.5)
    raise KrayError(f"the Ray head did not answer on {address} within {START_S:.0f} s, see {log}")
