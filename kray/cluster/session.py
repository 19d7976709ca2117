"""Joining a Ray cluster, or starting a local one for this process alone, and running single tasks on it.

No call of kray joins a Ray that it was not told to join: without a connection Ray's own calls would start or join one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from kray.cluster.address import CLUSTER, require_cluster
from kray.cluster.resources import joins_cluster
from kray.cluster.token import protect_token
from kray.config import KrayConfig
from kray.config.placement import requested
from kray.errors import ConfigError, KrayError

# Ray takes the loopback address as a node's own only where it is told that there is no cluster to join (as on macOS), and
# reads this when it is imported.
LOCAL_RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tasks that Ray can show, the newest ones; 3 KiB each, and 100,000 by default.
    "RAY_task_events_max_num_task_in_gcs": "2000",
}
# Read by Ray when it is imported: its calls raise an error where no Ray is connected.
AUTO_CONNECT = "RAY_ENABLE_AUTO_CONNECT"


def never_auto_connect() -> None:
    """Keep Ray's calls in this process from starting or joining a Ray by themselves."""
    os.environ[AUTO_CONNECT] = "0"
    if "ray" in sys.modules:
        from ray._private import auto_init_hook

        auto_init_hook.enable_auto_connect = False


def connected() -> bool:
    """Return whether this process is connected to a Ray; imports none."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def connect(config: KrayConfig) -> None:
    """Join or start Ray with the CPUs that a run needs; see `join`."""
    join(requested(config)[0])


def join(cpus: int) -> bool:
    """Join the cluster of this job or of RAY_ADDRESS; without either, start Ray on this machine's loopback address.

    Args:
        cpus: the least number of CPUs that a Ray started here offers; it offers as many as the machine has cores.

    Returns:
        Whether a cluster was joined.

    Raises:
        ConfigError: the cluster cannot be joined.
        KrayError: Ray cannot be started here.
    """
    joins = joins_cluster()
    address = require_cluster()
    if not joins:
        path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Ray's processes can import from the current folder, as the job itself can.
        os.environ.update(LOCAL_RAY | {"PYTHONPATH": path})
        protect_token()
    never_auto_connect()
    import ray

    if joins:
        try:
            with _same_handlers():
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"{CLUSTER}={address}: this Ray cannot be joined: {why}") from error
        return True
    try:
        with _same_handlers(), _own_sessions():
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, cpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:
        # Ray raises many kinds, on a machine that is too busy for its deadlines even a bare Exception.
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KrayError(f"Ray could not be started on this machine: {why}") from error
    return False


@contextlib.contextmanager
def _own_sessions() -> Iterator[None]:
    """Start Ray's processes in sessions of their own, which signals to this process's group do not reach.

    timeout, scancel and a closed terminal signal the group: Ray would end before the run is saved.
    """
    from ray._private import services

    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, start_new_session=True)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        services.ConsolePopen = popen  # type: ignore[misc]


@contextlib.contextmanager
def _same_handlers() -> Iterator[None]:
    """Keep this process's signal handlers, which Ray replaces when it connects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_as_task(timeout_s: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function as a Ray task on one CPU of any node and return its result.

    Raises:
        KrayError: the function's own, or one after `timeout_s` seconds.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayTaskError

    name = function.__name__
    task = ray.remote(function).options(name=name, num_cpus=1, max_retries=0).remote(*arguments)
    try:
        return ray.get(task, timeout=timeout_s)
    except GetTimeoutError as error:
        ray.cancel(task, force=True)
        raise KrayError(f"{name} did not end, or found no free CPU, within {timeout_s:.0f} s") from error
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, KrayError) else error) from None
