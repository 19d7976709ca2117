"""Which engine works on which rollout task.

Pure: owns no actor, thread or clock; `now` (seconds, monotonic) comes in with every call that needs it.
Every task that `submit` accepts leaves through exactly one of `done`, `failed`, `cancelled`:
submitted == waiting + running + ended, checked after every event.

Longest expected work goes first, to the engine with the least work in hand. An engine takes more while it holds fewer
rollouts than its capacity, so late decisions go to whoever is free first; an engine without work takes a task of any size.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from kray.records import RolloutTask


class Ending(Enum):
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class _Entry:
    task: RolloutTask
    priority: int = 0
    attempts: int = 0
    engine: str | None = None  # None: waiting
    started: float = 0.0  # of the current attempt, s


@dataclass(slots=True)
class _Load:
    capacity: int | None  # rollouts; None: takes everything at once
    tasks: set[int] = field(default_factory=set)
    rollouts: int = 0
    progress: float = float("-inf")  # when it last delivered a task, s
    held: bool = False  # gets no new tasks


def expected_work(task: RolloutTask) -> float:
    """Response tokens that the task is expected to generate."""
    return task.rollouts * task.expected_tokens


def split_rollouts(rollouts: int, largest: int) -> list[tuple[int, int]]:
    """(first index, count) of the fewest, evenest parts of at most `largest`: 70 by 32 gives 24 + 23 + 23."""
    parts = -(-rollouts // largest)
    base, extra = divmod(rollouts, parts) if parts else (0, 0)
    sizes = [base + (i < extra) for i in range(parts)]
    return [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]


class Schedule:
    """See the module's docstring. `max_attempts`: how often a task may be started before it has failed."""

    def __init__(self, max_attempts: int):
        self.max_attempts = max_attempts
        self.submitted = self.retried = 0
        self.rollouts = 0  # of all tasks that have not ended
        self.ended = dict.fromkeys(Ending, 0)
        self._entries: dict[int, _Entry] = {}
        self._waiting: list[tuple[int, float, int]] = []  # heap of (priority, -expected work, task id)
        self._engines: dict[str, _Load] = {}

    @property
    def waiting(self) -> int:
        return sum(entry.engine is None for entry in self._entries.values())

    @property
    def running(self) -> int:
        return sum(entry.engine is not None for entry in self._entries.values())

    def load(self, engine: str) -> int:
        """Rollouts that the engine holds."""
        return self._engines[engine].rollouts if engine in self._engines else 0

    def holds(self, task_id: int) -> bool:
        """Whether the task has been accepted and has not ended."""
        return task_id in self._entries

    def engine_up(self, engine: str, capacity: int | None) -> None:
        if engine in self._engines:
            raise ValueError(f"engine {engine} is already up")
        self._engines[engine] = _Load(capacity)

    def is_up(self, engine: str) -> bool:
        return engine in self._engines

    def hold(self, engine: str, held: bool) -> None:
        """A held engine keeps its tasks and gets no new ones; unknown engines are ignored."""
        if engine in self._engines:
            self._engines[engine].held = held

    def engine_down(self, engine: str, forgive: bool = False) -> list[RolloutTask]:
        """The engine is gone: its tasks wait again for another one; those out of attempts fail and are returned.

        forgive: the attempt does not count.
        """
        load = self._engines.pop(engine, None)
        lost = [self._entries[task_id] for task_id in sorted(load.tasks)] if load else []
        for entry in lost:
            entry.attempts -= forgive
        return [entry.task for entry in lost if not self._retry(entry)]

    def submit(self, tasks: Iterable[RolloutTask], priority: int = 0) -> None:
        """priority: the lower first."""
        for task in tasks:
            if task.id in self._entries:
                raise ValueError(f"task {task.id} was submitted before")
            self._entries[task.id] = _Entry(task, priority)
            heapq.heappush(self._waiting, (priority, -expected_work(task), task.id))
            self.submitted += 1
            self.rollouts += task.rollouts
        self._check()

    def dispatch(self, now: float) -> dict[str, list[RolloutTask]]:
        """Give waiting tasks to engines with room; what each engine must now be sent, longest expected work first."""
        orders: dict[str, list[RolloutTask]] = {}
        while self._waiting:
            roomy = [name for name, load in self._engines.items() if self._has_room(load)]
            if not roomy:
                break
            *_, task_id = heapq.heappop(self._waiting)
            entry = self._entries.get(task_id)
            if entry is None or entry.engine is not None:
                continue  # ended or started since it was queued
            name = min(roomy, key=lambda name: (self._engines[name].rollouts, name))
            self._start(entry, name, now)
            orders.setdefault(name, []).append(entry.task)
        self._check()
        return orders

    def done(self, task_id: int, engine: str, now: float) -> RolloutTask | None:
        """The engine delivered the task; None if the task is no longer this engine's (a late answer: ignore it)."""
        entry = self._entries.get(task_id)
        if entry is None or entry.engine != engine:
            return None
        self._end(entry, Ending.DONE)
        self._engines[engine].progress = now
        return entry.task

    def refused(self, task_id: int, engine: str) -> RolloutTask | None:
        """The engine cannot run the task, nor could any other: it has failed. None if it is no longer this engine's."""
        entry = self._entries.get(task_id)
        if entry is None or entry.engine != engine:
            return None
        self._end(entry, Ending.FAILED)
        return entry.task

    def cancel(self, task_ids: Iterable[int]) -> dict[str, list[int]]:
        """Tasks no longer wanted; which engines must be told to drop which of them."""
        orders: dict[str, list[int]] = {}
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is None:
                continue
            if entry.engine is not None:
                orders.setdefault(entry.engine, []).append(task_id)
            self._end(entry, Ending.CANCELLED)
        return orders

    def overdue(self, engine: str, now: float) -> list[RolloutTask]:
        """The engine's tasks past their deadline: such an engine is not to be trusted any more.

        A task's time runs while its engine delivers nothing at all: work that queues inside an engine is not late.
        """
        load = self._engines.get(engine)
        entries = [self._entries[task_id] for task_id in sorted(load.tasks)] if load else []
        progress = load.progress if load else 0.0
        return [entry.task for entry in entries if max(entry.started, progress) + entry.task.timeout_s <= now]

    def _has_room(self, load: _Load) -> bool:
        if load.held:
            return False
        return load.capacity is None or load.rollouts == 0 or load.rollouts < load.capacity

    def _start(self, entry: _Entry, engine: str, now: float) -> None:
        load = self._engines[engine]
        load.tasks.add(entry.task.id)
        load.rollouts += entry.task.rollouts
        entry.engine, entry.started = engine, now
        entry.attempts += 1

    def _release(self, entry: _Entry) -> None:
        load = self._engines.get(entry.engine or "")
        if load and entry.task.id in load.tasks:
            load.tasks.remove(entry.task.id)
            load.rollouts -= entry.task.rollouts
        entry.engine = None

    def _retry(self, entry: _Entry) -> bool:
        """Queue the task again, or end it as failed when it is out of attempts."""
        entry.engine = None
        if entry.attempts >= self.max_attempts:
            self._end(entry, Ending.FAILED)
            return False
        heapq.heappush(self._waiting, (entry.priority, -expected_work(entry.task), entry.task.id))
        self.retried += 1
        self._check()
        return True

    def _end(self, entry: _Entry, ending: Ending) -> None:
        self._release(entry)
        del self._entries[entry.task.id]
        self.rollouts -= entry.task.rollouts
        self.ended[ending] += 1
        self._check()

    def _check(self) -> None:
        assert self.submitted == len(self._entries) + sum(self.ended.values()), "a rollout task was lost or ended twice"
