"""An engine that sleeps while a learner rank uses its device: vLLM's sleep mode, behind the rules of sleep.py."""

from __future__ import annotations

from typing import Any

import ray

from kray.records import RolloutTask
from kray.rollout.engine import Engine, Stopwatch
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.sleep import SLEEP_LEVEL, EngineSleep, Memory
from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.proof import Proof


class SleepingEngine(Engine):
    """A rollout engine that can give its device away."""

    def __init__(self, spec: EngineSpec):
        """See `Engine`."""
        self._sleep_state = EngineSleep()
        super().__init__(spec)

    @ray.method(concurrency_group="commands")
    def sleep(self) -> None:
        """Discard weights, keys and values, so that another process can use the device; there must be no tasks.

        On CPU vLLM cannot sleep: its memory stays, and the engine refuses work all the same.
        """
        self._command(self._sleep)

    @ray.method(concurrency_group="commands")
    def wake_weights(self) -> None:
        """Take memory for weights, which holds none before `update`; that for keys and values comes with them."""
        self._command(self._wake_weights)

    def _sleep(self) -> None:
        self._sleep_state.sleep(len(self._tasks))
        self._vllm_sleep("sleep", level=SLEEP_LEVEL)
        # The weights of the model's folder are gone, so they cannot calibrate the engine any more.
        self._version = max(self._version, 0)

    def _wake_weights(self) -> None:
        self._sleep_state.wake()
        self._vllm_sleep("wake_up", tags=["weights"])

    def _add(self, tasks: list[RolloutTask]) -> None:
        self._sleep_state.require(Memory.AWAKE)
        super()._add(tasks)

    def _update(self, version: int, weights: FlatWeights, probe: list[int]) -> Proof:
        self._sleep_state.require(Memory.AWAKE, Memory.MAPPED)
        return super()._update(version, weights, probe)

    def _loaded(self, clock: Stopwatch) -> None:
        self._sleep_state.loaded()
        if self._sleep_state.lacks_cache:
            self._vllm_sleep("wake_up", tags=["kv_cache"])
            self._sleep_state.wake_cache()
            clock.done("wake")

    def _vllm_sleep(self, method: str, **arguments: Any) -> None:
        # vLLM's worker for CPU ignores these calls.
        if self.spec.gpus:
            getattr(self._engine, method)(**arguments)


# The actor class, with the threads of `EngineActor`.
SleepingEngineActor: Any = ray.remote(concurrency_groups={"commands": 1})(SleepingEngine)  # type: ignore[call-overload]
