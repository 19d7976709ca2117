"""How long a fleet of engines takes for one step's rollouts: simulated engines, the real Schedule, and a lower bound.

An engine batches continuously: up to max_sequences rollouts run, the rest of what it holds queues in order of arrival. One
step of n running rollouts takes base_s + n * sequence_s and gives each of them a token; the first rollout of a prompt on an
engine costs prompt_token_s for each token of the prompt besides (the others find it in the prefix cache). So an engine that
made k steps and w tokens was busy for exactly k * base_s + w * sequence_s + its prompts. Time is continuous: a rollout
may begin between two steps. Reports and orders take latency_s each way.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kray.records import RolloutTask, Sampling
from kray.rollout.scheduler import Schedule, largest_part, split_rollouts

SAMPLING = Sampling(4096)  # not looked at
NEVER_S = 1e12


@dataclass(frozen=True, slots=True)
class EngineModel:
    engines: int
    max_sequences: int
    base_s: float
    sequence_s: float
    prompt_token_s: float
    latency_s: float = 5e-3


# One engine: gpu is of the order of a 7B policy in bf16 on a data-centre GPU, cpu of a policy of 3 M parameters on a core.
ENGINE_MODELS = {
    "gpu": EngineModel(1, 64, 8e-3, 3e-5, 4e-5),
    "cpu": EngineModel(1, 64, 2e-3, 1.5e-4, 1e-4),
}


@dataclass(frozen=True, slots=True)
class Work:
    """One step's work. lengths: of each prompt its rollouts' response tokens (budget,); expected (M,): tokens of one rollout of
    it, as known beforehand; prompt_tokens (M,)."""

    lengths: list[np.ndarray]
    expected: np.ndarray
    prompt_tokens: np.ndarray

    @property
    def rollouts(self) -> int:
        return sum(map(len, self.lengths))

    @property
    def known(self) -> Work:
        """The same work with every rollout's length known: each is a group of its own, and the prompt is its first one's."""
        lengths = np.concatenate(self.lengths)
        prompt_tokens = np.zeros(len(lengths), int)
        prompt_tokens[np.cumsum([0, *map(len, self.lengths[:-1])])] = self.prompt_tokens
        return Work(list(lengths[:, None]), lengths.astype(float), prompt_tokens)


def make_work(prompts: int, seed: int, mean: float = 700.0, spread: float = 0.6, noise: float = 0.5) -> Work:
    """Budgets of 2 to 128 rollouts, 8 on average, heavy-tailed (Pareto, exponent 1.1); lengths log-normal, at most 4096.

    spread: log-standard deviation of the prompts' mean lengths; noise: of the rollouts of a prompt. What is known beforehand
    is the mean of an earlier visit with the same budget, by a policy whose mean lengths were others by 10 %.
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
class Outcome:
    """idle: share of engine-seconds without work; prompts: how often a prompt was computed, on average; driver_s: real
    processor seconds inside the schedule, over all tasks."""

    makespan_s: float
    idle: float
    prompts: float
    driver_s: float
    tasks: int


class Dealt(Schedule):
    """What peers do: task i goes to engine i modulo engines, all are sent at once and none is moved."""

    def dispatch(self, now: float) -> dict[str, list[RolloutTask]]:
        orders: dict[str, list[RolloutTask]] = {}
        names = list(self._engines)
        for task_id in sorted(task_id for _, _, task_id in self._queue):
            name, entry = names[task_id % len(names)], self._entries[task_id]
            self._start(entry, self._engines[name], now)
            orders.setdefault(name, []).append(entry.task)
        self._queue.clear()
        return orders


def simulate(
    fleet: EngineModel,
    work: Work,
    split: int = 0,
    capacity: float = 1.0,
    progress: bool = True,
    make: Callable[[int], Schedule] = Schedule,
) -> Outcome:
    """Carries the step out.

    split: largest part of a group that is one task (0: as largest_part says); capacity: of an engine, over max_sequences;
    progress: whether engines report every rollout that ends, or whole tasks only.
    """
    return _Step(fleet, work, split, capacity, progress, make(1)).run()


def static(fleet: EngineModel, work: Work) -> Outcome:
    """Static sharding: whole groups dealt to the engines in turn, all sent at once."""
    return simulate(fleet, work, split=128, progress=False, make=Dealt)


def overhead(engines: int, tasks: int, seed: int = 0) -> float:
    """Real processor seconds a task that the schedule takes for submitting, dispatching and ending this many tasks, when
    each engine holds about 8 of them and they end one by one."""
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
    """One simulated engine; `now` is how far it has been carried."""

    def __init__(self, fleet: EngineModel):
        self.fleet = fleet
        self.now = self.steps = self.busy_s = 0.0
        self.stall_s = 0.0  # of prompts that are to be computed before the next step
        self.running: list[tuple[float, int, int]] = []  # heap of (step at which it ends, number, task)
        self.queue: deque[tuple[int, int, int, int]] = deque()  # (tokens, task, prompt, prompt tokens)
        self.prompts: set[int] = set()
        self.number = 0

    def add(self, lengths: Sequence[int], task: int, prompt: int, prompt_tokens: int) -> None:
        self.queue.extend((n, task, prompt, prompt_tokens) for n in lengths)
        self._admit()

    def ends_at(self) -> float:
        """When the next of the running rollouts ends, s."""
        return self.now + self.stall_s + (self.running[0][0] - self.steps) * self._step_s()

    def carry(self, until: float) -> None:
        """Carries it on, to no later than the next end of a rollout."""
        passed, self.now = until - self.now, until
        if not self.running:
            return
        self.busy_s += passed
        computing = min(passed, self.stall_s)
        self.stall_s -= computing
        self.steps += (passed - computing) / self._step_s()

    def finish(self) -> int:
        """The task of the rollout that ends now."""
        self.steps, _, task = heapq.heappop(self.running)
        self._admit()
        return task

    def _step_s(self) -> float:
        return self.fleet.base_s + len(self.running) * self.fleet.sequence_s

    def _admit(self) -> None:
        while self.queue and len(self.running) < self.fleet.max_sequences:
            tokens, task, prompt, prompt_tokens = self.queue.popleft()
            if prompt not in self.prompts:
                self.prompts.add(prompt)
                self.stall_s += prompt_tokens * self.fleet.prompt_token_s
            self.number += 1
            heapq.heappush(self.running, (self.steps + tokens, self.number, task))


class _Step:
    """Events in simulated time: orders reach an engine, a rollout ends on it, its report reaches the schedule."""

    def __init__(
        self, fleet: EngineModel, work: Work, split: int, capacity: float, progress: bool, schedule: Schedule
    ) -> None:
        self.fleet, self.work, self.progress, self.schedule = fleet, work, progress, schedule
        self.engines = {f"engine-{i}": _Engine(fleet) for i in range(fleet.engines)}
        self.room = max(1, round(capacity * fleet.max_sequences))
        self.tasks: list[RolloutTask] = []
        split = split or largest_part(work.rollouts, fleet.engines, 32)
        for prompt, lengths in enumerate(work.lengths):
            for first, part in split_rollouts(len(lengths), split):
                names = (len(self.tasks), f"{prompt}", (), part, first, 0, 0, SAMPLING, NEVER_S)
                self.tasks.append(RolloutTask(*names, float(work.expected[prompt])))
        self.left = [task.rollouts for task in self.tasks]
        self.events: list[tuple[float, int, str, tuple]] = []  # heap of (s, number, engine, what)
        self.number = 0
        self.newest = dict.fromkeys(self.engines, 0)  # number of the engine's event "ends" that counts
        self.driver_s = 0.0

    def run(self) -> Outcome:
        started = time.thread_time()
        for name in self.engines:
            self.schedule.engine_up(name, self.room)
        self.schedule.submit(self.tasks)
        self.driver_s += time.thread_time() - started
        self._send(0.0)
        while self.events:
            now, number, name, (kind, *what) = heapq.heappop(self.events)
            if kind == "report":
                self._report(now, name, *what)
            elif kind == "order":
                self.engines[name].carry(now)
                for task in what:
                    prompt, end = int(task.prompt_id), task.first_index + task.rollouts
                    lengths = self.work.lengths[prompt][task.first_index : end].tolist()
                    self.engines[name].add(lengths, task.id, prompt, int(self.work.prompt_tokens[prompt]))
                self._foresee(name)
            elif number == self.newest[name]:
                self._end(now, name)
        assert self.schedule.waiting == self.schedule.running == 0
        makespan = max(engine.now for engine in self.engines.values())
        busy = sum(engine.busy_s for engine in self.engines.values()) / len(self.engines)
        prompts = sum(len(engine.prompts) for engine in self.engines.values()) / len(self.work.lengths)
        return Outcome(makespan, 1 - busy / makespan, prompts, self.driver_s, len(self.tasks))

    def _send(self, now: float) -> None:
        started = time.thread_time()
        orders = self.schedule.dispatch(now)
        self.driver_s += time.thread_time() - started
        for name, tasks in orders.items():
            self._post(now + self.fleet.latency_s, name, "order", *tasks)

    def _end(self, now: float, name: str) -> None:
        self.engines[name].carry(now)
        task_id = self.engines[name].finish()
        self.left[task_id] -= 1
        if self.progress or not self.left[task_id]:
            finished = self.tasks[task_id].rollouts - self.left[task_id]
            self._post(now + self.fleet.latency_s, name, "report", task_id, finished)
        self._foresee(name)

    def _report(self, now: float, name: str, task_id: int, finished: int) -> None:
        started = time.thread_time()
        if finished == self.tasks[task_id].rollouts:
            self.schedule.done(task_id, name, now)
        else:
            self.schedule.progressed(task_id, name, finished, now)
        self.driver_s += time.thread_time() - started
        self._send(now)

    def _foresee(self, name: str) -> None:
        if self.engines[name].running:
            self._post(self.engines[name].ends_at(), name, "ends")
            self.newest[name] = self.number

    def _post(self, at: float, name: str, *what: object) -> None:
        self.number += 1
        heapq.heappush(self.events, (at, self.number, name, what))


def lower_bound(fleet: EngineModel, work: Work) -> float:
    """Seconds that no schedule can beat, not even one that knows every length. Two bounds; the larger one counts.

    (1) The longest rollout alone: its prompt, then a step for each of its tokens with nobody else in the batch.
    (2) The work. An engine that makes k steps in T seconds gives at most min(k S, (T - k a) / b) tokens, with a: base_s,
    b: sequence_s, S: max_sequences; and k is at least the length l of its longest rollout. Most is k* S at
    k* = T / (a + b S) where l <= k*, else (T - l a) / b, less the longer l is. So put the longest rollouts on as few
    engines as can be: fill engine after engine with the longest that are left, cut as if they could be divided. If not all
    fit, T is too short: sort the engines of any schedule by their longest rollout, longest first; if the first j engines'
    longest are at least the filling's, these engines hold at most what the filling's hold, so the next engine's longest
    is at least the filling's too. Each prompt is computed at least once; its seconds displace no less than a full batch's
    tokens, a/S + b seconds each.
    """
    a, b, s = fleet.base_s, fleet.sequence_s, fleet.max_sequences
    lengths = np.sort(np.concatenate(work.lengths))[::-1].astype(float)
    tokens = np.concatenate([[0.0], np.cumsum(lengths)])
    prompts_s = work.prompt_tokens * fleet.prompt_token_s
    alone = max(float(p + n.max() * (a + b)) for n, p in zip(work.lengths, prompts_s, strict=True))
    need = tokens[-1] + float(prompts_s.sum()) / (a / s + b)

    def fits(limit_s: float) -> bool:
        done = 0.0
        for engines in range(fleet.engines, 0, -1):
            row = int(np.searchsorted(tokens, done, "right")) - 1  # the longest rollout that is not yet all placed
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
