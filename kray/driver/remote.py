"""The job's side of the driver actor: creates it, follows its output, stops it, and replaces it when it is lost."""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from kray.config import KrayConfig
from kray.config.actor_options import variables_of
from kray.driver.prepare import LoadedPrompts
from kray.driver.provenance import tags
from kray.errors import InfrastructureError, KrayError
from kray.monitor.client import NAMESPACE, driver_name, remove_driver_address, write_driver_address
from kray.train.checkpoints import newest_checkpoint, newest_intact

logger = logging.getLogger(__name__)

# Seconds for the actors of a driver that died to end.
ACTORS_END_S = 60.0
# Seconds for a driver to give up the step under way and to write a checkpoint.
STOP_S = 600.0


def share_prompts(prompts: LoadedPrompts) -> Any:
    """Put prompts into Ray's object store, where every driver of the run reads them; the job can drop its own."""
    import ray

    return ray.put(prompts)


def driver_actor(kind: type, folder: Path, restarts: int = 0, env: Mapping[str, str] | None = None) -> Any:
    """Return the actor class of a driver; `.remote(...)` creates the actor.

    It runs on this node, which has the run folder, and asks for no CPU, since it mostly waits. Other jobs of the cluster find
    it by its name.

    Args:
        kind: Driver or a subclass.
        folder: The run folder.
        restarts: Drivers of this run that have died before.
        env: Environment variables of the driver, in place of kray's own.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options = {
        "name": driver_name(folder, restarts),
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
        # The driver's child processes inherit these.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"} | dict(env or {})},
    }
    # `status` has a thread of its own, so that no step delays it.
    return ray.remote(concurrency_groups={"status": 1})(kind).options(**options)  # type: ignore[call-overload]


def run_on_cluster(
    config: KrayConfig,
    model: str,
    folder: Path,
    checkpoint: Path | None,
    method: str,
    actor: type | None = None,
    prompts: Any = None,
) -> Any:
    """Run a method of a driver to its end; see `follow_driver`.

    A training whose driver dies goes on with another one from its newest checkpoint, as often as run.max_restarts allows.

    Args:
        config: The configuration of the run.
        model: A Hugging Face folder or hub id.
        folder: The run folder.
        checkpoint: To go on from, None for a new run.
        method: "run" or "judge".
        actor: A class in place of Driver.
        prompts: As `share_prompts` returns them; None: the driver reads them from their sources.

    Returns:
        What the method returns: a Summary or an Evaluation.

    Raises:
        KrayError: The run failed, or its driver died once too often.
    """
    from kray.driver.actor import Driver
    from kray.driver.recovery import Restarts

    restarts = Restarts(config.run.max_restarts if method == "run" else 0, config.run.restart_window_s)
    for number in count():
        created = driver_actor(actor or Driver, folder, number, variables_of(config.run.env))
        driver = created.remote(config, model, str(folder), str(checkpoint or ""), tags(), number, prompts)
        try:
            return follow_driver(driver, method, folder)
        except InfrastructureError as loss:
            found = newest_checkpoint(folder)
            wait_s = restarts.lost(time.monotonic(), found != checkpoint)
            if wait_s is None:
                spent = f"; not started again after {restarts.spent} (run.max_restarts)" if method == "run" else ""
                raise KrayError(f"{loss}; resume goes on from the newest checkpoint in {folder}{spent}") from loss
            logger.info(f"{loss}; starting another{f' in {wait_s:.0f} s' if wait_s else ''}")
            time.sleep(wait_s)
            kill_actors(f"kray-{folder.name}-")
            free_placement_groups(f"kray-{folder.name}-")
            checkpoint = newest_intact(newest_checkpoint(folder))
    return None


def kill_actors(prefix: str) -> None:
    """Kill the actors of this job whose names begin with `prefix`, and wait until they are gone.

    Ray ends them after their owner has died; this is faster.

    Raises:
        KrayError: One is still there after ACTORS_END_S.
    """
    import ray

    deadline = time.monotonic() + ACTORS_END_S
    while left := [name for name in ray.util.list_named_actors() if name.startswith(prefix)]:
        for name in left:
            # An actor may end at any time.
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(name))
        if time.monotonic() > deadline:
            raise KrayError(
                f"actors of a driver that died are still there after {ACTORS_END_S:.0f} s: {', '.join(left)}"
            )
        time.sleep(0.2)


def free_placement_groups(prefix: str) -> None:
    """Remove the placement groups of this job's dead drivers whose names begin with `prefix`; Ray keeps them for the job."""
    import ray
    from ray.util.placement_group import remove_placement_group

    groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    for name in [group["name"] for group in groups if group["name"].startswith(prefix)]:
        # Ray raises this for groups of other jobs.
        with contextlib.suppress(ValueError):
            remove_placement_group(ray.util.get_placement_group(name))


def follow_driver(driver: Any, method: str, folder: Path) -> Any:
    """Call a method of a driver, print its lines, and kill the actor when it has ended.

    The first SIGINT or SIGTERM makes the run save and end, the second one interrupts.

    Args:
        driver: The actor.
        method: A method that yields lines and then its result.
        folder: The run folder, in which the driver's address is written for as long as it runs.

    Returns:
        The result.

    Raises:
        InfrastructureError: The driver died.
        KrayError: The method raised it, or did not end within STOP_S of a signal.
    """
    import ray

    write_driver_address(folder)
    try:
        with _signal_names() as signals:
            return _print_lines(driver, _start(driver, method), signals)
    finally:
        ray.kill(driver)
        remove_driver_address(folder)


def _start(driver: Any, method: str) -> queue.Queue[Any]:
    """Call the method; return a queue of what it yields, then of StopIteration or what it raises."""
    import ray

    items: queue.Queue[Any] = queue.Queue()

    def collect() -> None:
        try:
            for reference in getattr(driver, method).options(num_returns="streaming").remote():
                items.put(ray.get(reference))
            items.put(StopIteration())
        except BaseException as error:
            items.put(error)

    threading.Thread(target=collect, daemon=True).start()
    return items


@contextlib.contextmanager
def _signal_names() -> Iterator[list[str]]:
    """Catch SIGINT and SIGTERM; the list grows by the name of each that arrives."""
    names: list[str] = []

    def note(number: int, _: object) -> None:
        names.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield names
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_lines(driver: Any, items: queue.Queue[Any], signals: list[str]) -> Any:
    """Print the lines among the items and return the result; pass the first signal on to the driver."""
    handled, result, deadline = 0, None, None
    while True:
        if len(signals) > handled:
            handled = len(signals)
            if handled > 1:
                raise KeyboardInterrupt
            logger.info(f"{signals[0]}: saving and ending; once more ends at once")
            driver.stop.remote(f"by {signals[0]}")
            deadline = time.monotonic() + STOP_S
        if deadline and time.monotonic() > deadline:
            raise KrayError(f"the driver did not end within {STOP_S:.0f} s of {signals[0]}")
        try:
            item = items.get(timeout=0.2)
        except queue.Empty:
            continue
        if isinstance(item, StopIteration):
            return result
        if isinstance(item, BaseException):
            raise _driver_error(item, stopping=bool(signals))
        if isinstance(item, str):
            print(item, flush=True)
        else:
            result = item


def _driver_error(error: BaseException, stopping: bool) -> BaseException:
    """Return what to raise for an error of the actor's method."""
    from ray.exceptions import RayActorError, RayTaskError

    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, KrayError) else error
    if isinstance(error, RayActorError):
        last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        # A run that is to end is not started again.
        return (KrayError if stopping else InfrastructureError)(f"the driver died: {last}")
    return error
