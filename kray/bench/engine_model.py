"""Simulates how long a pool of engines takes for one step's rollouts, with the real Schedule, and gives a lower bound.

An engine batches continuously: up to max_sequences rollouts run, the others it holds queue in order of arrival. One step of
n running rollouts takes base_s + n * sequence_s and gives each of them a token. The first rollout of a prompt on an engine
also costs prompt_token_s for each token of the prompt; the others find it in the prefix cache. So an engine that made k
steps and w tokens was busy for exactly k * base_s + w * sequence_s plus its prompts. Time is continuous: a rollout may begin
between two steps. Tasks and reports take latency_s each way.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kray.records import RolloutTask, Sampling
from kray.rollout.parts import largest_part, split_rollouts
from kray.rollout.scheduler import Schedule

# Required by tasks, not used by the simulation.
SAMPLING = Sampling(4096)
# Task timeout in seconds: none.
NEVER_S = 1e12


@dataclass(frozen=True, slots=True)
class EngineModel:
    """Costs of a pool of equal engines.

    Attributes:
        engines: Number of engines.
        max_sequences: Rollouts in one batch.
        base_s: Seconds of a step, whatever its batch.
        sequence_s: Seconds a step for each running rollout.
        prompt_token_s: Seconds for each token of a prompt.
        latency_s: Seconds that a task or a report takes.
    """

    engines: int
    max_sequences: int
    base_s: float
    sequence_s: float
    prompt_token_s: float
    latency_s: float = 5e-3


# One engine. gpu: the order of a 7B policy in bf16 on a data-centre GPU; cpu: of a 3 M parameter policy on one core.
ENGINE_MODELS = {
    "gpu": EngineModel(1, 64, 8e-3, 3e-5, 4e-5),
    "cpu": EngineModel(1, 64, 2e-3, 1.5e-4, 1e-4),
}


@dataclass(frozen=True, slots=True)
class Work:
    """One step's rollouts, of M prompts.

    Attributes:
        lengths: Of each prompt (budget,) int response tokens.
        expected: (M,) response tokens of a rollout as estimated beforehand.
        prompt_tokens: (M,) int.
    """

    lengths: list[np.ndarray]
    expected: np.ndarray
    prompt_tokens: np.ndarray

    @property
    def rollouts(self) -> int:
        """Number of rollouts."""
        return sum(map(len, self.lengths))

    @property
    def known(self) -> Work:
        """The same work with every length known: each rollout is its own group; the first one of a prompt has its tokens."""
        lengths = np.concatenate(self.lengths)
        prompt_tokens = np.zeros(len(lengths), int)
        prompt_tokens[np.cumsum([0, *map(len, self.lengths[:-1])])] = self.prompt_tokens
        return Work(list(lengths[:, None]), lengths.astype(float), prompt_tokens)


def make_work(prompts: int, seed: int, mean: float = 700.0, spread: float = 0.6, noise: float = 0.5) -> Work:
    """Draw one step's work: budgets of 2 to 128 rollouts, 8 on average, heavy-tailed (Pareto, exponent 1.1).

    The estimate of a prompt is the mean of an earlier visit with the same budget, by a policy whose mean lengths differed by
    10 %.

    Args:
        prompts: M.
        seed: Seed of the draw.
        mean: Mean response tokens; lengths are log-normal, at most 4096.
        spread: Log-standard deviation of the prompts' mean lengths.
        noise: Log-standard deviation of a prompt's rollouts.
    """
    rng = np.random.default_rng(seed)
    budgets = np.minimum(128, 2 * rng.random(prompts) ** (-1 / 1.1)).astype(int)
    means = mean * rng.lognormal(-(spread**2) / 2, spread, prompts)

    def visit(means: np.ndarray) -> list[np.ndarray]:
        draws = (m * rng.lognormal(-(noise**2) / 2, noise, n) for m, n in zip(means, budgets, strict=True))
        return [np.clip(each, 1, 4096).astype(int) for each in draws]

    lengths, earlier = visit(means), visit(means * rng.lognormal(0, 0.1, prompts))
    return Work(lengths, np.array([each.mean() for each in earlier]), rng.integers(64, 1024, prompts))


@dataclass(slots=True)
class SimulatedStep:
    """The result of a simulated step.

    Attributes:
        makespan_s: Simulated seconds until the last rollout ended.
        idle: Share of engine-seconds without work.
        prompts: Number of times that a prompt was computed, on average.
        driver_s: Real processor seconds inside the schedule, over all tasks.
        tasks: Number of tasks.
    """

    makespan_s: float
    idle: float
    prompts: float
    driver_s: float
    tasks: int


class StaticSchedule(Schedule):
    """Static sharding: task i goes to engine i modulo engines, all tasks are sent at once and none is moved."""

    def dispatch(self, now: float) -> dict[str, list[RolloutTask]]:
        """Return all waiting tasks by engine."""
        sent: dict[str, list[RolloutTask]] = {}
        names = list(self._engines)
        for task_id in sorted(task_id for _, _, task_id in self._queue):
            name, entry = names[task_id % len(names)], self._entries[task_id]
            self._start(entry, self._engines[name], now)
            sent.setdefault(name, []).append(entry.task)
        self._queue.clear()
        return sent


def simulate(
    model: EngineModel,
    work: Work,
    split: int = 0,
    capacity: float = 1.0,
    progress: bool = True,
    make: Callable[[int], Schedule] = Schedule,
) -> SimulatedStep:
    """Simulate one step.

    Args:
        model: The engines.
        work: The step's rollouts.
        split: Largest part of a group that is one task; 0 for the scheduler's own choice.
        capacity: Rollouts that an engine holds, over max_sequences.
        progress: Whether engines report every rollout that ends, or whole tasks only.
        make: Makes the schedule, given the number of attempts for a task.
    """
    return _Step(model, work, split, capacity, progress, make(1)).run()


def simulate_static(model: EngineModel, work: Work) -> SimulatedStep:
    """Simulate static sharding: whole groups dealt to the engines in turn, all sent at once."""
    return simulate(model, work, split=128, progress=False, make=StaticSchedule)


def schedule_overhead_s(engines: int, tasks: int, seed: int = 0) -> float:
    """Measure the schedule's real processor seconds a task for submitting, dispatching and ending tasks.

    Each engine holds about 8 tasks, which end one by one.
    """
    rng = np.random.default_rng(seed)
    sizes, tokens = rng.integers(1, 33, tasks).tolist(), rng.lognormal(6, 0.6, tasks).tolist()
    names = [f"engine-{i}" for i in range(engines)]
    work = [RolloutTask(i, "", (), sizes[i], 0, 0, 0, SAMPLING, NEVER_S, tokens[i]) for i in range(tasks)]
    schedule, held = Schedule(1), deque[tuple[int, str]]()
    started = time.thread_time()
    for name in names:
        schedule.engine_up(name, 128)
    schedule.submit(work)
    while True:
        for name, sent in schedule.dispatch(0.0).items():
            held.extend((task.id, name) for task in sent)
        if not held:
            return (time.thread_time() - started) / tasks
        schedule.done(*held.popleft(), 0.0)


class _Engine:
    """One simulated engine; `now` is the time up to which it has been simulated."""

    def __init__(self, model: EngineModel):
        self.model = model
        self.now = self.steps = self.busy_s = 0.0
        # Seconds of prompts to be computed before the next step.
        self.stall_s = 0.0
        # Heap of (step at which the rollout ends, number, task).
        self.running: list[tuple[float, int, int]] = []
        # (tokens, task, prompt, prompt tokens).
        self.queue: deque[tuple[int, int, int, int]] = deque()
        self.prompts: set[int] = set()
        self.number = 0

    def add(self, lengths: Sequence[int], task: int, prompt: int, prompt_tokens: int) -> None:
        """Queue the rollouts of a task."""
        self.queue.extend((n, task, prompt, prompt_tokens) for n in lengths)
        self._admit()

    def ends_at(self) -> float:
        """Return the time at which the next running rollout ends, s."""
        return self.now + self.stall_s + (self.running[0][0] - self.steps) * self._step_s()

    def advance(self, until: float) -> None:
        """Simulate up to a time, no later than the next end of a rollout."""
        passed, self.now = until - self.now, until
        if not self.running:
            return
        self.busy_s += passed
        computing = min(passed, self.stall_s)
        self.stall_s -= computing
        self.steps += (passed - computing) / self._step_s()

    def finish(self) -> int:
        """End the rollout that ends now and return its task."""
        self.steps, _, task = heapq.heappop(self.running)
        self._admit()
        return task

    def _step_s(self) -> float:
        return self.model.base_s + len(self.running) * self.model.sequence_s

    def _admit(self) -> None:
        while self.queue and len(self.running) < self.model.max_sequences:
            tokens, task, prompt, prompt_tokens = self.queue.popleft()
            if prompt not in self.prompts:
                self.prompts.add(prompt)
                self.stall_s += prompt_tokens * self.model.prompt_token_s
            self.number += 1
            heapq.heappush(self.running, (self.steps + tokens, self.number, task))


class _Step:
    """Events in simulated time: tasks reach an engine, a rollout ends on it, its report reaches the schedule."""

    def __init__(
        self, model: EngineModel, work: Work, split: int, capacity: float, progress: bool, schedule: Schedule
    ) -> None:
        self.model, self.work, self.progress, self.schedule = model, work, progress, schedule
        self.engines = {f"engine-{i}": _Engine(model) for i in range(model.engines)}
        self.capacity = max(1, round(capacity * model.max_sequences))
        self.tasks: list[RolloutTask] = []
        split = split or largest_part(work.rollouts, model.engines, 32)
        for prompt, lengths in enumerate(work.lengths):
            for first, part in split_rollouts(len(lengths), split):
                names = (len(self.tasks), f"{prompt}", (), part, first, 0, 0, SAMPLING, NEVER_S)
                self.tasks.append(RolloutTask(*names, float(work.expected[prompt])))
        self.left = [task.rollouts for task in self.tasks]
        # Heap of (time in s, number, engine, (kind, arguments...)).
        self.events: list[tuple[float, int, str, tuple]] = []
        self.number = 0
        # Number of each engine's valid event "ends".
        self.newest = dict.fromkeys(self.engines, 0)
        self.driver_s = 0.0

    def run(self) -> SimulatedStep:
        """Process all events."""
        started = time.thread_time()
        for name in self.engines:
            self.schedule.engine_up(name, self.capacity)
        self.schedule.submit(self.tasks)
        self.driver_s += time.thread_time() - started
        self._send(0.0)
        while self.events:
            now, number, name, (kind, *arguments) = heapq.heappop(self.events)
            if kind == "report":
                self._report(now, name, *arguments)
            elif kind == "tasks":
                self.engines[name].advance(now)
                for task in arguments:
                    prompt, end = int(task.prompt_id), task.first_index + task.rollouts
                    lengths = self.work.lengths[prompt][task.first_index : end].tolist()
                    self.engines[name].add(lengths, task.id, prompt, int(self.work.prompt_tokens[prompt]))
                self._schedule_end(name)
            elif number == self.newest[name]:
                self._end(now, name)
        assert self.schedule.waiting == self.schedule.running == 0
        makespan = max(engine.now for engine in self.engines.values())
        busy = sum(engine.busy_s for engine in self.engines.values()) / len(self.engines)
        prompts = sum(len(engine.prompts) for engine in self.engines.values()) / len(self.work.lengths)
        return SimulatedStep(makespan, 1 - busy / makespan, prompts, self.driver_s, len(self.tasks))

    def _send(self, now: float) -> None:
        started = time.thread_time()
        sent = self.schedule.dispatch(now)
        self.driver_s += time.thread_time() - started
        for name, tasks in sent.items():
            self._post(now + self.model.latency_s, name, "tasks", *tasks)

    def _end(self, now: float, name: str) -> None:
        self.engines[name].advance(now)
        task_id = self.engines[name].finish()
        self.left[task_id] -= 1
        if self.progress or not self.left[task_id]:
            finished = self.tasks[task_id].rollouts - self.left[task_id]
            self._post(now + self.model.latency_s, name, "report", task_id, finished)
        self._schedule_end(name)

    def _report(self, now: float, name: str, task_id: int, finished: int) -> None:
        started = time.thread_time()
        if finished == self.tasks[task_id].rollouts:
            self.schedule.done(task_id, name, now)
        else:
            self.schedule.progressed(task_id, name, finished, now)
        self.driver_s += time.thread_time() - started
        self._send(now)

    def _schedule_end(self, name: str) -> None:
        if self.engines[name].running:
            self._post(self.engines[name].ends_at(), name, "ends")
            self.newest[name] = self.number

    def _post(self, at: float, name: str, *event: object) -> None:
        self.number += 1
        heapq.heappush(self.events, (at, self.number, name, event))


def lower_bound(model: EngineModel, work: Work) -> float:
    """Compute seconds that no schedule can beat, not even one that knows every length: the larger of two bounds.

    (1) The longest rollout alone: its prompt, then a step for each of its tokens with an otherwise empty batch.
    (2) The work. An engine that makes k steps in T seconds gives at most min(k S, (T - k a) / b) tokens, with a: base_s,
    b: sequence_s, S: max_sequences; and k is at least the length l of its longest rollout. Most is k* S at
    k* = T / (a + b S) where l <= k*, else (T - l a) / b, less the longer l is. So put the longest rollouts on as few
    engines as can be: fill engine after engine with the longest that are left, cut as if they could be divided. If not all
    fit, T is too short: sort the engines of any schedule by their longest rollout, longest first; if the first j engines'
    longest are at least the filling's, these engines hold at most what the filling's hold, so the next engine's longest
    is at least the filling's too. Each prompt is computed at least once; its seconds displace no less than a full batch's
    tokens, a/S + b seconds each.
    """
    a, b, s = model.base_s, model.sequence_s, model.max_sequences
    lengths = np.sort(np.concatenate(work.lengths))[::-1].astype(float)
    tokens = np.concatenate([[0.0], np.cumsum(lengths)])
    prompts_s = work.prompt_tokens * model.prompt_token_s
    alone = max(float(p + n.max() * (a + b)) for n, p in zip(work.lengths, prompts_s, strict=True))
    need = tokens[-1] + float(prompts_s.sum()) / (a / s + b)

    def fits(limit_s: float) -> bool:
        done = 0.0
        for engines in range(model.engines, 0, -1):
            # The longest rollout that is not placed completely.
            row = int(np.searchsorted(tokens, done, "right")) - 1
            longest = lengths[min(row, len(lengths) - 1)]
            if longest <= limit_s / (a + b * s):
                return done + engines * limit_s / (a / s + b) >= need
            done += (limit_s - longest * a) / b
        return done >= need

    low, high = alone, alone + need * (a / s + b) + lengths[0] * (a + b * s)
    while not fits(low) and high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return low
