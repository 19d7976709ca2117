"""Assigns rollout tasks to engines.

Pure: owns no actor, thread or clock; `now` (seconds, monotonic) is passed to every call that needs it.
Every task accepted by `submit` ends in exactly one of `done`, `failed`, `cancelled`:
submitted == waiting + running + ended, checked after every event.

- Tasks are started by priority, the lowest number first, then by expected tokens of a rollout, the longest first, so that
  those started last end soon. Each task goes to the engine with the least expected work.
- An engine takes tasks while it holds fewer unfinished rollouts than its capacity, which leaves later decisions to whichever
  engine is free first. An engine without work takes a task of any size, a held one takes none.
- While a task waits, no engine can take one.
- A task that was lost with two engines or more makes its last attempt alone on an engine, so that a prompt that crashes
  engines is identified without losing other tasks. Such tasks go first, to engines without tasks.
- A prompt is identified when a task of it is lost alone: its other tasks that wait fail with it, and the losses on the way
  are not held against the engines (crashes.py).
- An event costs O(log tasks + log engines).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from kray.records import RolloutTask
from kray.rollout.crashes import Crashes


class Ending(Enum):
    """How a task ended."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class _Entry:
    task: RolloutTask
    priority: int
    attempts: int = 0
    # Numbers of the losses of engines that it was lost with.
    losses: list[int] = field(default_factory=list)
    # None while the task waits.
    engine: str | None = None
    # Start of the current attempt, monotonic s.
    started: float = 0.0
    # Rollouts that the engine has not finished.
    left: int = 0


@dataclass(slots=True)
class _Load:
    """What an engine holds.

    Attributes:
        name: The engine.
        capacity: Unfinished rollouts below which it takes tasks; None: it takes all.
        held: It takes no tasks for now.
        isolated: It holds a task that must run alone.
        tasks: Ids of its tasks.
        rollouts: Unfinished rollouts of its tasks.
        work: Expected tokens of these.
        last_progress: When it last sampled a token, delivered something or began to work, monotonic s.
        min_timeout_s: Shortest timeout of the tasks that it has held.
        offer: Number of its newest offer; older ones are void.
    """

    name: str
    capacity: int | None
    held: bool = False
    isolated: bool = False
    tasks: set[int] = field(default_factory=set)
    rollouts: int = 0
    work: float = 0.0
    last_progress: float = 0.0
    min_timeout_s: float = float("inf")
    offer: int = 0

    @property
    def takes_tasks(self) -> bool:
        below = self.capacity is None or self.rollouts == 0 or self.rollouts < self.capacity
        return below and not (self.held or self.isolated)


def expected_work(task: RolloutTask) -> float:
    """Return the response tokens that the task is expected to generate."""
    return task.rollouts * task.expected_tokens


class Schedule:
    """All tasks and engines of a pool; see the module's docstring.

    Attributes:
        max_attempts: Starts of a task after which it has failed.
        submitted: Tasks accepted so far.
        waiting: Tasks that wait for an engine.
        running: Tasks that an engine holds.
        retried: Times that a task was queued again.
        rollouts: Rollouts of all tasks that have not ended.
        ended: Tasks by how they ended.
        crashes: Losses of engines that were the fault of a prompt.
    """

    def __init__(self, max_attempts: int):
        """Create a schedule without tasks and engines."""
        self.max_attempts = max_attempts
        self.submitted = self.waiting = self.running = self.retried = self.rollouts = 0
        self.ended = dict.fromkeys(Ending, 0)
        self._ended = 0
        self._entries: dict[int, _Entry] = {}
        # Heap of (priority, -expected tokens of a rollout, task id).
        self._queue: list[tuple[int, float, int]] = []
        # The same for tasks that must run alone.
        self._isolated: list[tuple[int, float, int]] = []
        self._engines: dict[str, _Load] = {}
        # Heap of (work, engine, number): one valid offer of each engine that takes tasks, and void ones.
        self._offers: list[tuple[float, str, int]] = []
        self._offers_made = 0
        self.crashes = Crashes()

    def load(self, engine: str) -> int:
        """Return the unfinished rollouts that the engine holds."""
        return self._engines[engine].rollouts if engine in self._engines else 0

    def holding(self, engine: str) -> tuple[int, int]:
        """Return (tasks, unfinished rollouts) that the engine holds; safe to call from another thread."""
        load = self._engines.get(engine)
        return (len(load.tasks), load.rollouts) if load else (0, 0)

    def holds(self, task_id: int) -> bool:
        """Return whether the task was accepted and has not ended."""
        return task_id in self._entries

    def engine_up(self, engine: str, capacity: int | None) -> None:
        """Add an engine.

        Args:
            engine: Its name.
            capacity: Unfinished rollouts below which it takes tasks; None: it takes all.

        Raises:
            ValueError: The engine is up already.
        """
        if engine in self._engines:
            raise ValueError(f"engine {engine} is already up")
        self._engines[engine] = _Load(engine, capacity)
        self._offer(self._engines[engine])

    def is_up(self, engine: str) -> bool:
        """Return whether the engine was added and not removed."""
        return engine in self._engines

    def engine_down(self, engine: str, forgive: bool = False) -> list[RolloutTask]:
        """Remove an engine and queue its tasks again.

        Args:
            engine: Its name; unknown ones are ignored.
            forgive: The lost attempt does not count.

        Returns:
            Tasks that have failed because they are out of attempts, or with another task of their prompt.
        """
        load = self._engines.pop(engine, None)
        lost = [self._entries[task_id] for task_id in sorted(load.tasks)] if load else []
        number = None if forgive or not lost else self.crashes.lost(engine)
        for entry in lost:
            if number is None:
                entry.attempts -= 1
            else:
                entry.losses.append(number)
        failed = [entry for entry in lost if not self._retry(entry)]
        if load and load.isolated and failed:
            failed += self._identify(failed[0], engine)
        return [entry.task for entry in failed]

    def _identify(self, guilty: _Entry, engine: str) -> list[_Entry]:
        """End the waiting tasks of a prompt that was lost alone on an engine; return them."""
        prompt_id = guilty.task.prompt_id
        same = [e for e in self._entries.values() if e.task.prompt_id == prompt_id and e.engine is None]
        for entry in same:
            self._end(entry, Ending.FAILED)
        losses = [number for entry in (guilty, *same) for number in entry.losses]
        self.crashes.identified(prompt_id, losses, engine)
        return same

    def hold(self, engine: str, held: bool) -> None:
        """Hold an engine, which then keeps its tasks and gets no new ones, or release it.

        Raises:
            ValueError: The engine is not up.
        """
        if engine not in self._engines:
            raise ValueError(f"engine {engine} is not up")
        self._engines[engine].held = held
        self._offer(self._engines[engine])

    def submit(self, tasks: Iterable[RolloutTask], priority: int = 0) -> None:
        """Accept tasks; of those that wait, the lowest priority starts first, and a running task is never interrupted.

        Raises:
            ValueError: A task has the id of one that has not ended.
        """
        for task in tasks:
            if task.id in self._entries:
                raise ValueError(f"task {task.id} was submitted before")
            entry = self._entries[task.id] = _Entry(task, priority)
            self.submitted += 1
            self.rollouts += task.rollouts
            self._wait(entry)
        self._check()

    def dispatch(self, now: float) -> dict[str, list[RolloutTask]]:
        """Assign waiting tasks to engines that take them.

        Returns:
            Engine -> the tasks to send to it, in this order.
        """
        orders: dict[str, list[RolloutTask]] = {}
        for queue, next_engine in ((self._isolated, self._idle), (self._queue, self._least_loaded)):
            while queue and (load := next_engine()):
                entry = self._entries.get(heapq.heappop(queue)[2])
                if entry is None or entry.engine is not None:
                    continue  # cancelled since it was queued, or queued twice
                self._start(entry, load, now)
                orders.setdefault(load.name, []).append(entry.task)
        if not self.waiting:
            self._queue.clear()
            self._isolated.clear()
        self._check()
        return orders

    def progressed(self, task_id: int, engine: str, finished: int, now: float) -> None:
        """Record how many of the task's rollouts are finished so far; ignored if the task is not this engine's."""
        entry = self._entries.get(task_id)
        if entry is None or entry.engine != engine:
            return
        load = self._engines[engine]
        load.last_progress = now
        self._reduce(load, entry, max(0, entry.left - (entry.task.rollouts - finished)))

    def sampled(self, engine: str, now: float) -> None:
        """Record that the engine has sampled tokens, of rollouts that may not have ended."""
        if load := self._engines.get(engine):
            load.last_progress = now

    def done(self, task_id: int, engine: str, now: float) -> RolloutTask | None:
        """Record that the engine finished the task.

        Returns:
            The task; None if it is no longer this engine's, so that its result must be ignored.
        """
        entry = self._entries.get(task_id)
        if entry is None or entry.engine != engine:
            return None
        self._engines[engine].last_progress = now
        self.crashes.finished(engine)
        self._end(entry, Ending.DONE)
        return entry.task

    def refused(self, task_id: int, engine: str) -> RolloutTask | None:
        """Record that the engine cannot run the task, nor could any other: it has failed.

        Returns:
            The task; None if it is no longer this engine's.
        """
        entry = self._entries.get(task_id)
        if entry is None or entry.engine != engine:
            return None
        self._end(entry, Ending.FAILED)
        return entry.task

    def cancel(self, task_ids: Iterable[int]) -> dict[str, list[int]]:
        """End tasks that are no longer wanted; unknown ids are ignored.

        Returns:
            Engine -> ids of the tasks that it must drop.
        """
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
        """Return the engine's tasks that are past their deadline.

        A task's time runs only while its engine samples nothing at all: neither long responses nor tasks that wait inside a
        working engine are late.
        """
        load = self._engines.get(engine)
        if load is None or load.last_progress + load.min_timeout_s > now:
            return []
        entries = [self._entries[task_id] for task_id in sorted(load.tasks)]
        return [entry.task for entry in entries if max(entry.started, load.last_progress) + entry.task.timeout_s <= now]

    def _must_run_alone(self, entry: _Entry) -> bool:
        return 2 <= entry.attempts == self.max_attempts - 1

    def _wait(self, entry: _Entry) -> None:
        queue = self._isolated if self._must_run_alone(entry) else self._queue
        heapq.heappush(queue, (entry.priority, -entry.task.expected_tokens, entry.task.id))
        self.waiting += 1

    def _start(self, entry: _Entry, load: _Load, now: float) -> None:
        if not load.tasks:
            load.last_progress = now
        load.tasks.add(entry.task.id)
        load.isolated = self._must_run_alone(entry)
        load.min_timeout_s = min(load.min_timeout_s, entry.task.timeout_s)
        load.rollouts += entry.task.rollouts
        load.work += expected_work(entry.task)
        entry.engine, entry.started, entry.left = load.name, now, entry.task.rollouts
        entry.attempts += 1
        self.waiting -= 1
        self.running += 1
        self._offer(load)

    def _reduce(self, load: _Load, entry: _Entry, rollouts: int) -> None:
        """Take so many rollouts of the task from the engine's load."""
        entry.left -= rollouts
        load.rollouts -= rollouts
        # Exactly 0 without rollouts, so that no rounding accumulates.
        load.work = load.work - rollouts * entry.task.expected_tokens if load.rollouts else 0.0
        self._offer(load)

    def _leave(self, entry: _Entry) -> None:
        """Take a running task from its engine, which may have been removed."""
        load = self._engines.get(entry.engine or "")
        if load:
            load.tasks.discard(entry.task.id)
            load.isolated = load.isolated and bool(load.tasks)
            self._reduce(load, entry, entry.left)
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

    # -- engines that take tasks, least work first: a heap from which void offers are dropped when they surface ----------

    def _offer(self, load: _Load) -> None:
        """Replace the engine's offer after a change of its load or hold."""
        self._offers_made += 1
        load.offer = self._offers_made
        if load.takes_tasks:
            heapq.heappush(self._offers, (load.work, load.name, load.offer))
        if len(self._offers) > 2 * len(self._engines) + 16:
            self._offers = [(one.work, one.name, one.offer) for one in self._engines.values() if one.takes_tasks]
            heapq.heapify(self._offers)

    def _idle(self) -> _Load | None:
        return next((load for load in self._engines.values() if not (load.tasks or load.held)), None)

    def _least_loaded(self) -> _Load | None:
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
