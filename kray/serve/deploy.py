"""Runs a service: joins or starts Ray Serve, deploys the application, waits for a signal, drains and removes it.

A Serve that was already running keeps its host, its port and its other applications, and keeps running. One that was started
here ends with the service. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TimeoutExpired
from typing import Any

from kray.cluster.session import connected, join
from kray.driver.stop_signals import caught
from kray.errors import ConfigError, KrayError
from kray.serve.access import REQUEST_TIMEOUT_S, Access
from kray.serve.gate import LOOPBACK

logger = logging.getLogger(__name__)

# Ray's variable for a function that an HTTP proxy calls when it starts, and the one that gives heads a deadline.
PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HEAD_DEADLINE = "kray.serve.head_deadline:install"
# Requests that Serve passes on to a replica, in those that its gate lets in: the gate refuses the others faster than Serve.
PASSED_ON = 8
# Seconds between two checks for a signal.
POLL_S = 0.2
# Seconds between two checks whether Serve still runs the service.
CHECK_S = 5.0
# Seconds for one reply of Serve's controller.
CALL_TIMEOUT_S = 60.0
# Characters of an error of Serve that are shown.
ERROR_CHARACTERS = 500
# While it makes a deployment, Serve changes how one of its modules is pickled, for all threads.
_DEPLOYMENT_LOCK = threading.Lock()


class Interrupted(Exception):
    """A signal came before the service was up."""


class Signals:
    """The signals received inside a `with` block that ask to stop, which do not end the process there.

    Attributes:
        received: Their names, in order; see `kray.driver.stop_signals` for which count.
    """

    def __init__(self) -> None:
        self.received: list[str] = []
        self._caught = contextlib.ExitStack()

    def __enter__(self) -> Signals:
        self._caught.enter_context(caught(self.received.append))
        return self

    def __exit__(self, *_: object) -> None:
        self._caught.close()

    @property
    def first(self) -> str:
        """Name of the first signal."""
        return self.received[0]


def make_application(replica: type, name: str, access: Access, actor: dict[str, Any], *arguments: Any) -> Any:
    """Return a Serve application; replicas are added when each handles half of the requests that it may.

    Args:
        replica: Class of the replicas, which serves HTTP by its __serve_build_asgi_app__.
        name: Name of the deployment.
        access: How the service is reached.
        actor: Ray's options for a replica.
        *arguments: Arguments of the class.
    """
    from ray import serve

    least, most = access.replicas
    limit = access.limits.concurrency
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": max(1.0, limit / 2)}
    options: dict[str, Any] = {"autoscaling_config": scaling} if least < most else {"num_replicas": most}
    # The gate refuses requests above its limit with 429 and the reason; Serve's own limits only guard against floods.
    options |= {"max_ongoing_requests": PASSED_ON * limit + 16, "max_queued_requests": 4 * limit}
    options |= {"graceful_shutdown_timeout_s": access.drain_s, "graceful_shutdown_wait_loop_s": 0.5}
    options |= {"health_check_period_s": 10, "health_check_timeout_s": 30, "max_constructor_retry_count": 1}
    with _DEPLOYMENT_LOCK:
        made: Any = serve.deployment(serve.ingress()(replica), name=name, ray_actor_options=actor, **options)
    return made.bind(*arguments)


def start_serve(access: Access) -> bool:
    """Start Serve, unless it runs on this cluster.

    Returns:
        Whether it was started here.

    Raises:
        ConfigError: It runs with another host or port.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        http = running.http_config
        if (http.host, http.port) != (access.host, access.port):
            raise ConfigError(
                f"--host and --port: Serve already runs on this cluster at {http.host}:{http.port}, the one address that "
                f"it can listen on: give --host {http.host} --port {http.port}, with a --prefix where / is taken"
            )
        return False
    place = "HeadOnly" if access.host in LOOPBACK else "EveryNode"
    options = {"host": access.host, "port": access.port, "request_timeout_s": REQUEST_TIMEOUT_S}
    within(CALL_TIMEOUT_S, "Serve's start", serve.start, proxy_location=place, http_options=options)
    return True


def serve_until_signal(
    name: str,
    build: Callable[[], Any],
    access: Access,
    cpus: int,
    ready: Callable[[], None],
    check: Callable[[], None] = lambda: None,
) -> int:
    """Run an application until SIGINT, SIGTERM or SIGHUP; a second signal ends it at once.

    Args:
        name: Name of the application.
        build: Makes the application; called when Ray is up.
        access: How the service is reached.
        cpus: CPU cores of the first replicas, for a Ray that is started here.
        ready: Called when the service is up.
        check: Called while it runs; raises a KrayError where it may not go on.

    Returns:
        The exit code: 0, or 130 when a signal came before the service was up.

    Raises:
        ConfigError: An option does not fit the Serve that runs on this cluster.
        KrayError: The service did not start, or Serve removed it.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Read by the proxies of a Ray that is started here; those of another cluster have its environment.
    os.environ.setdefault(PROXY_CALLBACK, HEAD_DEADLINE)
    with Signals() as signals:
        joined = join(cpus)
        import ray

        started = start_serve(access)
        check_free(name, access)
        try:
            deploy(name, build, access, signals)
            ready()
            wait(name, signals, check)
            logger.info(f"{signals.first}: stopping; running requests have {access.drain_s:g} s")
        except Interrupted:
            logger.info(f"{signals.first}: stopping before the service was up")
            return 130
        finally:
            remove(name, started and joined, access.drain_s, signals)
            if not joined:
                # Ends Serve, too.
                ray.shutdown()
    return 0


def check_free(name: str, access: Access) -> None:
    """Check that no other application on this cluster has the name or the prefix.

    Raises:
        ConfigError: One has.
    """

    prefixes = taken_prefixes()
    for other, state in within(CALL_TIMEOUT_S, "Serve's controller", serve_status).applications.items():
        if other == name:
            raise ConfigError(f"{name} already runs on this cluster, at {prefixes.get(other)}")
        if prefixes.get(other) == access.prefix:
            raise ConfigError(f"--prefix {access.prefix} is used on this cluster by {other} ({state.status.value})")


def deploy(name: str, build: Callable[[], Any], access: Access, signals: Signals) -> None:
    """Deploy the application that `build` makes and wait until it runs.

    Raises:
        KrayError: It does not start in time; the message has Serve's reason.
        Interrupted: A signal came first.
    """
    from ray import serve

    application = unless_interrupted(background(build), math.inf, signals)
    work = background(serve.run, application, name=name, route_prefix=access.prefix)
    try:
        unless_interrupted(work, access.start_s, signals)
    except TimeoutExpired:
        raise KrayError(f"{name} was not up after {access.start_s:.0f} s: {startup_error(name)}") from None
    except Interrupted:
        raise
    except Exception as error:
        why = startup_error(name) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KrayError(f"{name} failed to start: {why}") from error


def unless_interrupted(work: Future, seconds: float, signals: Signals) -> Any:
    """Wait for the result of work in the background.

    Raises:
        TimeoutExpired: The work takes longer than `seconds`.
        Interrupted: A signal came.
        Exception: What the work raised.
    """
    deadline = time.monotonic() + seconds
    while not work.done():
        if signals.received:
            raise Interrupted
        if time.monotonic() > deadline:
            raise TimeoutExpired
        time.sleep(POLL_S)
    return work.result()


def wait(name: str, signals: Signals, check: Callable[[], None]) -> None:
    """Wait for a signal.

    Raises:
        KrayError: Serve or the application is gone, or `check` raised it.
    """

    checked = time.monotonic()
    while not signals.received:
        time.sleep(POLL_S)
        check()
        if time.monotonic() > checked + CHECK_S:
            if name not in within(CALL_TIMEOUT_S, "Serve's controller", serve_status).applications:
                raise KrayError(f"{name} was removed from Serve by another client")
            checked = time.monotonic()


def remove(name: str, shut_down: bool, drain_s: float, signals: Signals) -> None:
    """Remove the application after its running requests have ended, or at a second signal.

    Args:
        name: The application.
        shut_down: Whether to shut down Serve, too.
        drain_s: Seconds that running requests have.
        signals: Signals so far.
    """
    from ray import serve

    def end() -> None:
        while name in serve_status().applications:
            # It waits for a minute, and running requests may have longer.
            with contextlib.suppress(TimeoutError):
                serve.delete(name)
        if shut_down:
            serve.shutdown()

    work, deadline = background(end), time.monotonic() + drain_s + CALL_TIMEOUT_S
    while not work.done() and len(signals.received) < 2 and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)


def startup_error(name: str) -> str:
    """Return Serve's reason why an application does not start, in one line; "" if there is none."""

    state = within(CALL_TIMEOUT_S, "Serve's controller", serve_status).applications.get(name)
    if state is None:
        return ""
    messages = [state.message, *(deployment.message for deployment in state.deployments.values())]
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if "Error:" in line or "Error(" in line]
    return (causes[-1] if causes else " ".join(lines))[:ERROR_CHARACTERS]


def serve_status() -> Any:
    """Return Serve's status.

    Raises:
        KrayError: Ray has gone; Serve itself would start or join another one.
    """
    from ray import serve

    if not connected():
        raise KrayError("the Ray that runs the service has gone")
    return serve.status()


def background(function: Callable[..., Any], *arguments: Any, **options: Any) -> Future:
    """Run a function in a daemon thread and return its future result."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name=function.__name__).start()
    return future


def within(seconds: float, what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run a function with a time limit.

    Args:
        seconds: The limit.
        what: What the function calls, for the error.
        function: The function.
        *arguments: Its arguments.
        **options: Its keyword arguments.

    Returns:
        Its result.

    Raises:
        KrayError: It takes longer.
    """
    try:
        return background(function, *arguments, **options).result(seconds)
    except TimeoutExpired:
        raise KrayError(f"{what}: no reply within {seconds:.0f} s") from None


def taken_prefixes() -> dict[str, str]:
    """Return the prefix of the paths of every application on this cluster."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    return {name: details["route_prefix"] for name, details in client.get_serve_details()["applications"].items()}
