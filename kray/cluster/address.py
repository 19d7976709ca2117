"""Ray addresses, parsed and probed before Ray's own code connects to them, which takes minutes where no server answers.

RAY_ADDRESS names a cluster to join: host:port of its GCS, or auto for the one of this machine. RAY_API_SERVER_ADDRESS names
the API that jobs are submitted to: http://host:port of the dashboard. `reach` is the only way to either: it resolves the
name, connects, and identifies the server, all within REACH_S. Whatever is wrong is a ConfigError.
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
# Seconds for the name's resolution, the connection and the answer together.
REACH_S = 6.0
# Ray's defaults.
GCS_PORT, API_PORT = 6379, 8265
NOT_A_GCS = "is something else than the GCS of a Ray"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# The first bytes of an HTTP/2 client, as gRPC uses it, with an empty SETTINGS frame. A server answers with SETTINGS before it
# checks any token.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
# Bytes of a frame's header, and the type of SETTINGS in its fourth byte.
FRAME, SETTINGS = 9, 4


@dataclass(frozen=True)
class Endpoint:
    """The address of a server.

    Attributes:
        host: a name or an IP address, IPv6 without brackets.
        port: its TCP port.
        scheme: http or https for the job API, "" for a GCS.
        path: the prefix of the API's own paths.
    """

    host: str
    port: int
    scheme: str = ""
    path: str = ""

    @property
    def loopback(self) -> bool:
        """Whether the host is this machine's loopback address."""
        return self.host in LOOPBACK

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def given_cluster() -> str:
    """Return RAY_ADDRESS, or "" where it is not set or is `local`: then no cluster is joined."""
    address = os.environ.get(CLUSTER, "").strip()
    return "" if address == "local" else address


def require_cluster() -> str:
    """Return what `given_cluster` does, once a GCS has answered there.

    Raises:
        ConfigError: no GCS of a Ray answers at the address.
    """
    if CLUSTER in os.environ:
        # Ray does not strip it.
        os.environ[CLUSTER] = os.environ[CLUSTER].strip()
    address = given_cluster()
    if address == "auto":
        reach(read_cluster(_running_here(), address), f"{CLUSTER}={address}", hint=False)
    elif address:
        reach(read_cluster(address), f"{CLUSTER}={address}")
    return address


def read_cluster(address: str, given: str = "") -> Endpoint:
    """Parse host:port of a GCS.

    Args:
        address: host:port.
        given: what the user wrote, for messages, where it differs from `address`.

    Raises:
        ConfigError: it is no such address; the message gives the right form.
    """
    shown_as = f"{CLUSTER}={given or address}"
    scheme, split, _ = address.partition("://")
    scheme = scheme.lower()
    if split and scheme in ("http", "https"):
        raise ConfigError(
            f"{shown_as} is an address of the job API. A cluster is joined by host:port of its GCS, as in "
            f"{CLUSTER}=head:{GCS_PORT}; jobs are submitted by {API}={address} python jobs/submit.py ..."
        )
    if split and scheme == "ray":
        raise ConfigError(
            f"{shown_as} is an address of Ray Client, which is not supported: a run's driver must be on a node of the cluster. "
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
            f"{shown_as} is no address of a cluster: it must be host:port of its GCS, as in {CLUSTER}=head:{GCS_PORT}, or auto"
        )
    return Endpoint(host, port)


def read_api(address: str) -> Endpoint:
    """Parse the address of the job API: http(s)://host:port, perhaps with a path.

    Raises:
        ConfigError: it is no such address; the message gives the right form.
    """
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


def reach(there: Endpoint, shown_as: str, seconds: float = REACH_S, *, hint: bool = True) -> None:
    """Wait until Ray answers at an endpoint: a GCS, or the job API where the endpoint has a scheme.

    Args:
        there: the endpoint to probe.
        shown_as: how messages name the address.
        seconds: the deadline of all steps together.
        hint: whether messages name the usual port.

    Raises:
        Unreachable: nothing listens there.
        ConfigError: the name cannot be resolved, the server does not answer in time, or it is not Ray.
    """
    usual = _usual(there) if hint else ""
    work: Future[str] = Future()
    stage = ["while its name was resolved"]

    def probe() -> None:
        try:
            socket.getaddrinfo(there.host, there.port, type=socket.SOCK_STREAM)
            stage.append("to a connection")
            with socket.create_connection((there.host, there.port), timeout=seconds) as connection:
                stage.append("to a question")
                wrong = _check_api(there, connection) if there.scheme else _check_gcs(there, connection)
            work.set_result(wrong or ("" if there.scheme else _check_cluster_id(there, seconds)))
        except BaseException as error:
            work.set_exception(error)

    # A name's resolution cannot be interrupted, so it gets its own thread.
    threading.Thread(target=probe, daemon=True, name=f"reach {there}").start()
    try:
        wrong = work.result(seconds)
    except socket.gaierror as error:
        raise ConfigError(f"{shown_as}: the name {there.host} cannot be resolved ({error.strerror or error})") from None
    except ConnectionRefusedError:
        raise Unreachable(f"{shown_as}: nothing listens at {there}{usual}") from None
    except ssl.SSLError as error:
        raise ConfigError(f"{shown_as}: no TLS connection to {there}: {error.reason or error}") from None
    except (NotInTime, TimeoutError):
        raise ConfigError(f"{shown_as}: no answer from {there} {stage[-1]} within {seconds:g} s{usual}") from None
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{shown_as}: {there} cannot be reached: {str(error) or type(error).__name__}") from None
    if wrong:
        raise ConfigError(f"{shown_as}: {there} {wrong}{usual}")


class Unreachable(ConfigError):
    """Nothing listens at an address."""


def answers(address: str, seconds: float) -> bool:
    """Return whether a GCS answers at host:port within so many seconds."""
    try:
        reach(read_cluster(address), address, seconds)
    except ConfigError:
        return False
    return True


def _usual(there: Endpoint) -> str:
    return f"; a dashboard's port is usually {API_PORT}" if there.scheme else f"; a GCS's port is usually {GCS_PORT}"


def _check_gcs(there: Endpoint, connection: socket.socket) -> str:
    """Return what is wrong with the server, "" where it speaks gRPC."""
    if _with_tls():
        connection = _secured(connection)
    connection.sendall(PREFACE)
    received = b""
    while len(received) < FRAME and (part := connection.recv(FRAME - len(received))):
        received += part
    if received.startswith(b"HTTP/"):
        return (
            f"speaks HTTP, as a dashboard does, and is no GCS. Jobs are submitted to a dashboard: {API}=http://{there}"
        )
    return "" if len(received) == FRAME and received[3] == SETTINGS else NOT_A_GCS


def _check_cluster_id(there: Endpoint, seconds: float) -> str:
    """Return what is wrong with a gRPC server, "" for a GCS, including one that requires a token, which Ray sends later."""
    if _with_tls():
        # Ray itself verifies the certificates.
        return ""
    import grpc

    with grpc.insecure_channel(str(there), options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=seconds)
        except grpc.RpcError as error:
            return "" if error.code() is grpc.StatusCode.UNAUTHENTICATED else NOT_A_GCS
    return ""


def _with_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _secured(plain: socket.socket) -> socket.socket:
    """Wrap the connection in TLS as Ray's variables configure it; the server's identity is verified by Ray, not here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    certificate, key = os.environ.get("RAY_TLS_SERVER_CERT"), os.environ.get("RAY_TLS_SERVER_KEY")
    if certificate and key:
        context.load_cert_chain(certificate, key)
    return context.wrap_socket(plain)


def _check_api(there: Endpoint, connection: socket.socket) -> str:
    """Return what is wrong with the server, "" for Ray's dashboard or a proxy or login page in front of it."""
    client = http.client.HTTPConnection(there.host, there.port)
    client.sock = connection
    if there.scheme == "https":
        client.sock = ssl.create_default_context().wrap_socket(connection, server_hostname=there.host)
    try:
        client.request("GET", f"{there.path}/api/version", headers={"Accept": "application/json"})
        answer = client.getresponse()
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
    """Return host:port of the Ray that `auto` stands for.

    Raises:
        ConfigError: no Ray runs on this machine.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise ConfigError(f"{CLUSTER}=auto: no Ray to join was found on this machine ({why})") from None
