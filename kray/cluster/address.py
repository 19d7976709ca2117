"""Addresses of a Ray, read and tried before Ray's own code waits for them: that takes minutes where nobody answers.

RAY_ADDRESS names a cluster to join: host:port of its GCS, or auto for the one of this machine. RAY_API_SERVER_ADDRESS names
the API that jobs are submitted to: http://host:port of the dashboard. `reach` is the only way to either: it resolves the
name, connects, and has what listens there say what it is, all within REACH_S. What is wrong is a ConfigError.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from urllib.parse import urlsplit

from kray.errors import ConfigError

CLUSTER, API = "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"
REACH_S = 6.0  # for a name's resolution, a connection and an answer together
GCS_PORT, API_PORT = 6379, 8265  # Ray's defaults
STRANGE = "is something else than the GCS of a Ray"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# HTTP/2, which gRPC speaks: what a client says first, with an empty SETTINGS frame. A server answers with SETTINGS, whoever
# asks: tokens come later.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME, SETTINGS = 9, 4  # bytes of a frame's head; the type of SETTINGS, its fourth byte


@dataclass(frozen=True)
class Endpoint:
    """Where something listens. scheme: http or https for the job API, "" for a GCS; path: before the API's own."""

    host: str
    port: int
    scheme: str = ""
    path: str = ""

    @property
    def loopback(self) -> bool:
        return self.host in LOOPBACK

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def given_cluster() -> str:
    """RAY_ADDRESS; "" where it is not set, or says that no cluster is to be joined."""
    address = os.environ.get(CLUSTER, "").strip()
    return "" if address == "local" else address


def require_cluster() -> str:
    """RAY_ADDRESS as `given_cluster` has it. Raises ConfigError unless the GCS of a Ray answers there."""
    if CLUSTER in os.environ:
        os.environ[CLUSTER] = os.environ[CLUSTER].strip()  # Ray takes it as it is, spaces included
    address = given_cluster()
    if address == "auto":
        reach(read_cluster(_running_here(), address), f"{CLUSTER}={address}", hint=False)
    elif address:
        reach(read_cluster(address), f"{CLUSTER}={address}")
    return address


def read_cluster(address: str, given: str = "") -> Endpoint:
    """host:port of a GCS. given: what the user wrote, where it is something else. Raises ConfigError."""
    told = f"{CLUSTER}={given or address}"
    scheme, split, _ = address.partition("://")
    scheme = scheme.lower()
    if split and scheme in ("http", "https"):
        raise ConfigError(
            f"{told} is an address of the job API. A cluster is joined by host:port of its GCS, as in "
            f"{CLUSTER}=head:{GCS_PORT}; jobs are submitted by {API}={address} python jobs/submit.py ..."
        )
    if split and scheme == "ray":
        raise ConfigError(
            f"{told} is an address of Ray Client, which is not supported: a run's driver must be on a node of the cluster. "
            f"Give {CLUSTER}=head:{GCS_PORT} on such a node, or use jobs/submit.py with {API}=http://head:{API_PORT}"
        )
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    rest = parts.path or parts.query or parts.fragment or "@" in address if host else ""
    if split or not host or not port or rest or any(character.isspace() for character in address):
        raise ConfigError(
            f"{told} is no address of a cluster: it must be host:port of its GCS, as in {CLUSTER}=head:{GCS_PORT}, or auto"
        )
    return Endpoint(host, port)


def read_api(address: str) -> Endpoint:
    """Of the job API, http(s)://host:port, perhaps with a path. Raises ConfigError."""
    hint = f"it must be http://host:port or https://host:port of the dashboard, as in {API}=http://head:{API_PORT}"
    try:
        parts = urlsplit(address.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"{API}={address} is no address: {hint}") from None
    if parts.scheme == "ray":
        raise ConfigError(f"{API}={address} is an address of Ray Client: {hint}")
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"{API}={address} does not begin with http:// or https://: {hint}")
    bad = not host or port == 0 or parts.query or parts.fragment
    if bad or any(character.isspace() for character in address.strip()):
        raise ConfigError(f"{API}={address} is no address: {hint}")
    assert host is not None
    return Endpoint(host, port or (443 if parts.scheme == "https" else 80), parts.scheme, parts.path.rstrip("/"))


def reach(there: Endpoint, told: str, seconds: float = REACH_S, *, hint: bool = True) -> None:
    """Returns when a Ray answers: a GCS, or where the endpoint has a scheme the job API.

    Args:
        told: how the address was given, for messages.
        hint: messages name the usual port.

    Raises:
        Unreachable: where nothing listens.
        ConfigError: for what is no Ray; both of them in time.
    """
    usual = _usual(there) if hint else ""
    work: Future[str] = Future()
    stage = ["while its name was resolved"]

    def look() -> None:  # a name's resolution cannot be interrupted, so that it has a thread of its own
        try:
            socket.getaddrinfo(there.host, there.port, type=socket.SOCK_STREAM)
            stage.append("to a connection")
            with socket.create_connection((there.host, there.port), timeout=seconds) as connection:
                stage.append("to a question")
                wrong = _ask_api(there, connection) if there.scheme else _ask_gcs(there, connection)
            work.set_result(wrong or ("" if there.scheme else _ask_cluster_id(there, seconds)))
        except BaseException as error:
            work.set_exception(error)

    threading.Thread(target=look, daemon=True, name=f"reach {there}").start()
    try:
        wrong = work.result(seconds)
    except socket.gaierror as error:
        raise ConfigError(f"{told}: the name {there.host} cannot be resolved ({error.strerror or error})") from None
    except ConnectionRefusedError:
        raise Unreachable(f"{told}: nothing listens at {there}{usual}") from None
    except ssl.SSLError as error:
        raise ConfigError(f"{told}: no TLS connection to {there}: {error.reason or error}") from None
    except (NotInTime, TimeoutError):
        raise ConfigError(f"{told}: no answer from {there} {stage[-1]} within {seconds:g} s{usual}") from None
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{told}: {there} cannot be reached: {str(error) or type(error).__name__}") from None
    if wrong:
        raise ConfigError(f"{told}: {there} {wrong}{usual}")


class Unreachable(ConfigError):
    """Nothing listens at an address."""


def answers(address: str, seconds: float) -> bool:
    """Whether the GCS of a Ray answers at host:port."""
    try:
        reach(read_cluster(address), address, seconds)
    except ConfigError:
        return False
    return True


def _usual(there: Endpoint) -> str:
    return f"; a dashboard's port is usually {API_PORT}" if there.scheme else f"; a GCS's port is usually {GCS_PORT}"


def _ask_gcs(there: Endpoint, connection: socket.socket) -> str:
    """What is wrong with what listens there; "" for a server that speaks gRPC."""
    if _with_tls():
        connection = _secured(connection)
    connection.sendall(PREFACE)
    heard = b""
    while len(heard) < FRAME and (part := connection.recv(FRAME - len(heard))):
        heard += part
    if heard.startswith(b"HTTP/"):
        return (
            f"speaks HTTP, as a dashboard does, and is no GCS. Jobs are submitted to a dashboard: {API}=http://{there}"
        )
    return "" if len(heard) == FRAME and heard[3] == SETTINGS else STRANGE


def _ask_cluster_id(there: Endpoint, seconds: float) -> str:
    """What is wrong with a server that speaks gRPC; "" for a GCS, also one that wants a token, which Ray gives later."""
    if _with_tls():
        return ""  # whose certificates Ray checks
    import grpc

    with grpc.insecure_channel(str(there), options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=seconds)
        except grpc.RpcError as error:
            return "" if error.code() is grpc.StatusCode.UNAUTHENTICATED else STRANGE
    return ""


def _with_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _secured(plain: socket.socket) -> socket.socket:
    """The connection with TLS, as Ray is told to use it. Who answers is not verified here; Ray does that."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    certificate, key = os.environ.get("RAY_TLS_SERVER_CERT"), os.environ.get("RAY_TLS_SERVER_KEY")
    if certificate and key:
        context.load_cert_chain(certificate, key)
    return context.wrap_socket(plain)


def _ask_api(there: Endpoint, connection: socket.socket) -> str:
    """What is wrong with what listens there; "" for Ray's dashboard, or a proxy or a guard before it."""
    asking = http.client.HTTPConnection(there.host, there.port)
    asking.sock = connection
    if there.scheme == "https":
        asking.sock = ssl.create_default_context().wrap_socket(connection, server_hostname=there.host)
    try:
        asking.request("GET", f"{there.path}/api/version", headers={"Accept": "application/json"})
        answer = asking.getresponse()
        body = answer.read(65536) if answer.status == 200 else b""
    except http.client.HTTPException:
        return "does not speak HTTP, so it is no Ray dashboard"
    if answer.status in (401, 403) or 300 <= answer.status < 400:
        return ""
    if answer.status != 200:
        return f"answers, but not as a Ray dashboard does (HTTP {answer.status})"
    try:
        known = "ray_version" in json.loads(body)
    except (ValueError, TypeError):
        known = False
    return "" if known else "answers, but not as a Ray dashboard does"


def _running_here() -> str:
    """host:port of the Ray that `auto` stands for. Raises ConfigError."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise ConfigError(f"{CLUSTER}=auto: no Ray to join was found on this machine ({why})") from None
