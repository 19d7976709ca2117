"""The three services of jobs/serve.py: from command-line options to a running application."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kray.cluster.session import run_as_task
from kray.driver.run_lock import lock_folder
from kray.errors import ConfigError
from kray.rewards import VERIFIERS, check_verifier
from kray.serve.access import Access, cache_folder, key_digest
from kray.serve.deploy import make_application, serve_until_signal
from kray.serve.folders import exported, find_checkpoint, policy_spec
from kray.serve.gate import Limits
from kray.serve.planner_api import Planner
from kray.serve.policy_api import Policy, PolicySpec
from kray.serve.rewards_api import Rewards, ScoringSpec
from kray.train.start_model import find_model

logger = logging.getLogger(__name__)

# Seconds for the export of a checkpoint.
EXPORT_TIMEOUT_S = 1800.0


def access_of(arguments: Any) -> Access:
    """Return how a service is reached from the options of its command line.

    Raises:
        ConfigError: An option is not valid.
    """
    if not (0 < arguments.request_mib <= 1024):
        raise ConfigError(f"--request-mib must be above 0 and at most 1024, not {arguments.request_mib:g}")
    return Access(
        host=arguments.host,
        port=arguments.port,
        prefix=arguments.prefix,
        with_key=not arguments.no_key,
        limits=Limits(int(arguments.request_mib * 2**20), arguments.concurrency),
        replicas=(arguments.min_replicas, arguments.max_replicas),
        drain_s=arguments.drain_s,
        start_s=arguments.start_s,
    )


def serve_policy(arguments: Any) -> int:
    """Run the policy's service; return the exit code.

    Args:
        arguments: Options of `jobs/serve.py policy`.

    Raises:
        ConfigError: An option or the model is not valid.
        KrayError: The service failed.
    """
    access = access_of(arguments)
    _check_minima(arguments, sequences=1, cpus=0, gpus=0)
    if arguments.gpus > 1 or not 0 < arguments.kv_cache_gib < 2**20:
        raise ConfigError("--gpus must be 0 or 1, and --kv-cache-gib above 0")
    path = Path(arguments.folder).expanduser().absolute()
    checkpoint = find_checkpoint(path, arguments.step)
    folder, config = path, None
    if checkpoint is not None:
        cache = Path(arguments.cache).expanduser().absolute() if arguments.cache else cache_folder() / "exports"
        folder, config = exported(checkpoint, cache, arguments.overrides)
        arguments.name = arguments.name or checkpoint.parent.parent.name
    elif arguments.overrides:
        raise ConfigError(
            f"{arguments.overrides[0]}: overrides go with a run or a checkpoint; {path} is a model's folder"
        )
    if folder.is_dir():
        # Raises on invalid options before anything is started.
        policy_spec(folder, arguments)
    digest = key_digest(access)

    def build() -> Any:
        if not folder.is_dir():
            from kray.train.export import export_checkpoint

            assert checkpoint is not None
            assert config is not None
            logger.info(f"export     {checkpoint} to {folder}")
            with lock_folder(folder, "an export", beside=True):
                run_as_task(EXPORT_TIMEOUT_S, export_checkpoint, checkpoint, find_model(config), config.model, folder)
        spec = policy_spec(folder, arguments)
        if config is not None:
            # Chats are rendered as in training.
            spec = replace(spec, chat_template_kwargs=config.prompts.train.chat_template_kwargs)
        return policy_application(spec, access, digest)

    name = arguments.name or folder.name
    cpus = math.ceil(max(1, arguments.cpus) * max(1, access.replicas[0]))
    return _serve("kray-policy", build, access, cpus, f"{access.address}/v1   model {name}")


def policy_application(spec: PolicySpec, access: Access, digest: str) -> Any:
    """Return the Serve application of the policy; `digest` is that of the key, "" for none."""
    actor = {"num_cpus": spec.cpus, "num_gpus": spec.gpus, "runtime_env": {"env_vars": spec.environment()}}
    return make_application(Policy, "policy", access, actor, spec, access.limits, digest)


def serve_planner(arguments: Any) -> int:
    """Run the planner's service; return the exit code.

    Args:
        arguments: Options of `jobs/serve.py planner`.

    Raises:
        ConfigError: An option is not valid.
        KrayError: The service failed.
    """
    access = access_of(arguments)
    _check_minima(arguments, max_runs=1, max_prompts=1)
    folder = Path(arguments.state).expanduser().absolute() if arguments.state else None
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--state: cannot create {folder}: {error.strerror}") from error
    digest = key_digest(access)
    settings = (arguments.max_runs, arguments.max_prompts, str(folder or ""))

    def build(*ticket: Any) -> Any:
        return planner_application(access, digest, *settings, *ticket)

    if folder is None:
        return _serve("kray-planner", build, access, 1, access.address)
    with lock_folder(folder, "the planner's service") as lock:
        return _serve("kray-planner", lambda: build(lock.ticket), access, 1, access.address, lock.check)


def planner_application(access: Access, digest: str, *settings: Any) -> Any:
    """Return the Serve application of the planner.

    Args:
        access: How the service is reached.
        digest: Digest of the key, "" for none.
        *settings: max_runs, max_prompts, folder and ticket of `Planner`.
    """
    actor = {"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    return make_application(Planner, "planner", access, actor, access.limits, digest, *settings)


def serve_rewards(arguments: Any) -> int:
    """Run the rewards' service; return the exit code.

    Args:
        arguments: Options of `jobs/serve.py rewards`.

    Raises:
        ConfigError: An option is not valid.
        KrayError: The service failed.
    """
    access = access_of(arguments)
    _check_minima(arguments, workers=1)
    if not (arguments.timeout_s > 0 and arguments.memory_gib >= 0):
        raise ConfigError("--timeout-s must be above 0 and --memory-gib at least 0")
    for name in arguments.verifier:
        try:
            check_verifier(name)
        except ValueError as error:
            raise ConfigError(f"--verifier: {error}") from error
    spec = ScoringSpec(
        verifiers=(*VERIFIERS, *arguments.verifier),
        workers=arguments.workers,
        timeout_s=arguments.timeout_s,
        memory_gib=arguments.memory_gib,
        isolation=arguments.isolation,
    )
    digest = key_digest(access)
    cpus = spec.workers * max(1, access.replicas[0])
    return _serve("kray-rewards", lambda: rewards_application(spec, access, digest), access, cpus, access.address)


def rewards_application(spec: ScoringSpec, access: Access, digest: str) -> Any:
    """Return the Serve application of the rewards; `digest` is that of the key, "" for none."""
    actor = {"num_cpus": spec.workers, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    return make_application(Rewards, "rewards", access, actor, spec, access.limits, digest)


def _serve(
    name: str, build: Any, access: Access, cpus: int, address: str, check: Callable[[], None] = lambda: None
) -> int:
    def ready() -> None:
        logger.info(f"serving    {address}")
        logger.info("stop       Ctrl-C; a second Ctrl-C stops at once")

    return serve_until_signal(name, build, access, cpus, ready, check)


def _check_minima(arguments: Any, **least: int) -> None:
    for name, bound in least.items():
        if getattr(arguments, name) < bound:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {bound}, not {getattr(arguments, name)}")
