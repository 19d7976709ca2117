"""Addresses of a Ray: what is read, what is refused, and that no command waits long for what never answers."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from inline_jobs import run_job
from listeners import COMMANDS, LIMIT_S, listener

from kray.cluster.address import (
    API,
    CLUSTER,
    Endpoint,
    Unreachable,
    answers,
    given_cluster,
    reach,
    read_api,
    read_cluster,
    require_cluster,
)
from kray.errors import ConfigError
from kray.monitor.client import read_driver_address

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    for name in (CLUSTER, API, "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def web(status: int, body: str) -> Iterator[str]:
    """host:port of an HTTP server that answers every GET alike."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def closed() -> str:
    """host:port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head:6379", Endpoint("head", 6379)),
        ("10.0.0.1:6380", Endpoint("10.0.0.1", 6380)),
        ("[::1]:6379", Endpoint("::1", 6379)),
    ],
)
def test_a_cluster_is_host_and_port(text, expected):
    assert read_cluster(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://head:8265", f"{API}=http://head:8265"),
        ("https://head", "address of the job API"),
        ("HTTP://head:8265", "address of the job API"),
        ("Https://head:8265", "address of the job API"),
        ("RAY://head:10001", "Ray Client, which is not supported"),
        ("ray://head:10001", "Ray Client, which is not supported"),
        ("anyscale://mine", "no address of a cluster"),
        ("head", "no address of a cluster"),
        ("head:", "no address of a cluster"),
        (":6379", "no address of a cluster"),
        ("head:port", "no address of a cluster"),
        ("head:99999", "no address of a cluster"),
        ("head:0", "no address of a cluster"),
        ("head:6379/path", "no address of a cluster"),
        ("me@head:6379", "no address of a cluster"),
        ("head :6379", "no address of a cluster"),
        ("::1:6379", "no address of a cluster"),
        ("[::1", "no address of a cluster"),
    ],
)
def test_what_is_no_cluster_is_refused(text, why):
    with pytest.raises(ConfigError, match="RAY_ADDRESS=") as found:
        read_cluster(text)
    assert text in str(found.value)
    assert why in str(found.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://head:8265", Endpoint("head", 8265, "http")),
        ("https://ray.example/team/", Endpoint("ray.example", 443, "https", "/team")),
        (" http://[::1]:8265 ", Endpoint("::1", 8265, "http")),
    ],
)
def test_a_job_api_is_a_url(text, expected):
    assert read_api(text) == expected


@pytest.mark.parametrize(
    "text",
    ["head:8265", "head", "http://", "http://:8265", "http://head:port", "http://head:99999", "http://head:0", "ftp://head",
     "ray://head:10001", "http://[::1", "http://he ad:8265", "http://head:8265?x=1", "//head:8265"],
)  # fmt: skip
def test_what_is_no_job_api_is_refused(text):
    with pytest.raises(ConfigError, match=r"RAY_API_SERVER_ADDRESS=.*as in RAY_API_SERVER_ADDRESS=http://head:8265"):
        read_api(text)


def test_local_and_blank_addresses_join_nothing(monkeypatch):
    for text in ("", "  ", "local"):
        monkeypatch.setenv(CLUSTER, text)
        assert given_cluster() == require_cluster() == ""
    monkeypatch.setenv(CLUSTER, " local ")
    assert require_cluster() == ""
    assert os.environ[CLUSTER] == "local"  # what Ray understands


def test_auto_with_blanks_around_is_auto(monkeypatch):
    """Ray finds its address by the variable without blanks; no usual port is advised, as the user gave none."""
    seen = []
    monkeypatch.setattr("kray.cluster.address._running_here", lambda: seen.append(os.environ[CLUSTER]) or closed())
    for text in ("auto", " auto ", "auto\n"):
        monkeypatch.setenv(CLUSTER, text)
        with pytest.raises(Unreachable) as found:
            require_cluster()
        assert seen[-1] == "auto"
        assert str(found.value).startswith("RAY_ADDRESS=auto: nothing listens at ")
        assert "usually" not in str(found.value)


@pytest.mark.parametrize("scheme", ["", "http", "https"])
def test_what_never_answers_costs_a_bounded_time(scheme):
    with listener() as place:
        there = Endpoint("127.0.0.1", int(place.rpartition(":")[2]), scheme)
        started = time.monotonic()
        with pytest.raises(ConfigError, match=r"told: no answer from 127\.0\.0\.1:\d+ to a question within 0\.5 s"):
            reach(there, "told", 0.5)
        assert time.monotonic() - started < 2
        assert not answers(place, 0.2)


def test_a_server_that_trickles_its_answer_is_not_waited_for():
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            with contextlib.suppress(OSError):
                connection = server.accept()[0]
                while not done.wait(0.1):
                    connection.sendall(b"H")

        threading.Thread(target=trickle, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(ConfigError, match="told"):
            reach(Endpoint("127.0.0.1", server.getsockname()[1], "http"), "told", 1.0)
        assert time.monotonic() - started < 3
        done.set()


def test_nothing_listens_at_a_closed_port():
    for scheme in ("", "http"):
        there = Endpoint("127.0.0.1", int(closed().rpartition(":")[2]), scheme)
        with pytest.raises(Unreachable, match=r"told: nothing listens at 127\.0\.0\.1:\d+; a "):
            reach(there, "told")


def test_a_name_that_does_not_resolve_is_said():
    with pytest.raises(ConfigError, match=r"head\.invalid"):
        reach(Endpoint("head.invalid", 6379), "told")
    with pytest.raises(ConfigError, match="told"):
        reach(Endpoint("a" * 70 + ".invalid", 6379), "told")  # longer than a label may be


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", bytes(9), b"\x00\x00\x00"])
def test_what_is_no_gcs_is_told_apart(answer):
    with listener(answer) as place, pytest.raises(ConfigError, match=r"something else than the GCS|cannot be reached"):
        reach(read_cluster(place), "told")


def test_a_dashboard_in_place_of_a_gcs_is_said():
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as place, pytest.raises(ConfigError) as found:
        reach(read_cluster(place), "told")
    assert f"{API}=http://{place}" in str(found.value)


def test_another_server_that_speaks_grpc_is_told_apart():
    """Ray Client's server, for instance, or a raylet."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ConfigError, match="something else than the GCS"):
            reach(Endpoint("127.0.0.1", port), "told")
    finally:
        server.stop(None)


@pytest.mark.parametrize(("status", "body", "fine"), [
    (200, '{"ray_version": "2.60.0"}', True), (200, "{}", False), (200, "<html>", False), (401, "", True), (404, "", False),
    (503, "", False),
])  # fmt: skip
def test_a_dashboard_is_known_by_its_version(status, body, fine):
    with web(status, body) as place:
        there = read_api(f"http://{place}")
        if fine:
            reach(there, "told")
        else:
            with pytest.raises(ConfigError, match="not as a Ray dashboard does"):
                reach(there, "told")
    with (
        listener(b"SSH-2.0-x\r\n") as place,
        pytest.raises(ConfigError, match=r"does not speak HTTP|cannot be reached"),
    ):
        reach(read_api(f"http://{place}"), "told")


def test_a_driver_is_announced_where_a_ray_answers_alone(tmp_path):
    with listener() as place:
        (tmp_path / "driver.json").write_text(f'{{"ray": "{place}", "auth": ""}}')
        assert read_driver_address(tmp_path) == ("", "")


def call(name: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model/config.json").write_text("{}")
    return run_job(name, *(part.replace("{tmp}", str(tmp_path)) for part in COMMANDS[name]))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("text", ["http://head:8265", "ray://head:10001", "head", "closed", "head.invalid:6379"])
def test_every_command_refuses_an_address(name, text, tmp_path, monkeypatch):
    text = closed() if text == "closed" else text
    monkeypatch.setenv(CLUSTER, text)
    started = time.monotonic()
    done = call(name, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"config error: {CLUSTER}={text}")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < LIMIT_S
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["head:8265", "http://head:port", "http://head.invalid:8265", "https://{closed}"])
def test_submit_refuses_a_job_api(text, tmp_path, monkeypatch):
    monkeypatch.setenv(API, text.replace("{closed}", closed()))
    done = call("submit", tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"config error: {API}=")
    assert done.stderr.count("\n") == 1


def test_submit_starts_no_head_where_something_else_listens(tmp_path, monkeypatch):
    with web(404, "") as place:
        monkeypatch.setenv(API, f"http://{place}")
        done = call("submit", tmp_path)
    assert done.returncode == 2
    assert "not as a Ray dashboard does (HTTP 404)" in done.stderr
    assert "starting a head" not in done.stdout
