"""Calls run in the order of their admission, off the event loop; those that would wait too long are refused before any work."""

from __future__ import annotations

import asyncio
import heapq
import math
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.serve.gate import Refusal
from kray.serve.work_queue import FIRST_GUESS_S, MOST_RETRY_S, Expected, RetryTimes, WorkQueue

EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.001, 5)), max_size=30)


@given(events=EVENTS)
@settings(max_examples=200)
def test_expected_wait_is_that_of_what_has_not_ended(events):
    """0 exactly when nothing waits or runs; never negative."""
    expected, now = Expected(), 0.0
    for kind, _ in events:
        expected.admitted(kind)
    for number, (kind, took) in enumerate(events):
        assert expected.wait_s(now) > 0
        if number % 5 == 4:
            expected.given_up(kind)
            continue
        expected.begun(kind, now)
        assert expected.wait_s(now + took) >= 0
        now += took
        expected.ended(now)
    assert expected.wait_s(now) == 0


def test_expectation_follows_what_calls_take():
    expected = Expected()
    assert expected.typical_s("a") == FIRST_GUESS_S
    for number in range(30):
        expected.admitted("a")
        expected.begun("a", number)
        expected.ended(number + 0.5)
    assert expected.typical_s("a") == pytest.approx(0.5)
    assert expected.typical_s("b") == FIRST_GUESS_S
    expected.admitted("a")
    expected.begun("a", 100.0)
    assert expected.wait_s(100.2) == pytest.approx(0.3)
    # Longer than usual: as long again.
    assert expected.wait_s(104.0) == pytest.approx(4.0)


def test_calls_run_in_order_and_one_at_a_time():
    running, seen = [], []

    def call(number: int) -> int:
        running.append(number)
        assert len(running) == 1
        time.sleep(0.001)
        seen.append(running.pop())
        return number

    async def scenario():
        queue = WorkQueue({"a": 100.0})
        results = await asyncio.gather(*(queue.run("a", call, number) for number in range(50)))
        queue.close()
        return results

    assert asyncio.run(scenario()) == list(range(50)) == seen


def test_refusals_are_immediate_while_a_call_computes():
    """The loop answers while the thread never waits; what would wait too long is refused and not carried out."""
    release, carried_out = threading.Event(), []

    def compute() -> None:
        while not release.is_set():
            sum(range(1000))

    async def scenario():
        queue = WorkQueue({"slow": 0.4, "quick": 0.0})
        slow = asyncio.ensure_future(queue.run("slow", compute))
        await asyncio.sleep(0.05)
        took = []
        for _ in range(20):
            begun = time.monotonic()
            with pytest.raises(Refusal) as caught:
                await queue.run("quick", carried_out.append, 1)
            took.append(time.monotonic() - begun)
            assert (caught.value.status, caught.value.reason) == (429, "queue")
            assert caught.value.retry_after_s >= 1
            with pytest.raises(Refusal):
                queue.check("quick")
        release.set()
        await slow
        await queue.run("quick", carried_out.append, 2)
        queue.close()
        return took

    took = asyncio.run(scenario())
    assert sorted(took)[10] < 0.1
    assert carried_out == [2]


def test_call_of_a_client_that_left_is_not_carried_out():
    release, carried_out = threading.Event(), []

    async def scenario():
        queue = WorkQueue({"a": 10.0})
        first = asyncio.ensure_future(queue.run("a", release.wait, 30))
        await asyncio.sleep(0.02)
        second = asyncio.ensure_future(queue.run("a", carried_out.append, 2))
        await asyncio.sleep(0)
        second.cancel()
        third = asyncio.ensure_future(queue.run("a", carried_out.append, 3))
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(first, third)
        queue.check("a")
        # Nothing is counted that is not there any more.
        assert queue._expected.wait_s(time.monotonic()) == 0
        queue.close()

    asyncio.run(scenario())
    assert carried_out == [3]


def test_error_of_a_call_reaches_its_caller_and_no_other():
    def fail() -> None:
        raise ValueError("inside")

    async def scenario():
        queue = WorkQueue({"a": 10.0})
        found = await asyncio.gather(queue.run("a", fail), queue.run("a", int, "7"), return_exceptions=True)
        queue.close()
        return found

    failed, fine = asyncio.run(scenario())
    assert isinstance(failed, ValueError)
    assert fine == 7


@pytest.mark.parametrize("clients", [1, 20, 200])
def test_who_is_refused_comes_back_so_late_that_refusals_do_not_outnumber_admissions_by_far(clients):
    """Clients that all want to begin at once; a call takes 0.1 s and may wait for 0.4, a refusal takes 4 ms."""
    retries, arrivals, now = RetryTimes(), [(0.0, number) for number in range(clients)], 0.0
    free_at, answered, refusals, admissions = 0.0, 0.0, [], []
    while now < 120:
        now, number = heapq.heappop(arrivals)
        if free_at - now <= 0.4:
            free_at = max(free_at, now) + 0.1
            admissions.append(now)
            retries.admitted()
            heapq.heappush(arrivals, (free_at, number))
        else:
            refusals.append(now)
            answered = max(answered, now) + 0.004
            wait_s = math.ceil(retries.refused(now))
            assert 1 <= wait_s <= MOST_RETRY_S
            heapq.heappush(arrivals, (answered + wait_s, number))
    refused, admitted = (sum(20 <= at < 120 for at in found) for found in (refusals, admissions))
    assert refused <= 5 * admitted
    assert admitted > 900 or clients == 1, "nothing was done while clients waited"
