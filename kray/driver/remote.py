"""The job's side of the driver actor: creates it, follows its output, stops it, and replaces it when it is lost."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from kray.cluster.folder_lock import FolderLock
from kray.cluster.lost_ray import end_lost_ray
from kray.cluster.process_identity import age_s
from kray.cluster.session import connected
from kray.config import KrayConfig
from kray.config.actor_options import variables_of
from kray.driver.output import say
from kray.driver.prepare import LoadedPrompts
from kray.driver.provenance import tags
from kray.driver.run_lock import TRAINING, lock_folder, note_ray
from kray.driver.stop_signals import caught
from kray.driver.watch import Watch
from kray.errors import InfrastructureError, KrayError
from kray.monitor.client import NAMESPACE, driver_name, remove_driver_address, write_driver_address
from kray.train.checkpoints import newest_checkpoint, newest_intact

logger = logging.getLogger(__name__)

# Seconds for the actors of a driver that died to end.
ACTORS_END_S = 60.0
# Seconds for a driver to give up the step under way and to write a checkpoint.
STOP_S = 600.0
# Seconds for a driver to save after its GCS has gone; after 60 Ray ends its processes.
SAVE_S = 35.0


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
    lock: FolderLock | None = None,
) -> Any:
    """Run a method of a driver to its end; see `follow_driver`.

    A training whose driver dies goes on with another one from its newest checkpoint, as often as run.max_restarts allows. It
    holds the lock of its folder.

    Args:
        config: The configuration of the run.
        model: A Hugging Face folder or hub id.
        folder: The run folder.
        checkpoint: To go on from, None for a new run.
        method: "run" or "judge".
        actor: A class in place of Driver.
        prompts: As `share_prompts` returns them; None: the driver reads them from their sources.
        lock: That of the folder, where the job holds it already.

    Returns:
        What the method returns: a Summary or an Evaluation.

    Raises:
        ConfigError: Another job trains in the folder.
        KrayError: The run failed, or its driver died once too often.
    """
    from kray.driver.actor import Driver
    from kray.driver.recovery import Restarts

    if method == "run" and lock is None:
        with lock_folder(folder, TRAINING) as lock:
            return run_on_cluster(config, model, folder, checkpoint, method, actor, prompts, lock)
    ticket = lock.ticket if lock else None
    restarts = Restarts(config.run.max_restarts if method == "run" else 0, config.run.restart_window_s)
    for number in count():
        created = driver_actor(actor or Driver, folder, number, variables_of(config.run.env))
        driver = created.remote(config, model, str(folder), str(checkpoint or ""), tags(), number, prompts, ticket)
        try:
            return follow_driver(driver, method, folder, lock, config.run.stop_after_s)
        except InfrastructureError as loss:
            found = newest_checkpoint(folder)
            wait_s = restarts.lost(time.monotonic(), found != checkpoint)
            if wait_s is None:
                spent = f"; not started again after {restarts.spent} (run.max_restarts)" if method == "run" else ""
                raise KrayError(f"{loss}; resume goes on from the newest checkpoint in {folder}{spent}") from loss
            logger.info(f"{loss}; starting another{f' in {wait_s:.0f} s' if wait_s else ''}")
            time.sleep(wait_s)
            clear_after_loss(folder, lock)
            checkpoint = newest_intact(newest_checkpoint(folder))
    return None


def clear_after_loss(folder: Path, lock: FolderLock | None) -> None:
    """End what a driver that was lost has left in Ray.

    Raises:
        LostLock: The folder is another job's now.
        KrayError: An actor cannot be ended.
    """
    if lock is not None:
        lock.check()
    kill_actors(f"kray-{folder.name}-")
    free_placement_groups(f"kray-{folder.name}-")


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


def follow_driver(
    driver: Any, method: str, folder: Path, lock: FolderLock | None = None, stop_after_s: float = 0.0
) -> Any:
    """Call a method of a driver, print its lines, and kill the actor when it has ended.

    The first SIGINT, SIGTERM or SIGHUP makes the run save and end, the second one interrupts.

    Args:
        driver: The actor.
        method: A method that yields lines and then its result.
        folder: The run folder, in which the driver's address is written for as long as it runs.
        lock: That of the folder.
        stop_after_s: Seconds after the start of this process after which the run saves and ends; 0: never.

    Returns:
        The result.

    Raises:
        InfrastructureError: The driver died.
        KrayError: The method raised it, did not end within STOP_S of a signal, or Ray or the lock was lost.
    """
    import ray

    write_driver_address(folder)
    if lock is not None:
        note_ray(lock)
    watch = Watch(driver)
    signals: list[str] = []
    try:
        with caught(signals.append):
            return _Followed(driver, watch, lock, signals, stop_after_s).result(_start(driver, method))
    finally:
        watch.close()
        if watch.lost:
            end_lost_ray(watch.driver_process)
        elif connected():
            ray.kill(driver)
        if lock is None or not lock.lost:
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


class _Followed:
    """A driver whose lines are printed; it is asked to stop once, by a signal or after `stop_after_s` seconds."""

    def __init__(
        self, driver: Any, watch: Watch, lock: FolderLock | None, signals: list[str], stop_after_s: float
    ) -> None:
        self.driver, self.watch, self.lock, self.signals = driver, watch, lock, signals
        self.stop_after_s = stop_after_s
        self._handled, self._stopping, self._deadline = 0, "", float("inf")
        # When a driver whose Ray is lost is given up.
        self._save_until: float | None = None

    def result(self, items: queue.Queue[Any]) -> Any:
        """Print the lines among the items and return the result."""
        result = None
        while True:
            self._check()
            try:
                item = items.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(item, StopIteration):
                if self.watch.lost:
                    raise _lost_ray(self.watch.lost)
                return result
            if isinstance(item, BaseException):
                if why := self.watch.lost_now():
                    raise _lost_ray(why)
                raise _driver_error(item, stopping=bool(self._stopping))
            if isinstance(item, str):
                say(item)
            else:
                result = item

    def _check(self) -> None:
        """Pass a request to stop on to the driver; raise an error where waiting is in vain."""
        self.watch.report()
        if self.watch.lost:
            self._save_without_ray(self.watch.lost)
        if self.lock is not None and self.lock.lost:
            self.lock.check()
        if len(self.signals) > self._handled:
            self._handled += 1
            if self._handled > 1:
                raise KeyboardInterrupt
            if not self._stopping:
                self._stop(f"by {self.signals[0]}", f"{self.signals[0]}: saving and ending; once more ends at once")
        if self.stop_after_s and not self._stopping and age_s() > self.stop_after_s:
            after = f"after run.stop_after_s, {self.stop_after_s:g} s"
            self._stop(after, f"{after}: saving and ending")
        if time.monotonic() > self._deadline:
            raise KrayError(f"the driver did not end within {STOP_S:.0f} s after it was stopped {self._stopping}")

    def _stop(self, reason: str, line: str) -> None:
        logger.info(line)
        self._stopping, self._deadline = reason, time.monotonic() + STOP_S
        self.driver.stop.remote(reason)

    def _save_without_ray(self, why: str) -> None:
        """Have the driver save in the time that is left to it where only the GCS has gone; then raise an error."""
        now = time.monotonic()
        if self._save_until is None:
            self._save_until = now + (SAVE_S if self.watch.can_save else 0.0)
            if self.watch.can_save and not self._stopping:
                self._stop("because Ray was lost", f"Ray was lost: {why}; saving and ending")
        if now >= self._save_until:
            raise _lost_ray(why)


def _lost_ray(why: str) -> KrayError:
    return KrayError(f"Ray was lost, and the driver of this run with it: {why}")


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
