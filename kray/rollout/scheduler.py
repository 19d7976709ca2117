"""Which engine works on which rollout task.

Pure: owns no actor, thread or clock; `now` (seconds, monotonic) comes in with every call that needs it.
Every task that `submit` accepts leaves through exactly one of `done`, `failed`, `cancelled`:
submitted == waiting + running + ended, checked after every event.

A lower priority goes first, then the longest expected rollouts: what starts last should end soon. Each task goes to the
engine with the least expected work in hand. An engine takes more while it holds fewer unfinished rollouts than its
capacity, so late decisions go to whoever is free first; an engine without work takes a task of any size, a held one none.
While a task waits, no engine has room. An event costs O(log tasks + log engines).
A task that was lost with two engines or more makes its last attempt on an engine by itself: so a prompt that kills engines
is found out, and takes none of its neighbours along. Such tasks go first to engines that hold nothing.
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
    priority: int
    attempts: int = 0
    engine: str | None = None  # None: waiting
    started: float = 0.0  # of the current attempt, s
    left: int = 0  # rollouts that the engine has not finished


@dataclass(slots=True)
class _Load:
    name: str
    capacity: int | None  # rollouts; None: takes everything at once
    held: bool = False
    alone: bool = False  # it holds a task that shares its engine with no other
    tasks: set[int] = field(default_factory=set)
    rollouts: int = 0  # not finished
    work: float = 0.0  # expected tokens of them
    progress: float = 0.0  # when it last delivered something or began to work, s
    patience: float = float("inf")  # no task that it has held had a shorter timeout_s
    offer: int = 0  # number of its newest entry among the offers; older ones do not count

    @property
    def room(self) -> bool:
        return not (self.held or self.alone) and (
            self.capacity is None or self.rollouts == 0 or self.rollouts < self.capacity
        )


def expected_work(task: RolloutTask) -> float:
    """Response tokens that the task is expected to generate."""
    return task.rollouts * task.expected_tokens


def split_rollouts(rollouts: int, largest: int) -> list[tuple[int, int]]:
    """(first index, count) of the fewest, evenest parts of at most `largest`: 70 by 32 gives 24 + 23 + 23."""
    parts = -(-rollouts // largest)
    base, extra = divmod(rollouts, parts) if parts else (0, 0)
    return [(i * base + min(i, extra), base + (i < extra)) for i in range(parts)]


def largest_part(rollouts: int, engines: int, most: int) -> int:
    """Rollouts of one prompt that should travel as one task, in a step of so many rollouts; at most `most` (rollout.split).

    An eighth of an engine's even share, so that the last parts even the engines out, but at least 2: every part on
    another engine computes its prompt again. In simulated steps (jobs/bench_pool.py) with few rollouts an engine this takes up
    to a quarter off the makespan of fixed parts of 32; where an engine gets over 256 it is `most`.
    """
    return min(most, max(2, round(rollouts / (8 * engines))))


class Schedule:
    """See the module's docstring. `max_attempts`: how often a task may be started before it has failed.

    waiting, running: tasks. ended: tasks by how they ended. rollouts: of all tasks that have not ended.
    """

    def __init__(self, max_attempts: int):
        self.max_attempts = max_attempts
        self.submitted = self.waiting = self.running = self.retried = self.rollouts = 0
        self.ended = dict.fromkeys(Ending, 0)
        self._ended = 0
        self._entries: dict[int, _Entry] = {}
        self._queue: list[tuple[int, float, int]] = []  # heap of (priority, -expected tokens of a rollout, task id)
        self._lonely: list[tuple[int, float, int]] = []  # the same of tasks that are to run by themselves
        self._engines: dict[str, _Load] = {}
        self._offers: list[
            tuple[float, str, int]
        ] = []  # heap of (work, engine, number): engines with room, and stale ones
        self._numbers = 0

    def load(self, engine: str) -> int:
        """Unfinished rollouts that the engine holds."""
        return self._engines[engine].rollouts if engine in self._engines else 0

    def holding(self, engine: str) -> tuple[int, int]:
        """(tasks, unfinished rollouts) in the engine's hands; may be asked from another thread."""
        load = self._engines.get(engine)
        return (len(load.tasks), load.rollouts) if load else (0, 0)

    def holds(self, task_id: int) -> bool:
        """Whether the task has been accepted and has not ended."""
        return task_id in self._entries

    def engine_up(self, engine: str, capacity: int | None) -> None:
        """capacity: unfinished rollouts below which the engine takes more; None: it takes everything at once."""
        if engine in self._engines:
            raise ValueError(f"engine {engine} is already up")
        self._engines[engine] = _Load(engine, capacity)
        self._offer(self._engines[engine])

    def is_up(self, engine: str) -> bool:
        return engine in self._engines

    def engine_down(self, engine: str, forgive: bool = False) -> list[RolloutTask]:
        """The engine is gone: its tasks wait again for another one; those out of attempts fail and are returned.

        forgive: the attempt does not count.
        """
        load = self._engines.pop(engine, None)
        lost = [self._entries[task_id] for task_id in sorted(load.tasks)] if load else []
        for entry in lost:
            entry.attempts -= forgive
        return [entry.task for entry in lost if not self._retry(entry)]

    def hold(self, engine: str, held: bool) -> None:
        """A held engine keeps its tasks and gets no new ones, until it is released. Raises ValueError when it is not up."""
        if engine not in self._engines:
            raise ValueError(f"engine {engine} is not up")
        self._engines[engine].held = held
        self._offer(self._engines[engine])

    def submit(self, tasks: Iterable[RolloutTask], priority: int = 0) -> None:
        """Tasks to do. Of those that wait, the lowest priority goes first; a running task is never interrupted."""
        for task in tasks:
            if task.id in self._entries:
                raise ValueError(f"task {task.id} was submitted before")
            entry = self._entries[task.id] = _Entry(task, priority)
            self.submitted += 1
            self.rollouts += task.rollouts
            self._wait(entry)
        self._check()

    def dispatch(self, now: float) -> dict[str, list[RolloutTask]]:
        """Give waiting tasks to engines with room; what each engine must now be sent, in the order of the queue."""
        orders: dict[str, list[RolloutTask]] = {}
        for queue, engine in ((self._lonely, self._idle), (self._queue, self._roomiest)):
            while queue and (load := engine()):
                entry = self._entries.get(heapq.heappop(queue)[2])
                if entry is None or entry.engine is not None:
                    continue  # cancelled since it was queued, or queued twice
                self._start(entry, load, now)
                orders.setdefault(load.name, []).append(entry.task)
        if not self.waiting:
            self._queue.clear()
            self._lonely.clear()
        self._check()
        return orders

    def progressed(self, task_id: int, engine: str, finished: int, now: float) -> None:
        """So many of the task's rollouts are finished by now: that makes room. Ignored if it is not this engine's."""
        entry = self._entries.get(task_id)
        if entry is None or entry.engine != engine:
            return
        load = self._engines[engine]
        load.progress = now
        self._lighten(load, entry, max(0, entry.left - (entry.task.rollouts - finished)))

    def done(self, task_id: int, engine: str, now: float) -> RolloutTask | None:
        """The engine delivered the task; None if the task is no longer this engine's (a late answer: ignore it)."""
        entry = self._entries.get(task_id)
        if entry is None or entry.engine != engine:
            return None
        self._engines[engine].progress = now
        self._end(entry, Ending.DONE)
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
        if load is None or load.progress + load.patience > now:
            return []
        entries = [self._entries[task_id] for task_id in sorted(load.tasks)]
        return [entry.task for entry in entries if max(entry.started, load.progress) + entry.task.timeout_s <= now]

    def _by_itself(self, entry: _Entry) -> bool:
        return 2 <= entry.attempts == self.max_attempts - 1

    def _wait(self, entry: _Entry) -> None:
        queue = self._lonely if self._by_itself(entry) else self._queue
        heapq.heappush(queue, (entry.priority, -entry.task.expected_tokens, entry.task.id))
        self.waiting += 1

    def _start(self, entry: _Entry, load: _Load, now: float) -> None:
        if not load.tasks:
            load.progress = now
        load.tasks.add(entry.task.id)
        load.alone = self._by_itself(entry)
        load.patience = min(load.patience, entry.task.timeout_s)
        load.rollouts += entry.task.rollouts
        load.work += expected_work(entry.task)
        entry.engine, entry.started, entry.left = load.name, now, entry.task.rollouts
        entry.attempts += 1
        self.waiting -= 1
        self.running += 1
        self._offer(load)

    def _lighten(self, load: _Load, entry: _Entry, rollouts: int) -> None:
        """So many rollouts of the task have left the engine's hands."""
        entry.left -= rollouts
        load.rollouts -= rollouts
        load.work = load.work - rollouts * entry.task.expected_tokens if load.rollouts else 0.0  # no rounding stays
        self._offer(load)

    def _leave(self, entry: _Entry) -> None:
        """Takes a running task from its engine, which may be gone."""
        load = self._engines.get(entry.engine or "")
        if load:
            load.tasks.discard(entry.task.id)
            load.alone = load.alone and bool(load.tasks)
            self._lighten(load, entry, entry.left)
        entry.engine = None
        self.running -= 1

    def _retry(self, entry: _Entry) -> bool:
        """Queue the task again, or end it as failed when it is out of attempts."""
        if entry.attempts >= self.max_attempts:
            self._end(entry, Ending.FAILED)
            return False
        self._leave(entry)
        self._wait(entry)
        self.retried += 1
        self._check()
        return True

    def _end(self, entry: _Entry, ending: Ending) -> None:
        if entry.engine is not None:
            self._leave(entry)
        else:
            self.waiting -= 1
        del self._entries[entry.task.id]
        self.rollouts -= entry.task.rollouts
        self.ended[ending] += 1
        self._ended += 1
        self._check()

    # -- engines with room, least work first: a heap whose outdated entries are dropped when they come up ---------------

    def _offer(self, load: _Load) -> None:
        """The engine's load, capacity or hold has changed."""
        self._numbers += 1
        load.offer = self._numbers
        if load.room:
            heapq.heappush(self._offers, (load.work, load.name, load.offer))
        if len(self._offers) > 2 * len(self._engines) + 16:
            self._offers = [(one.work, one.name, one.offer) for one in self._engines.values() if one.room]
            heapq.heapify(self._offers)

    def _idle(self) -> _Load | None:
        return next((load for load in self._engines.values() if not (load.tasks or load.held)), None)

    def _roomiest(self) -> _Load | None:
        while self._offers:
            _, name, number = self._offers[0]
            load = self._engines.get(name)
            if load is not None and load.offer == number:
                return load
            heapq.heappop(self._offers)
        return None

    def _check(self) -> None:
        assert self.submitted == self.waiting + self.running + self._ended, "a rollout task was lost or ended twice"
        assert self.waiting + self.running == len(self._entries), "a rollout task is neither waiting nor running"
