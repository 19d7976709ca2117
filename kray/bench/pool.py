"""Measures how well real engines are kept busy: kray's schedule against static sharding. Used by jobs/bench_pool.py.

Every round generates the same groups with new seeds on the same engines, once under each policy in turn, so that other work
on the machine affects all of them. The model (a small Qwen3 with random weights) writes nearly uniform tokens: a prompt's
number of stop tokens sets its mean length, and its rollouts' lengths are geometric. The schedule's estimate for a prompt is
the running mean of the earlier rounds, as in training.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import ray
import torch
from transformers import AutoModelForCausalLM

from kray.bench.engine_model import StaticSchedule
from kray.bench.learner import SHAPES, make_model
from kray.cluster.token import protect_token
from kray.config.schema import RolloutConfig
from kray.errors import KrayError
from kray.records import RolloutTask, Sampling
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.parts import largest_part, split_rollouts
from kray.rollout.pool import Pool
from kray.rollout.pool_state import Published
from kray.rollout.scheduler import Schedule
from kray.weight_sync.flat_weights import FlatWeights

logger = logging.getLogger(__name__)

# Seconds for the engines to start.
START_S = 300.0
# Most response tokens of a rollout: ten times the mean.
LONGEST = 384


class _Clocked:
    """Mixed into a schedule: measures the processor seconds of its calls."""

    driver_s = 0.0

    def submit(self, tasks: Any, priority: int = 0) -> None:
        self._clock("submit", tasks, priority)

    def dispatch(self, now: float) -> Any:
        return self._clock("dispatch", now)

    def done(self, task_id: int, engine: str, now: float) -> Any:
        return self._clock("done", task_id, engine, now)

    def progressed(self, task_id: int, engine: str, finished: int, now: float) -> None:
        self._clock("progressed", task_id, engine, finished, now)

    def _clock(self, name: str, *args: Any) -> Any:
        started = time.thread_time()
        answer = getattr(super(), name)(*args)
        self.driver_s += time.thread_time() - started
        return answer


class KraySchedule(_Clocked, Schedule):
    """kray's schedule."""


class TimedStaticSchedule(_Clocked, StaticSchedule):
    """Static sharding."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How tasks are made and dispatched.

    Attributes:
        make: Makes the schedule, given the number of attempts for a task.
        split: Largest part of a group that is one task.
        capacity: Rollouts that an engine holds, over max_sequences.
    """

    make: Callable[[int], KraySchedule | TimedStaticSchedule]
    split: int
    capacity: float


POLICIES = {
    "static sharding": Policy(TimedStaticSchedule, 128, 1.0),
    "kray, 1 batch in hand": Policy(KraySchedule, 32, 1.0),
    "kray, 2 batches in hand": Policy(KraySchedule, 32, 2.0),
}


@dataclass(slots=True)
class Groups:
    """The work of every round, of M prompts.

    Attributes:
        prompts: Tokens of each prompt.
        stops: (M,) int number of stop tokens.
        budgets: (M,) int rollouts.
        expected: (M,) running mean of response tokens.
    """

    prompts: list[tuple[int, ...]]
    stops: np.ndarray
    budgets: np.ndarray
    expected: np.ndarray

    @staticmethod
    def make(prompts: int, vocabulary: int, seed: int) -> Groups:
        """Draw budgets of 2 to 128 as in kray.bench.engine_model, and mean lengths, log-normal around 40 tokens."""
        rng = np.random.default_rng(seed)
        budgets = np.minimum(128, 2 * rng.random(prompts) ** (-1 / 1.1)).astype(int)
        stops = np.clip(vocabulary / (40 * rng.lognormal(0, 0.6, prompts)), 1, vocabulary - 1).astype(int)
        sizes = rng.integers(16, 96, prompts)
        texts = [tuple(rng.integers(0, vocabulary, size).tolist()) for size in sizes]
        return Groups(texts, stops, budgets, np.full(prompts, 40.0))

    def tasks(self, split: int, first_id: int, seed: int) -> Iterator[RolloutTask]:
        """Yield the tasks of a round: parts of at most `split` rollouts, numbered from `first_id`."""
        for i, (prompt, budget) in enumerate(zip(self.prompts, self.budgets.tolist(), strict=True)):
            sampling = Sampling(LONGEST, stop_token_ids=tuple(range(self.stops[i])))
            for first, part in split_rollouts(budget, split):
                expected = float(self.expected[i])
                yield RolloutTask(first_id, f"{i}", prompt, part, first, seed + 1000 * i, 0, sampling, 600.0, expected)
                first_id += 1


def measure_locally(shape: str, engines: int, max_sequences: int, prompts: int, rounds: int) -> dict[str, Any]:
    """Run `measure` on a Ray cluster of its own, with a model of this shape and random weights."""
    protect_token()
    ray.init(
        address="local",
        num_cpus=engines + 1,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=300 * 2**20,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            make_model(shape, folder)
            return measure(folder, shape, engines, max_sequences, prompts, rounds)
    finally:
        ray.shutdown()


def table(policies: dict[str, Any], rounds: int) -> str:
    """Format the medians of `measure` as a table."""
    heads = ("tasks", "makespan s", "rollouts/s", "busy share", "cpu s", "schedule us", "driver us")
    lines = [f"{f'median of {rounds} rounds':32}" + "".join(f"{head:>13}" for head in heads)]
    for name, row in policies.items():
        cells = [
            f"{row['tasks']:.0f}",
            f"{row['makespan_s']:.2f}",
            f"{row['rollouts_per_s']:.1f}",
            _shares(row["busy"]),
            " ".join(f"{cpu_s:.1f}" for cpu_s in row["cpu_s"]),
            f"{row['schedule_us']:.1f}",
            f"{row['driver_us']:.0f}",
        ]
        lines.append(f"{name:32}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def measure(
    folder: str,
    shape: str,
    engines: int = 2,
    max_sequences: int = 32,
    prompts: int = 64,
    rounds: int = 5,
) -> dict[str, dict[str, Any]]:
    """Measure every policy on real engines; needs a Ray cluster.

    Args:
        folder: The model.
        shape: Its shape, a key of kray.bench.learner.SHAPES.
        engines: Number of engines.
        max_sequences: Rollouts in one batch.
        prompts: Prompts of a round.
        rounds: Measured rounds, after one of warm-up.

    Returns:
        For each policy the rounds and the medians of makespan_s; rollouts_per_s; busy, share of each engine's time, sorted;
        cpu_s, processor seconds of each engine, sorted (other work on the machine stretches the makespan, hardly these);
        schedule_us, driver_us, process_us, processor time a task inside the schedule, of the thread that drives the pool,
        and of its whole process, Ray's threads included.

    Raises:
        KrayError: An engine died or did not start.
    """
    spec = EngineSpec(folder, "float32", 512, max_sequences, 1, 0, 0.25, 0.0, True, 0)
    pool = Pool(RolloutConfig(engines=engines, start_timeout_s=START_S), spec, "bench")
    groups = Groups.make(prompts, SHAPES[shape][-1], 0)
    return asyncio.run(_rounds(pool, _publication(folder), groups, rounds))


async def _rounds(pool: Pool, published: Published, groups: Groups, rounds: int) -> dict[str, dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in POLICIES}
    first_id = 0
    pool.start()
    try:
        await pool.publish(published)
        started = time.monotonic()
        while pool.serving < len(pool.engines):
            if time.monotonic() - started > START_S:
                raise KrayError(f"{pool.serving} of {len(pool.engines)} engines serve after {START_S:g} s")
            await asyncio.sleep(0.2)
        pids = [(await engine.actor.start.remote())["pid"] for engine in pool.engines]
        processes = [psutil.Process(pid) for pid in pids]
        for number in range(rounds + 1):
            sums = np.zeros(len(groups.prompts))
            for name, policy in POLICIES.items():
                split = policy.split
                if policy.make is KraySchedule:
                    split = largest_part(int(groups.budgets.sum()), len(pool.engines), split)
                tasks = list(groups.tasks(split, first_id, 10**6 * number))
                first_id += len(tasks)
                row = await _round(pool, processes, policy, tasks, sums)
                if number:
                    found[name].append(row)
                kind = f"round {number} of {rounds}" if number else "warm-up"
                logger.info(
                    f"{kind}: {name}: {row['makespan_s']:.2f} s, busy {_shares(row['busy'])}, cpu {sum(row['cpu_s']):.2f} s"
                )
            groups.expected = (groups.expected + sums / groups.budgets / len(POLICIES)) / 2
    finally:
        await pool.close()
    return {name: _median(rows) | {"rounds": rows} for name, rows in found.items()}


async def _round(
    pool: Pool, processes: list[psutil.Process], policy: Policy, tasks: list[RolloutTask], sums: np.ndarray
) -> dict[str, Any]:
    """Generate one round and add the response tokens of each prompt to `sums`."""
    schedule = policy.make(pool.state.rollout.max_attempts)
    for engine in pool.engines:
        schedule.engine_up(engine.name, round(policy.capacity * pool.state.spec.max_sequences))
    # The old schedule is empty between two rounds.
    pool.state.schedule = schedule
    before, spent, rollouts = _busy(pool), [_cpu_s(each) for each in processes], 0
    started, thread_s, process_s = time.monotonic(), time.thread_time(), time.process_time()
    with pool.open() as session:
        session.submit(tasks)
        while session.left:
            outcome = await session.next()
            if outcome.failure or pool.losses:
                raise KrayError(f"a round failed: {outcome.failure or 'an engine was lost'}")
            rollouts += len(outcome.rollouts)
            sums[int(outcome.task.prompt_id)] += sum(len(rollout.tokens) for rollout in outcome.rollouts)
    makespan_s = time.monotonic() - started
    thread_s, process_s = time.thread_time() - thread_s, time.process_time() - process_s
    busy = sorted((after - before[name]) / makespan_s for name, after in _busy(pool).items())
    return {
        "makespan_s": makespan_s,
        "rollouts": rollouts,
        "tasks": len(tasks),
        "rollouts_per_s": rollouts / makespan_s,
        "busy": busy,
        "cpu_s": sorted(_cpu_s(each) - earlier for each, earlier in zip(processes, spent, strict=True)),
        "schedule_us": 1e6 * schedule.driver_s / len(tasks),
        "driver_us": 1e6 * thread_s / len(tasks),
        "process_us": 1e6 * process_s / len(tasks),
    }


def _publication(folder: str) -> Published:
    """Return the model's own weights, with the log-probabilities that transformers computes of a probe."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    probe = np.random.default_rng(0).integers(2, model.config.vocab_size, 24)
    with torch.no_grad():
        logits = model(torch.tensor(probe)[None]).logits[0].double()
    logprobs = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(probe[1:])[:, None])[:, 0].numpy()
    state = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    weights = FlatWeights.pack(state)
    return Published(0, ray.put(weights), weights.checksum, tuple(probe.tolist()), logprobs)


def _busy(pool: Pool) -> dict[str, float]:
    """Return the seconds in which each engine was stepping."""
    return {engine.name: engine.busy_s for engine in pool.engines}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: np.median([row[key] for row in rows], axis=0).tolist() for key in rows[0]}


def _shares(busy: list[float]) -> str:
    return " ".join(f"{share:.0%}" for share in busy)
