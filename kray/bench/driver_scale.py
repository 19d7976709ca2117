"""Measures the driver's own share of a step at the size of a large cluster, with engines that take no time.

Planner, beliefs, sampler, pool, schedule, collector and scorer are those of a run. Engines are simulated: they report at
once, with rollouts of the requested lengths, in reports like those of real engines. So the figures show how fast the driver
could go if generation took no time; where that is slower than the engines, the driver is the bottleneck. Ray's calls are
not included (jobs/bench_pool.py --real has them), unpickling reports is.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from kray.bench.engine_model import schedule_overhead_s
from kray.config import KrayConfig
from kray.driver.step_metrics import step_record
from kray.driver.tables import sample_rows
from kray.planner import KnapsackPlanner
from kray.planner.metrics import status, step_metrics
from kray.prompts import PromptSampler
from kray.records import EncodedPrompt, Prompt, Rollout, RolloutTask, Sampling, derive_seed
from kray.rewards.scorer import Scorer
from kray.rollout.collected import CollectedStep
from kray.rollout.collector import Collector, Draw
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.engine_supervisor import EngineSupervisor
from kray.rollout.outcome import EngineReport
from kray.rollout.pool import Pool
from kray.rollout.scheduler import Schedule
from kray.train.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)

# Rollouts in one batch of an engine.
SEQUENCES = 256
# Tokens of a prompt.
PROMPT_TOKENS = 200
# Tokens of the tokenizer: enough for tokens of several letters.
VOCABULARY = 4096
# Policy version of all rollouts.
POLICY = 0


def memory_gib() -> float:
    """Return the resident memory of this process, GiB."""
    return psutil.Process().memory_info().rss / 2**30


class Stopwatch:
    """Processor seconds of this thread by part; time in a nested part counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the context as a part."""
        started = time.thread_time()
        self._inner.append(0.0)
        yield
        passed = time.thread_time() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + passed - self._inner.pop()
        self._inner[-1] += passed

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Measure a method's calls as this part."""
        inner = getattr(owner, method)

        def timed(*args: Any, **known: Any) -> Any:
            with self.part(name):
                return inner(*args, **known)

        setattr(owner, method, timed)


def beliefs(prompts: int, folder: Path) -> tuple[dict[str, float], KnapsackPlanner]:
    """Make a planner that has visited so many prompts, and measure its memory, refit and checkpoint."""
    rng, clock, before = np.random.default_rng(0), Stopwatch(), memory_gib()
    ids = [f"prompt-{i}" for i in range(prompts)]
    planner = KnapsackPlanner("static", 8 * prompts)
    held = planner.beliefs
    rows = held.rows(ids)
    held._last_trials[rows] = rng.integers(2, 40, prompts)
    held._last_successes[rows] = rng.binomial(held._last_trials[rows].astype(int), rng.beta(0.4, 0.6, prompts))
    held._successes[rows] = held._last_successes[rows]
    held._failures[rows] = held._last_trials[rows] - held._last_successes[rows]
    held._stale = True
    grown = memory_gib() - before
    with clock.part("refit_s"):
        held.refit_prior()
    # The start of an epoch.
    with clock.part("sampler_s"):
        PromptSampler(ids, 1024, 0).take(0)
    lengths = dict.fromkeys(ids, 700.0)
    # The part of a checkpoint that blocks the driver's loop.
    with clock.part("state_s"):
        state = {"step": 1, "planner": planner.to_dict(), "lengths": dict(lengths)}
    store, started = CheckpointStore(folder, 1), time.perf_counter()
    (store.begin(1) / "learner").mkdir(parents=True, exist_ok=True)
    final = store.commit(1, state)
    commit_s = time.perf_counter() - started
    size = sum(file.stat().st_size for file in final.rglob("*") if file.is_file())
    file = max((file for file in final.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    started = time.perf_counter()
    KnapsackPlanner("static", 8 * prompts).load_dict(json.loads(file.read_text())["planner"])
    found = {
        "prompts": prompts,
        "memory_gib": grown,
        **clock.seconds,
        "commit_s": commit_s,
        "load_s": time.perf_counter() - started,
        "checkpoint_mib": size / 2**20,
    }
    logger.info(
        f"{prompts:,} prompts: beliefs {grown:.2f} GiB, refit {found['refit_s']:.2f} s, sampler {found['sampler_s']:.2f} s "
        f"(once an epoch), checkpoint {found['checkpoint_mib']:.0f} MiB: {found['state_s']:.2f} s of the driver, then "
        f"{commit_s:.2f} s in the background; to load it {found['load_s']:.2f} s"
    )
    return found, planner


class _Remote:
    """A method of a simulated engine, called like those of a Ray actor."""

    def __init__(self, call: Callable[..., None]):
        self.remote = call


class SimulatedEngine:
    """Stands in for an engine's actor: finishes its tasks at the event loop's next turn, REPORT tasks a report."""

    REPORT = 4

    def __init__(self, supervisor: EngineSupervisor, clock: Stopwatch, tokens: int):
        self.supervisor, self.clock = supervisor, clock
        self.submit, self.cancel, self.wake = _Remote(self._submit), _Remote(lambda ids: None), _Remote(lambda: None)
        self.rng = np.random.default_rng(derive_seed(supervisor.engine.name) % 2**32)
        self.tokens = tokens

    def _submit(self, tasks: list[RolloutTask]) -> None:
        for start in range(0, len(tasks), self.REPORT):
            with self.clock.part("simulation"):
                sent = pickle.dumps(self._report(tasks[start : start + self.REPORT]))
            asyncio.get_running_loop().call_soon(self._deliver, sent)

    def _deliver(self, sent: bytes) -> None:
        with self.clock.part("unpickle"):
            report = pickle.loads(sent)
        # To the schedule and the session.
        with self.clock.part("report"):
            self.supervisor.process_report(report)

    def _report(self, tasks: list[RolloutTask]) -> EngineReport:
        report = EngineReport()
        for task in tasks:
            rollouts = []
            for i in range(task.rollouts):
                size = max(1, min(4 * self.tokens, int(self.tokens * self.rng.lognormal(-0.125, 0.5))))
                made = self.rng.integers(0, VOCABULARY, size, dtype=np.int32)
                logprobs = np.full(size, -1.0, np.float32)
                versions = ((task.policy_version, 0, size),)
                rollouts.append(Rollout(task.prompt_id, task.first_index + i, made, logprobs, "stop", versions))
            report.finished.append((task.id, rollouts))
        return report


def make_tokenizer() -> Any:
    """Make a byte-level BPE tokenizer with VOCABULARY tokens of several letters, which decodes at a typical speed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rng = np.random.default_rng(0)
    words: set[str] = set()
    while len(words) < VOCABULARY - len(letters):
        words.add("Ġ" * int(rng.integers(2)) + "".join(rng.choice(list("etaoinshrdlucm"), int(rng.integers(2, 7)))))
    vocabulary = {token: i for i, token in enumerate([*letters, *sorted(words)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_pool(config: KrayConfig, clock: Stopwatch, tokens: int) -> Pool:
    """Make a real pool whose engines count as serving but have simulated actors."""
    spec = EngineSpec("", "bfloat16", 4096, SEQUENCES, 1, 0, 0.0, 0.0, True, 0)
    pool = Pool(config.rollout, spec, "scale")
    for supervisor in pool.supervisors:
        engine = supervisor.engine
        engine.needed = True
        engine.health.mark_needed()
        engine.health.mark_started()
        engine.health.mark_proved(POLICY)
        engine.actor = SimulatedEngine(supervisor, clock, tokens)
        pool.schedule.engine_up(engine.name, 2 * SEQUENCES)
    return pool


def step(
    planner: KnapsackPlanner, engines: int, prompts: int, rollouts: int, tokens: int, first: int, workers: int
) -> tuple[dict[str, Any], CollectedStep]:
    """Collect one step with simulated engines and measure the driver.

    Args:
        planner: A planner that has visited the prompts.
        engines: Number of engines.
        prompts: Prompts of the step.
        rollouts: Rollouts a prompt, on average.
        tokens: Response tokens, on average.
        first: Number of the first prompt.
        workers: Scoring processes.

    Returns:
        The figures, and the collected groups.
    """
    clock = Stopwatch()
    config = KrayConfig()
    config.rollout.engines, config.plan.budget = engines, prompts * rollouts
    planner.settings = type(planner.settings)("static", prompts * rollouts, 2, 128, candidates=1.0)
    ids = [f"prompt-{i}" for i in range(first, first + prompts)]
    words = tuple(range(PROMPT_TOKENS))
    made = [Prompt(i, "42", "exact", "scale", text="What is six times seven?") for i in ids]
    chosen = [EncodedPrompt(prompt, words) for prompt in made]

    # Not the coroutine's result: asyncio.run computes its repr, which takes longer than the step.
    kept: list[Any] = []

    async def run() -> None:
        pool = make_pool(config, clock, tokens)
        scorer = Scorer("exact", {}, workers, 60.0)
        collector = Collector(pool, scorer, make_tokenizer(), config.rollout)
        clock.wrap(pool, "resize", "size of the pool")
        clock.wrap(pool.state, "dispatch", "dispatch")
        clock.wrap(collector.tokenizer, "decode", "decode")
        clock.wrap(collector, "_make_tasks", "make tasks")
        try:
            with clock.part("plan"):
                plan = planner.begin(ids, cost=collector.expected_tokens(ids))
            clock.wrap(plan, "observe", "labels to the plan")
            sampling = Sampling(4 * tokens)
            started, before = time.perf_counter(), time.thread_time()
            collected = await collector.collect(plan, chosen, Draw(lambda i: derive_seed(0, i), sampling, POLICY))
            collector.remember(collected)
            clock.seconds["collect_wall"] = time.perf_counter() - started
            clock.seconds["collect"] = time.thread_time() - before
            kept.extend((collected, pool))
        finally:
            scorer.close()

    asyncio.run(run())
    collected, pool = kept
    with clock.part("metrics"):
        successes, trials = collected.labels()
        step_record(collected, {})
        step_metrics(collected.allocation, successes, trials, status(successes, trials))
        sample_rows(collected, 16, 0)
    return _figures(clock.seconds, collected, pool.schedule, engines, prompts), collected


def _figures(
    seconds: dict[str, float], collected: CollectedStep, schedule: Schedule, engines: int, prompts: int
) -> dict[str, Any]:
    rollouts = sum(len(group.rollouts) for group in collected.groups)
    tasks = sum(schedule.ended.values())
    parts = {name: value for name, value in seconds.items() if not name.startswith("collect")}
    own = seconds["collect"] - parts.get("simulation", 0.0)
    wall = seconds["collect_wall"] - parts.get("simulation", 0.0)
    return {
        "engines": engines,
        "prompts": prompts,
        "rollouts": rollouts,
        "tokens": sum(group.tokens for group in collected.groups),
        "tasks": tasks,
        "collect_s": wall,
        "driver_s": own,
        "plan_s": parts["plan"],
        "tasks_per_s": tasks / own,
        "rollouts_per_s": rollouts / own,
        "us_a_task": 1e6 * own / tasks,
        "parts_s": {name: round(value, 4) for name, value in sorted(parts.items())},
        "memory_gib": memory_gib(),
    }


def rows_row(collected: CollectedStep) -> dict[str, float]:
    """Measure turning the groups into the learner's rows and pickling them: seconds and MiB."""
    from kray.config.train_schema import TrainConfig
    from kray.train.training_rows import step_rows

    for number, group in enumerate(collected.groups):
        group.weight = float(len(group.rollouts))
        # So that groups are mixed.
        for rollout in group.rollouts[: 1 + number % 2]:
            rollout.reward = 1.0
    gc.collect()
    started = time.thread_time()
    rows = step_rows(collected.groups, TrainConfig())
    made = time.thread_time() - started
    started = time.thread_time()
    sent = len(pickle.dumps(rows, protocol=5))
    return {"rows_s": made, "pickle_s": time.thread_time() - started, "mib": sent / 2**20}


def measure(
    known: int, engines: Sequence[int], prompts: Sequence[int], rollouts: int, tokens: int, workers: int
) -> dict[str, Any]:
    """Measure beliefs, schedule and steps of all sizes, and print the figures.

    Args:
        known: Number of prompts with beliefs.
        engines: Numbers of engines.
        prompts: Numbers of prompts of a step.
        rollouts: Rollouts a prompt, on average.
        tokens: Response tokens, on average.
        workers: Scoring processes.
    """
    with tempfile.TemporaryDirectory(prefix="kray-scale-") as folder:
        held, planner = beliefs(known, Path(folder))
    costs = {n: 1e6 * schedule_overhead_s(n, 100_000) for n in (1, 100, 1000)}
    print("schedule alone: " + ", ".join(f"{us:.1f} us a task on {n} engines" for n, us in costs.items()))
    steps, first = [], 0
    for size in prompts:
        for count in engines:
            row, collected = step(planner, count, size, rollouts, tokens, first % (known - size), workers)
            first += size
            steps.append(row)
            shown = [f"{name} {seconds:.2f}" for name, seconds in row["parts_s"].items() if name != "simulation"]
            print(
                f"{count:5} engines, {size} prompts, {row['rollouts']} rollouts, {row['tasks']} tasks: collected in "
                f"{row['collect_s']:.2f} s ({row['driver_s']:.2f} s of the driver, {row['us_a_task']:.0f} us a task, "
                f"{row['rollouts_per_s']:,.0f} rollouts/s), {row['memory_gib']:.1f} GiB; of which {', '.join(shown)}"
            )
    rows = rows_row(collected)
    print(f"to the learner: rows {rows['rows_s']:.2f} s, {rows['mib']:.0f} MiB, pickled in {rows['pickle_s']:.2f} s")
    return {"beliefs": held, "schedule_us": costs, "steps": steps, "rows": rows}
