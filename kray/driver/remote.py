"""What the jobs share: errors as one line and an exit code, the connection to Ray, and driving a Driver to its end."""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

from kray.config import KrayConfig
from kray.driver.provenance import tags
from kray.errors import InfrastructureError, KrayError
from kray.monitor.client import NAMESPACE, driver_name, remove_driver_address, write_driver_address
from kray.train.checkpoints import newest_checkpoint, newest_intact

logger = logging.getLogger(__name__)

GONE_WAIT_S = 60.0  # for actors to be gone whose driver has died


STOP_WAIT_S = 600.0  # for the step under way to be given up and a checkpoint to be written


def driver_actor(kind: type, folder: Path, restarts: int = 0) -> Any:
    """A Driver's actor class: `.remote(...)` makes it. On this node, which has the run's folder; it asks for no CPU, since
    it mostly waits. Other jobs of the cluster find it by its name. restarts: how many drivers of this run have died before."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options = {
        "name": driver_name(folder, restarts),
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}},  # its children inherit this
    }
    # A thread of its own for `status`, which no step keeps waiting.
    return ray.remote(concurrency_groups={"status": 1})(kind).options(**options)  # type: ignore[call-overload]


def drive(
    config: KrayConfig, model: str, folder: Path, checkpoint: Path | None, method: str, actor: type | None = None
) -> Any:
    """Runs Driver.<method> as an actor on this node; see `follow`. actor: a class in place of Driver.

    A training whose driver dies goes on with another one from its newest checkpoint, as often as run.max_restarts allows.
    """
    from kray.driver.actor import Driver
    from kray.driver.recovery import Restarts

    restarts = Restarts(config.run.max_restarts if method == "run" else 0, config.run.restart_window_s)
    for number in count():
        made = driver_actor(actor or Driver, folder, number)
        driver = made.remote(config, model, str(folder), str(checkpoint or ""), tags(), number)
        try:
            return follow(driver, method, folder)
        except InfrastructureError as loss:
            found = newest_checkpoint(folder)
            wait_s = restarts.lost(time.monotonic(), found != checkpoint)
            if wait_s is None:
                spent = f"; not started again after {restarts.spent} (run.max_restarts)" if method == "run" else ""
                raise KrayError(f"{loss}; resume goes on from the newest checkpoint in {folder}{spent}") from loss
            logger.info(f"{loss}; starting another{f' in {wait_s:.0f} s' if wait_s else ''}")
            time.sleep(wait_s)
            end_actors(f"kray-{folder.name}-")
            give_back(f"kray-{folder.name}-")
            checkpoint = newest_intact(newest_checkpoint(folder))
    return None


def end_actors(prefix: str) -> None:
    """Returns when no actor of this job has a name that begins so. They die with their owner, who has died; this hurries.

    Raises KrayError after a minute.
    """
    import ray

    deadline = time.monotonic() + GONE_WAIT_S
    while left := [name for name in ray.util.list_named_actors() if name.startswith(prefix)]:
        for name in left:
            with contextlib.suppress(ValueError):  # gone meanwhile
                ray.kill(ray.get_actor(name))
        if time.monotonic() > deadline:
            raise KrayError(
                f"actors of a driver that died are still there after {GONE_WAIT_S:.0f} s: {', '.join(left)}"
            )
        time.sleep(0.2)


def give_back(prefix: str) -> None:
    """Frees what dead drivers of this job reserved under names that begin so: Ray would keep it as long as the job lives."""
    import ray
    from ray.util.placement_group import remove_placement_group

    places = [place for place in ray.util.placement_group_table().values() if place["state"] != "REMOVED"]
    for name in [place["name"] for place in places if place["name"].startswith(prefix)]:
        with contextlib.suppress(ValueError):  # it is another job's
            remove_placement_group(ray.util.get_placement_group(name))


def follow(driver: Any, method: str, folder: Path) -> Any:
    """Call a driver actor's method, print its lines, return its result, end the actor.

    Raises InfrastructureError when it died.

    SIGINT and SIGTERM make it save and end. folder: of its results, for messages.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    news: queue.Queue = queue.Queue()

    def listen() -> None:
        try:
            for reference in getattr(driver, method).options(num_returns="streaming").remote():
                news.put(ray.get(reference))
            news.put(StopIteration())
        except BaseException as error:
            news.put(error)

    write_driver_address(folder)
    asked: list[str] = []
    handlers = {
        sign: signal.signal(sign, lambda number, _: asked.append(signal.Signals(number).name)) for sign in SIGNALS
    }
    threading.Thread(target=listen, daemon=True).start()
    told, result, deadline = 0, None, None
    try:
        while True:
            if len(asked) > told:
                told = len(asked)
                if told > 1:
                    raise KeyboardInterrupt
                logger.info(f"{asked[0]}: saving and ending; once more ends at once")
                driver.stop.remote(f"by {asked[0]}")
                deadline = time.monotonic() + STOP_WAIT_S
            if deadline and time.monotonic() > deadline:
                raise KrayError(f"the driver did not end within {STOP_WAIT_S:.0f} s of {asked[0]}")
            try:
                item = news.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(item, StopIteration):
                return result
            if isinstance(item, RayTaskError):
                raise item.cause if isinstance(item.cause, KrayError) else item
            if isinstance(item, RayActorError):
                last = [line.strip() for line in str(item).splitlines() if line.strip()][-1]
                kind = KrayError if asked else InfrastructureError  # a run that is to end is not started again
                raise kind(f"the driver died: {last}")
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, str):
                print(item, flush=True)
            else:
                result = item
    finally:
        for sign, handler in handlers.items():
            signal.signal(sign, handler)
        ray.kill(driver)
        remove_driver_address(folder)


SIGNALS = (signal.SIGINT, signal.SIGTERM)
