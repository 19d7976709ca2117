"""Submit a job with `ray job submit` and follow it; Ctrl-C stops the job, which saves and ends.

    python jobs/submit.py jobs/train.py --config configs/quickstart.yaml
    RAY_API_SERVER_ADDRESS=http://head:8265 python jobs/submit.py jobs/train.py --config configs/gsm8k.yaml

Without RAY_API_SERVER_ADDRESS the Ray head on 127.0.0.1:8265 is used. A head on this machine is started when none answers
there; it stays up for the next job; `make stop` ends it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
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
from kray.config import redact
from kray.driver.provenance import git_commit
from kray.errors import ConfigError, KrayError
from kray.launch.job_log import STOP_S, follow
from kray.launch.main import guarded

LOCAL = f"http://127.0.0.1:{API_PORT}"
START_S, RUN_S = 90.0, 300.0
ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CARRIED = ("MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE")
FOLDERS = ("KRAY_CACHE", "XDG_CACHE_HOME", "HF_HOME")  # of this machine: a cluster has its own, also behind a tunnel


def main() -> int:
    command = sys.argv[1:]
    if not command or command[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    address, there = where()
    local = there.loopback
    for name in () if local else CARRIED:
        if urlsplit(os.environ.get(name, "")).password:
            text = "holds a password, and Ray's dashboard shows the variables of a job"
            raise ConfigError(f"{name} {text}: set it where the cluster's nodes start, and leave it out here")
    answered = answering(address, there)
    os.environ[API] = address  # what Ray's client goes by, whatever RAY_ADDRESS says
    if local:
        for key, value in (LOCAL_RAY | {"RAY_AUTH_MODE": "token"}).items():
            os.environ.setdefault(key, value)  # before Ray is imported
        ensure_token()
    client = client_of(address) if answered else start_head(address, there.port)
    if client is None:
        raise ConfigError(f"{API}={address}: a dashboard answered there, but Ray's job API does not")
    variables = {"KRAY_GIT_COMMIT": git_commit(), "RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_S:.0f}", "PYTHONUNBUFFERED": "1"}
    carried = CARRIED + (FOLDERS if own_head(address) else ())
    variables |= {name: os.environ[name] for name in carried if name in os.environ}
    name = f"kray-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    submit = [str(BIN / "ray"), "job", "submit", "--no-wait", "--address", address, "--submission-id", name]
    deadline = time.monotonic() + START_S
    # A file is this user's alone; arguments are everybody's to see.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as told:
        json.dump({"env_vars": variables}, told)
        told.flush()
        submit += ["--working-dir", str(ROOT), "--runtime-env", told.name, "--"]
        while (done := run(*submit, "python", *command)).returncode:
            # A head that has just started answers before it can take jobs.
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                raise KrayError(f"ray job submit: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
            time.sleep(1)
    print(f"job {name} on {address}: python {redact(shlex.join(command))}", flush=True)
    return follow(client, name)


def where() -> tuple[str, Endpoint]:
    """The address of the job API as text and read. Raises ConfigError."""
    given = os.environ.get(API, "").strip()
    cluster = "" if given else require_cluster()
    if cluster and cluster != "auto" and not (found := read_cluster(cluster)).loopback:
        raise ConfigError(
            f"{CLUSTER}={cluster} names a cluster to join, and a job is submitted to the dashboard of one: set {API}, as in "
            f"{API}=http://{Endpoint(found.host, API_PORT)}"
        )
    address = given or LOCAL
    return address, read_api(address)


def answering(address: str, there: Endpoint) -> bool:
    """Whether a dashboard answers; where none listens on this machine, one may be started. Raises ConfigError."""
    try:
        reach(there, f"{API}={address}")
    except Unreachable:
        joins = bool(given_cluster()) and not os.environ.get(API)
        if there.host not in ("127.0.0.1", "localhost") or there.scheme != "http" or there.path or joins:
            raise
        return False
    return True


def run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    except subprocess.TimeoutExpired:
        raise KrayError(f"{' '.join(command[:3])} was not done within {RUN_S:.0f} s") from None


def ensure_token() -> None:
    """A token of this user's, so that nobody else on this machine can submit jobs to the local head."""
    if "RAY_AUTH_TOKEN" not in os.environ and os.environ["RAY_AUTH_MODE"] == "token":
        run(str(BIN / "ray"), "get-auth-token", "--generate").check_returncode()


def client_of(address: str):
    """A client of the dashboard at the address; None when nothing answers there."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise KrayError(f"{address} wants another token: {str(error).splitlines()[0]}") from error
    except (ConnectionError, RuntimeError):
        return None


def head_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kray"


def own_head(address: str) -> bool:
    """Whether the address is that of the head that `start_head` made, and it is up."""
    try:
        os.kill(int((head_folder() / "ray-head.pid").read_text()), 0)
        return (head_folder() / "ray-head.address").read_text() == address
    except (OSError, ValueError):
        return False


def start_head(address: str, port: int):
    """A Ray head of our own on 127.0.0.1, which stays up when this process ends."""
    folder = head_folder()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "ray-head.log"
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += ["--port=0", "--dashboard-agent-listen-port=0"]  # whatever is free: other Rays may run here
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
        client = client_of(address)
        if client is not None:
            return client
        time.sleep(0.5)
    raise KrayError(f"the Ray head did not answer on {address} within {START_S:.0f} s, see {log}")


if __name__ == "__main__":
    guarded(main)
