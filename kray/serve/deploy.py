"""A service from its start to its end: joins or starts Serve, deploys, waits for a signal, drains, leaves.

Serve that was already running is left running with its other applications, and its host and port are its own. One that
was started here ends with the service. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from typing import Any

from kray.cluster.session import join
from kray.errors import ConfigError, KrayError
from kray.serve.access import ANSWER_S, Access
from kray.serve.gate import LOOPBACK

logger = logging.getLogger(__name__)

POLL_S = 0.2
CHECK_S = 5.0  # between looks at whether Serve still has the service
CALL_S = 60.0  # for one answer of Serve's controller
_MAKING = (
    threading.Lock()
)  # while it makes a deployment, Serve changes how one of its modules is pickled, for all threads


def deployed(body: type, name: str, access: Access, actor: dict[str, Any], *arguments: Any) -> Any:
    """A Serve application of `access.replicas` replicas of `body`, which serves HTTP by __serve_build_asgi_app__.

    actor: Ray's options for a replica. Replicas are added when half of the requests that one may have are under way.
    """
    from ray import serve

    least, most = access.replicas
    limit = access.limits.concurrency
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": max(1.0, limit / 2)}
    options: dict[str, Any] = {"autoscaling_config": scaling} if least < most else {"num_replicas": most}
    # The gate refuses above its limit, so that a client hears 429 and why; Serve's own limits are for floods.
    options |= {"max_ongoing_requests": 2 * limit + 16, "max_queued_requests": 4 * limit}
    options |= {"graceful_shutdown_timeout_s": access.drain_s, "graceful_shutdown_wait_loop_s": 0.5}
    options |= {"health_check_period_s": 10, "health_check_timeout_s": 30, "max_constructor_retry_count": 1}
    with _MAKING:
        made: Any = serve.deployment(serve.ingress()(body), name=name, ray_actor_options=actor, **options)
    return made.bind(*arguments)


def start_serve(access: Access) -> bool:
    """Whether Serve was started here. Raises ConfigError when it runs with another host or port."""
    from ray import serve
    from ray.serve.context import _get_global_client

    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        http = running.http_config
        if (http.host, http.port) != (access.host, access.port):
            raise ConfigError(
                f"--host and --port: Serve already runs on this cluster at {http.host}:{http.port} and can listen at one "
                f"place only: give --host {http.host} --port {http.port}, with a --prefix where / is taken"
            )
        return False
    place = "HeadOnly" if access.host in LOOPBACK else "EveryNode"
    options = {"host": access.host, "port": access.port, "request_timeout_s": ANSWER_S}
    within(CALL_S, "Serve's start", serve.start, proxy_location=place, http_options=options)
    return True


def serve_until_signal(
    name: str,
    build: Callable[[], Any],
    access: Access,
    cpus: int,
    ready: Callable[[], None],
) -> int:
    """Runs an application until SIGINT or SIGTERM; 0 when it was drained in time. Raises ConfigError, KrayError.

    build: makes the application, once Ray is there. cpus: what its first replicas need, for a Ray that is started here.
    ready: called when the service answers. A second signal ends at once.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    asked: list[int] = []
    handlers = {
        sign: signal.signal(sign, lambda number, _: asked.append(number)) for sign in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        joined = join(cpus)
        import ray

        started = start_serve(access)
        check_free(name, access)
        try:
            deploy(name, build, access, asked)
            ready()
            wait(name, asked)
            logger.info(f"{signal.Signals(asked[0]).name}: ending; requests under way have {access.drain_s:g} s")
        except Interrupted:
            logger.info(f"{signal.Signals(asked[0]).name}: ending before the service was up")
            return 130
        finally:
            leave(name, started and joined, access.drain_s, asked)
            if not joined:
                ray.shutdown()  # and all of Serve with it
    finally:
        for sign, handler in handlers.items():
            signal.signal(sign, handler)
    return 0


class Interrupted(Exception):
    """A signal came before the service was up."""


def check_free(name: str, access: Access) -> None:
    """Raises ConfigError when another application on this cluster has the name or the prefix."""
    from ray import serve

    prefixes = taken_prefixes()
    for other, state in within(CALL_S, "Serve's controller", serve.status).applications.items():
        if other == name:
            raise ConfigError(f"{name} is served on this cluster already, at {prefixes.get(other)}")
        if prefixes.get(other) == access.prefix:
            raise ConfigError(f"--prefix {access.prefix} is taken on this cluster by {other} ({state.status.value})")


def deploy(name: str, build: Callable[[], Any], access: Access, asked: list[int]) -> None:
    """Returns when the application that `build` makes runs. Raises KrayError that says what is missing, Interrupted."""
    from ray import serve

    application = unless_asked(background(build), math.inf, asked)
    work = background(serve.run, application, name=name, route_prefix=access.prefix)
    try:
        unless_asked(work, access.start_s, asked)
    except NotInTime:
        raise KrayError(f"{name} was not up after {access.start_s:.0f} s: {troubles(name)}") from None
    except Interrupted:
        raise
    except Exception as error:
        why = troubles(name) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KrayError(f"{name} could not be started: {why}") from error


def unless_asked(work: Future, seconds: float, asked: list[int]) -> Any:
    """The result of work in the background. Raises what it raised, NotInTime, or Interrupted at a signal."""
    deadline = time.monotonic() + seconds
    while not work.done():
        if asked:
            raise Interrupted
        if time.monotonic() > deadline:
            raise NotInTime
        time.sleep(POLL_S)
    return work.result()


def wait(name: str, asked: list[int]) -> None:
    """Returns at a signal. Raises KrayError when Serve or its application is gone."""
    from ray import serve

    looked = time.monotonic()
    while not asked:
        time.sleep(POLL_S)
        if time.monotonic() > looked + CHECK_S:
            if name not in within(CALL_S, "Serve's controller", serve.status).applications:
                raise KrayError(f"{name} was deleted from Serve by another")
            looked = time.monotonic()


def leave(name: str, whole: bool, drain_s: float, asked: list[int]) -> None:
    """Takes the application off, and with `whole` Serve too; no new requests come, those there may end."""
    from ray import serve

    def end() -> None:
        while name in serve.status().applications:
            with contextlib.suppress(TimeoutError):  # it waits a minute, and requests under way may have longer
                serve.delete(name)
        if whole:
            serve.shutdown()

    work, deadline = background(end), time.monotonic() + drain_s + CALL_S
    while not work.done() and len(asked) < 2 and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)


def troubles(name: str) -> str:
    """What Serve says of an application that does not come up, in one line."""
    from ray import serve

    state = within(CALL_S, "Serve's controller", serve.status).applications.get(name)
    if state is None:
        return ""
    told = [state.message, *(part.message for part in state.deployments.values())]
    lines = [line.strip() for text in told for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if "Error:" in line or "Error(" in line]
    return (causes[-1] if causes else " ".join(lines))[:500]


def background(function: Callable[..., Any], *arguments: Any, **options: Any) -> Future:
    """Its result, from a thread that the process does not wait for."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name=function.__name__).start()
    return future


def within(seconds: float, what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The function's result. Raises KrayError when it is not there in time."""
    try:
        return background(function, *arguments, **options).result(seconds)
    except NotInTime:
        raise KrayError(f"{what}: no answer within {seconds:.0f} s") from None


def taken_prefixes() -> dict[str, str]:
    """{application: the prefix of its paths}."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    return {name: told["route_prefix"] for name, told in client.get_serve_details()["applications"].items()}
