"""Laws of the schedule and of an engine's health."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.records import RolloutTask, Sampling
from kray.rollout.health import Health, State
from kray.rollout.parts import largest_part, split_rollouts
from kray.rollout.scheduler import Ending, Schedule, expected_work


def task(number: int, rollouts: int = 1, tokens: float = 10.0, timeout_s: float = 60.0) -> RolloutTask:
    return RolloutTask(number, f"p{number}", (1,), rollouts, 0, 0, 0, Sampling(16), timeout_s, tokens)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "up", "down", "done", "refused", "cancel", "dispatch", "late done", "hold", "free", "progress"]
        ),
        st.integers(0, 7),
        st.integers(1, 40),
    ),
    max_size=120,
)


class Reference:
    """A model of the schedule, from its calls and results; `dispatch` checks the laws of every dispatch."""

    def __init__(self, attempts: int):
        self.schedule = Schedule(attempts)
        self.tasks: dict[int, tuple[RolloutTask, int]] = {}  # those that wait or run, with their priority
        self.hands: dict[str, dict[int, int]] = {}  # engine -> task -> unfinished rollouts
        self.held: set[str] = set()
        self.ended: list[int] = []
        self.attempts = attempts
        self.tries: dict[int, int] = {}  # task -> times that it was sent

    def must_run_alone(self, task_id: int, tries: int = 0) -> bool:
        """Whether the try after so many (default: those there were) shares its engine with no other task."""
        return 2 <= (tries or self.tries.get(task_id, 0)) == self.attempts - 1

    @property
    def waiting(self) -> set[int]:
        return self.tasks.keys() - {task_id for hand in self.hands.values() for task_id in hand}

    def end(self, *task_ids: int) -> None:
        for task_id in task_ids:
            self.ended.append(task_id)
            del self.tasks[task_id]
            for hand in self.hands.values():
                hand.pop(task_id, None)

    def takes_tasks(self, engine: str, capacity: int | None) -> bool:
        rollouts = sum(self.hands[engine].values())
        hand = self.hands[engine]
        if any(self.must_run_alone(task_id, self.tries[task_id] - 1) for task_id in hand):
            assert len(hand) == 1, "an isolated task shares its engine"
            return False
        return engine not in self.held and (capacity is None or rollouts == 0 or rollouts < capacity)

    def dispatch(self, now: float, capacity: int | None) -> None:
        waited = self.waiting
        orders = self.schedule.dispatch(now)
        sent = [task for tasks in orders.values() for task in tasks]
        assert len({task.id for task in sent}) == len(sent)
        assert {task.id for task in sent} <= waited, "a task that did not wait was sent"
        assert not orders.keys() & self.held, "a held engine got a task"
        for engine, tasks in orders.items():
            assert [self.rank(task.id) for task in tasks] == sorted(self.rank(task.id) for task in tasks)
            for task in tasks:
                assert self.takes_tasks(engine, capacity), "an engine over capacity got a task"
                assert not (self.must_run_alone(task.id) and self.hands[engine]), "it must run alone"
                self.hands[engine][task.id] = task.rollouts
                self.tries[task.id] = self.tries.get(task.id, 0) + 1
        usual = [task.id for task in sent if not self.must_run_alone(task.id, self.tries[task.id] - 1)]
        waiting = {task_id for task_id in self.waiting if not self.must_run_alone(task_id)}
        if usual and waiting:
            assert max(map(self.rank, usual)) < min(map(self.rank, waiting)), "priorities inverted"
        if waiting:
            assert not [name for name in self.hands if self.takes_tasks(name, capacity)], (
                "an engine idles while tasks wait"
            )
        if self.waiting - waiting:
            assert all(self.hands[name] or name in self.held for name in self.hands), "an engine that is empty"

    def rank(self, task_id: int) -> tuple[int, float, int]:
        task, priority = self.tasks[task_id]
        return priority, -task.expected_tokens, task_id

    def check(self) -> None:
        """Its counters equal a recount."""
        schedule = self.schedule
        assert schedule.running == sum(map(len, self.hands.values()))
        assert schedule.waiting == len(self.waiting)
        assert schedule.submitted == schedule.waiting + schedule.running + len(self.ended)
        assert len(self.ended) == len(set(self.ended)) == sum(schedule.ended.values())
        for name, hand in self.hands.items():
            assert schedule.load(name) == sum(hand.values())


@settings(max_examples=400)
@given(events=EVENTS, capacity=st.one_of(st.none(), st.integers(1, 50)), attempts=st.integers(1, 3))
def test_every_task_ends_once_and_no_engine_idles(events, capacity, attempts):
    reference = Reference(attempts)
    schedule = reference.schedule
    for now, (event, which, size) in enumerate(events):
        name = f"e{which % 3}"
        hand = reference.hands.get(name, {})
        mine = sorted(hand)[which % len(hand)] if hand else None
        if event == "submit":
            number = schedule.submitted
            reference.tasks[number] = (task(number, size, tokens=float(1 + size * which % 5)), which % 3)
            schedule.submit([reference.tasks[number][0]], priority=which % 3)
        elif event == "up" and name not in reference.hands:
            schedule.engine_up(name, capacity)
            reference.hands[name] = {}
        elif event == "down" and name in reference.hands:
            lost = schedule.engine_down(name)
            del reference.hands[name]
            reference.held.discard(name)
            reference.end(*(one.id for one in lost))
        elif event in ("hold", "free") and name in reference.hands:
            schedule.hold(name, event == "hold")
            (reference.held.add if event == "hold" else reference.held.discard)(name)
        elif event == "progress" and mine is not None:
            finished = min(size, reference.tasks[mine][0].rollouts)
            schedule.progressed(mine, name, finished, float(now))
            hand[mine] = min(hand[mine], reference.tasks[mine][0].rollouts - finished)
        elif event == "done" and mine is not None:
            assert schedule.done(mine, name, float(now)).id == mine
            reference.end(mine)
        elif event == "refused" and mine is not None:
            assert schedule.refused(mine, name).id == mine
            reference.end(mine)
        elif event == "cancel" and size in reference.tasks:
            orders = schedule.cancel([size])
            assert orders == {engine: [size] for engine, tasks in reference.hands.items() if size in tasks}
            reference.end(size)
        elif event == "late done" and reference.ended:
            assert schedule.done(reference.ended[0], name, float(now)) is None
            schedule.progressed(reference.ended[0], name, 1, float(now))
        if which % 2 or event == "dispatch":  # several events may come between two dispatches
            reference.dispatch(float(now), capacity)
        reference.check()
    for name in list(reference.hands):
        reference.end(*(lost.id for lost in schedule.engine_down(name)))
        del reference.hands[name]
    reference.check()
    schedule.cancel(range(schedule.submitted))
    assert sum(schedule.ended.values()) == schedule.submitted
    assert schedule.waiting == schedule.running == 0


def test_longest_rollouts_go_to_the_least_loaded_engine():
    schedule = Schedule(1)
    schedule.engine_up("a", 8)
    schedule.engine_up("b", 8)
    work = [task(0, 4, 10), task(1, 4, 30), task(2, 2, 10), task(3, 8, 20), task(4, 4, 25)]
    schedule.submit(work)
    orders = schedule.dispatch(0.0)
    assert [one.id for one in orders["b"]] == [4, 3]  # 100 tokens, less than the 120 of a, so the next one too: full
    assert [one.id for one in orders["a"]] == [1, 0]  # full
    schedule.done(4, "b", 1.0)
    assert schedule.dispatch(1.0) == {}
    schedule.done(1, "a", 1.0)
    assert [one.id for one in schedule.dispatch(1.0)["a"]] == [2]
    assert expected_work(work[3]) == 160


def test_lower_priority_starts_first_without_preemption():
    schedule = Schedule(1)
    schedule.engine_up("a", 4)
    schedule.submit([task(0, 4, 99), task(1, 4, 99)], priority=1)
    assert [one.id for one in schedule.dispatch(0.0)["a"]] == [0]
    schedule.submit([task(2, 4, 1)])
    assert schedule.dispatch(1.0) == {}
    schedule.done(0, "a", 2.0)
    assert [one.id for one in schedule.dispatch(2.0)["a"]] == [2]
    schedule.done(2, "a", 3.0)
    assert [one.id for one in schedule.dispatch(3.0)["a"]] == [1]


def test_held_engine_gets_no_tasks_until_released():
    schedule = Schedule(1)
    schedule.engine_up("a", 8)
    schedule.submit([task(0, 2), task(1, 2)])
    schedule.dispatch(0.0)
    schedule.hold("a", True)
    schedule.submit([task(2, 2)])
    assert schedule.dispatch(1.0) == {}
    assert schedule.done(0, "a", 2.0).id == 0
    assert schedule.dispatch(2.0) == {}
    assert (schedule.load("a"), schedule.waiting) == (2, 1)
    schedule.hold("a", False)
    assert [one.id for one in schedule.dispatch(3.0)["a"]] == [2]
    with pytest.raises(ValueError, match="engine b is not up"):
        schedule.hold("b", True)


def test_finished_rollouts_free_capacity():
    schedule = Schedule(2)
    schedule.engine_up("a", 8)
    schedule.submit([task(0, 8, 20), task(1, 8, 10)])
    assert [one.id for one in schedule.dispatch(0.0)["a"]] == [0]
    schedule.progressed(0, "a", 3, 1.0)
    schedule.progressed(0, "a", 2, 1.0)  # an older report that came late
    assert schedule.load("a") == 5
    assert [one.id for one in schedule.dispatch(1.0)["a"]] == [1]
    schedule.engine_down("a")
    schedule.engine_up("b", 8)
    schedule.dispatch(2.0)
    schedule.progressed(0, "a", 8, 3.0)
    assert schedule.load("b") == 8  # the whole task starts anew


def test_idle_engine_takes_tasks_above_capacity():
    schedule = Schedule(1)
    schedule.submit([task(0, 100), task(1, 1)])
    schedule.engine_up("a", 10)
    assert [one.id for one in schedule.dispatch(0.0)["a"]] == [0]
    schedule.engine_up("b", None)
    schedule.submit([task(number, 50) for number in range(2, 9)])
    assert len(schedule.dispatch(0.0)["b"]) == 8


def test_task_is_retried_until_attempts_are_used_up():
    schedule = Schedule(2)
    schedule.submit([task(0)])
    for attempt in range(2):
        schedule.engine_up("a", 4)
        assert schedule.dispatch(0.0)["a"][0].id == 0
        assert [lost.id for lost in schedule.engine_down("a")] == ([] if attempt == 0 else [0])
    assert schedule.ended[Ending.FAILED] == 1
    assert schedule.retried == 1


def test_overdue_tasks_by_engine():
    schedule = Schedule(1)
    schedule.engine_up("a", None)
    schedule.submit([task(0, timeout_s=5.0), task(1, timeout_s=50.0)])
    schedule.dispatch(100.0)
    assert schedule.overdue("a", 104.9) == []
    assert [one.id for one in schedule.overdue("a", 105.0)] == [0]
    assert schedule.overdue("unknown", 105.0) == []
    schedule.done(1, "a", 104.0)  # an engine that delivers is not late with what waits inside it
    assert schedule.overdue("a", 108.9) == []
    assert [one.id for one in schedule.overdue("a", 109.0)] == [0]


def test_a_long_response_is_not_late_while_tokens_come():
    schedule = Schedule(1)
    schedule.engine_up("a", None)
    schedule.submit([task(0, timeout_s=5.0)])
    schedule.dispatch(100.0)
    for now in range(102, 130, 4):
        schedule.sampled("a", float(now))
        schedule.sampled("unknown", float(now))
        assert schedule.overdue("a", now + 4.9) == []
    assert [one.id for one in schedule.overdue("a", now + 5.0)] == [0]


def test_late_result_of_a_moved_task_is_ignored():
    schedule = Schedule(2)
    schedule.engine_up("a", None)
    schedule.submit([task(0)])
    schedule.dispatch(0.0)
    schedule.engine_down("a")
    schedule.engine_up("b", None)
    schedule.dispatch(1.0)
    assert schedule.done(0, "a", 2.0) is None
    assert schedule.done(0, "b", 2.0).id == 0


@given(rollouts=st.integers(0, 500), largest=st.integers(1, 64))
def test_split_covers_the_group_evenly(rollouts, largest):
    parts = split_rollouts(rollouts, largest)
    assert [first for first, _ in parts] == [sum(count for _, count in parts[:i]) for i in range(len(parts))]
    assert sum(count for _, count in parts) == rollouts
    assert len(parts) == -(-rollouts // largest)
    if parts:
        counts = [count for _, count in parts]
        assert max(counts) - min(counts) <= 1
        assert 1 <= min(counts) <= max(counts) <= largest


@given(rollouts=st.integers(0, 10**5), engines=st.integers(1, 1000), most=st.integers(1, 64))
def test_more_engines_split_finer_down_to_pairs(rollouts, engines, most):
    largest = largest_part(rollouts, engines, most)
    assert min(2, most) <= largest <= most
    assert largest_part(rollouts, engines + 1, most) <= largest <= largest_part(rollouts + 1, engines, most)
    if largest > 2:
        assert largest <= rollouts / engines / 8 + 0.5


def test_engine_serves_only_proved_versions():
    health = Health(max_restarts=2)
    health.mark_needed()
    with pytest.raises(ValueError, match="starting cannot become serving"):
        health.mark_proved(0)
    health.mark_started()
    health.mark_proved(3)
    health.mark_stale()
    assert health.state is State.STALE
    with pytest.raises(ValueError, match="cannot go back from version 3 to 2"):
        health.mark_proved(2)
    health.mark_proved(4)
    health.mark_lost("killed")
    assert (health.state, health.version) == (State.DEAD, -1)
    assert health.plan_restart() == 0.0  # it had served: no reason to wait
    health.mark_lost("again, before it served")
    assert health.plan_restart() == 2.0
    health.mark_lost("once more")
    assert health.plan_restart() is None
    assert health.state is State.GONE


def test_preemptions_cost_no_restart():
    health = Health(max_restarts=0)
    with pytest.raises(ValueError, match="resting cannot rest"):
        health.mark_resting()
    health.mark_needed()
    health.mark_started()
    health.mark_proved(5)
    health.mark_resting()
    assert (health.state, health.version) == (State.RESTING, -1)
    health.mark_needed()
    for _ in range(3):
        health.mark_lost("its node was taken", preempted=True)
        assert health.plan_restart() is not None
    assert health.restarts == 0
    health.mark_lost("killed")
    assert health.plan_restart() is None
