"""Joining a Ray cluster, or starting a local one for this process alone, and running single tasks on it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
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
    """
    joins = joins_cluster()
    address = require_cluster()
    if not joins:
        path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Ray's processes can import from the current folder, as the job itself can.
        os.environ.update(LOCAL_RAY | {"PYTHONPATH": path})
        protect_token()
    import ray

    if joins:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"{CLUSTER}={address}: this Ray cannot be joined: {why}") from error
        return True
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, cpus),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return False


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
