"""Laws of the schedule and of an engine's life."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.records import RolloutTask, Sampling
from kray.rollout.health import Health, State
from kray.rollout.schedule import Ending, Schedule, expected_work, split_rollouts


def task(number: int, rollouts: int = 1, tokens: float = 10.0, timeout_s: float = 60.0) -> RolloutTask:
    return RolloutTask(number, f"p{number}", (1,), rollouts, 0, 0, 0, Sampling(16), timeout_s, tokens)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "up", "down", "done", "refused", "cancel", "dispatch", "late done"]),
        st.integers(0, 7),
        st.integers(1, 40),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(events=EVENTS, capacity=st.one_of(st.none(), st.integers(1, 50)), attempts=st.integers(1, 3))
def test_every_task_ends_exactly_once_whatever_happens(events, capacity, attempts):
    schedule = Schedule(attempts)
    held: dict[str, set[int]] = {}
    ended: list[int] = []
    submitted = 0
    for now, (event, which, size) in enumerate(events):
        name = f"e{which % 3}"
        mine = sorted(held.get(name, ()))
        if event == "submit":
            schedule.submit([task(submitted, size)])
            submitted += 1
        elif event == "up" and name not in held:
            schedule.engine_up(name, capacity)
            held[name] = set()
        elif event == "down" and name in held:
            ended += [lost.id for lost in schedule.engine_down(name)]
            del held[name]
        elif event == "done" and mine:
            assert schedule.done(mine[which % len(mine)], name, float(now)).id == mine[which % len(mine)]
            ended.append(mine[which % len(mine)])
            held[name].discard(ended[-1])
        elif event == "refused" and mine:
            ended.append(schedule.refused(mine[0], name).id)
            held[name].discard(mine[0])
        elif event == "cancel" and submitted and schedule.holds(size % submitted):
            orders = schedule.cancel([size % submitted])
            for engine, ids in orders.items():
                held[engine] -= set(ids)
            ended.append(size % submitted)
        elif event == "late done" and ended:
            assert schedule.done(ended[0], name, float(now)) is None
        for engine, tasks in schedule.dispatch(float(now)).items():
            assert not held[engine] & {one.id for one in tasks}
            held[engine] |= {one.id for one in tasks}
        assert schedule.running == sum(map(len, held.values()))
        assert submitted == schedule.waiting + schedule.running + len(ended)
    assert len(ended) == len(set(ended)) == sum(schedule.ended.values())
    for name in list(held):
        ended += [lost.id for lost in schedule.engine_down(name)]
    schedule.cancel(range(submitted))
    assert sum(schedule.ended.values()) == submitted
    assert schedule.waiting == schedule.running == 0


def test_longest_work_first_to_the_engine_with_least_in_hand():
    schedule = Schedule(1)
    schedule.engine_up("a", 8)
    schedule.engine_up("b", 8)
    work = [task(0, 4, 10), task(1, 4, 30), task(2, 2, 10), task(3, 8, 20), task(4, 4, 20)]
    schedule.submit(work)
    orders = schedule.dispatch(0.0)
    assert [one.id for one in orders["a"]] == [3]  # 160 tokens; it is full then
    assert [one.id for one in orders["b"]] == [1, 4]  # 120, then 80, which fills it
    schedule.done(1, "b", 1.0)
    assert [one.id for one in schedule.dispatch(1.0)["b"]] == [0]
    assert expected_work(work[3]) == 160


def test_an_idle_engine_takes_a_task_larger_than_its_capacity_and_no_capacity_takes_all():
    schedule = Schedule(1)
    schedule.submit([task(0, 100), task(1, 1)])
    schedule.engine_up("a", 10)
    assert [one.id for one in schedule.dispatch(0.0)["a"]] == [0]
    schedule.engine_up("b", None)
    schedule.submit([task(number, 50) for number in range(2, 9)])
    assert len(schedule.dispatch(0.0)["b"]) == 8


def test_a_task_moves_to_another_engine_until_its_attempts_are_used_up():
    schedule = Schedule(2)
    schedule.submit([task(0)])
    for attempt in range(2):
        schedule.engine_up("a", 4)
        assert schedule.dispatch(0.0)["a"][0].id == 0
        assert [lost.id for lost in schedule.engine_down("a")] == ([] if attempt == 0 else [0])
    assert schedule.ended[Ending.FAILED] == 1
    assert schedule.retried == 1


def test_overdue_tasks_are_named_by_engine():
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


def test_an_answer_for_a_task_that_has_moved_on_is_not_taken():
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
def test_parts_cover_the_group_once_and_are_even(rollouts, largest):
    parts = split_rollouts(rollouts, largest)
    assert [first for first, _ in parts] == [sum(count for _, count in parts[:i]) for i in range(len(parts))]
    assert sum(count for _, count in parts) == rollouts
    assert len(parts) == -(-rollouts // largest)
    if parts:
        counts = [count for _, count in parts]
        assert max(counts) - min(counts) <= 1
        assert 1 <= min(counts) <= max(counts) <= largest


def test_an_engine_serves_only_what_it_has_proved():
    health = Health(max_restarts=2)
    health.needed()
    with pytest.raises(ValueError, match="starting cannot become serving"):
        health.proved(0)
    health.started()
    health.proved(3)
    health.outdated()
    assert health.state is State.STALE
    with pytest.raises(ValueError, match="cannot go back from version 3 to 2"):
        health.proved(2)
    health.proved(4)
    health.died("killed")
    assert (health.state, health.version) == (State.DEAD, -1)
    assert health.restart() == 0.0  # it had served: no reason to wait
    health.died("again, before it served")
    assert health.restart() == 2.0
    health.died("once more")
    assert health.restart() is None
    assert health.state is State.GONE


def test_an_engine_that_rests_has_nothing_to_prove_with_and_preemptions_cost_no_restart():
    health = Health(max_restarts=0)
    with pytest.raises(ValueError, match="resting cannot rest"):
        health.rested()
    health.needed()
    health.started()
    health.proved(5)
    health.rested()
    assert (health.state, health.version) == (State.RESTING, -1)
    health.needed()
    for _ in range(3):
        health.died("its node was taken", preempted=True)
        assert health.restart() is not None
    assert health.restarts == 0
    health.died("killed")
    assert health.restart() is None
