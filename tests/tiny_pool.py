"""Pools of tiny engines, a learner in plain transformers, tasks, and their outcomes."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np

from kray.config.schema import RolloutConfig
from kray.records import RolloutTask, Sampling

PROBE = tuple(int(token) for token in np.random.default_rng(0).integers(2, 48, 24))


class PlainLearner:
    """A learner in plain transformers that publishes its weights."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def logprobs(self, tokens) -> np.ndarray:
        import torch

        with torch.no_grad():
            logits = self.model(torch.tensor([list(tokens)])).logits[0].double()
        return logits.log_softmax(-1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()

    def shake(self, amount: float = 0.05) -> None:
        import torch

        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(amount * torch.randn_like(parameter))

    def publication(self, version: int, probe: tuple[int, ...] = PROBE):
        import ray

        from kray.rollout.pool_state import Published
        from kray.weight_sync.flat_weights import FlatWeights

        state = [(name, parameter.detach()) for name, parameter in self.model.named_parameters()]
        weights = FlatWeights.pack(state)
        return Published(version, ray.put(weights), weights.checksum, probe, self.logprobs(probe))


def make_pool(folder, engines: int, label: str, reads_text: bool = False, parts: int = 1, **changes):
    from kray.rollout.engine_spec import EngineSpec
    from kray.rollout.pool import Pool

    rollout = RolloutConfig(engines=engines, start_timeout_s=180, sync_timeout_s=60, **changes)
    spec = EngineSpec(
        model_path=str(folder),
        dtype="float32",
        context_tokens=128,
        max_sequences=16,
        cpus=1,
        gpus=0,
        kv_cache_gib=0.1,
        gpu_memory_share=0.0,
        eager=True,
        seed=0,
        reads_text=reads_text,
        tensor_parallel=parts,
        # Some of the policy's layers are in two buckets.
        bucket_bytes=24 * 2**10,
    )
    return Pool(rollout, spec, label)


def tasks(count: int, rollouts: int = 4, first_id: int = 0, max_tokens: int = 12, timeout_s: float = 120.0):
    rng = np.random.default_rng(1)
    for i in range(count):
        prompt = tuple(int(token) for token in rng.integers(2, 48, 8 + i % 5))
        sampling = Sampling(max_tokens=max_tokens, stop_token_ids=(1,))
        yield RolloutTask(first_id + i, f"p{i}", prompt, rollouts, 0, 1000 * i, 0, sampling, timeout_s, max_tokens)


async def outcomes(pool, orders):
    """Yield each task's outcome when it ends."""
    with pool.open() as session:
        session.submit(list(orders))
        while session.left:
            yield await session.next()


async def gather(pool, orders) -> dict[str, list]:
    return {outcome.task.prompt_id: outcome.rollouts async for outcome in outcomes(pool, list(orders))}


def same(one: dict[str, list], other: dict[str, list]) -> bool:
    """Return whether the same tokens were sampled."""
    return one.keys() == other.keys() and all(
        all(np.array_equal(a.tokens, b.tokens) for a, b in zip(one[key], other[key], strict=True)) for key in one
    )


class RunningPool:
    """A pool whose event loop runs between tests, so that they share one start of its engines.

    A test publishes the weights that it needs first, compares `losses` and `retried` with their values at its beginning, and
    leaves all engines serving.
    """

    def __init__(self, folder, engines: int, label: str, parts: int = 1, **changes):
        self.learner = PlainLearner(folder)
        self._loop, self._version, self._task_id = asyncio.new_event_loop(), -1, 0
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.pool = self.run(self._start(folder, engines, label, parts=parts, **changes))

    async def _start(self, folder, engines: int, label: str, **changes):
        pool = make_pool(folder, engines, label, **changes)
        pool.start()
        return pool

    def run(self, coroutine, limit_s: float = 400.0):
        """Run a coroutine on the pool's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(limit_s)

    def publication(self):
        """Return the learner's present weights as the next version."""
        self._version += 1
        return self.learner.publication(self._version)

    def fresh(self, orders, **changes) -> list[RolloutTask]:
        """Return the same tasks under ids that are new to this pool."""
        found = [replace(task, id=self._task_id + i, **changes) for i, task in enumerate(orders)]
        self._task_id += len(found)
        return found

    async def all_serve(self) -> None:
        await self.pool.wait_until_all_serve()

    def close(self) -> None:
        self.run(self.pool.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
