"""Admission prompts: nobody is offered twice in a step, nobody waits beyond the bound, and a saved state goes on exactly."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.prompts.admission import Admission
from kray.prompts.sampler import PromptSampler


def waiting(prompts, candidates, max_wait, seed=0):
    return Admission(PromptSampler([str(i) for i in range(prompts)], 1, seed), candidates, max_wait)


@given(st.integers(1, 40), st.data(), st.integers(0, 6), st.integers(0, 2**32))
@settings(max_examples=100)
def test_nobody_waits_beyond_the_bound(prompts, data, max_wait, seed):
    candidates = data.draw(st.integers(1, prompts))
    one, rng = waiting(prompts, candidates, max_wait), np.random.default_rng(seed)
    first: dict[int, int] = {}
    for step in range(60):
        offered, due = one.offer(step)
        assert (offered, due) == one.offer(step)
        assert len(set(offered)) == len(offered) == candidates
        for index in offered:
            first.setdefault(index, step)
        chosen = [i for i, must in zip(offered, due, strict=True) if must or rng.random() < 0.3]
        one.visited(step, chosen)
        for index in chosen:
            assert step - first.pop(index) <= max_wait
        assert all(step - since < max_wait for since in first.values())
        if step == 30:
            other = waiting(prompts, candidates, max_wait)
            other.load_dict(json.loads(json.dumps(one.to_dict())))
            one = other
    assert one.metrics()["prompts/longest_wait"] <= max_wait


@given(st.integers(1, 40), st.data(), st.integers(0, 6), st.integers(1, 5), st.booleans())
@settings(max_examples=100)
def test_where_few_can_be_due_those_that_waited_longest_come_first(prompts, data, max_wait, most_due, new_ones_first):
    candidates = data.draw(st.integers(1, prompts))
    stream = PromptSampler([str(i) for i in range(prompts)], 1, 0)
    one = Admission(stream, candidates, max_wait, most_due)
    first: dict[int, int] = {}
    for step in range(60):
        offered, due = one.offer(step)
        for index in offered:
            first.setdefault(index, step)
        chosen = [index for index, must in zip(offered, due, strict=True) if must]
        assert chosen == [i for i in offered[:most_due] if step - first[i] >= max_wait]
        # what the budget pays for besides, at the worst the newest
        free = [i for i in offered if i not in chosen]
        chosen += free[::-1][: most_due - len(chosen)] if new_ones_first else free[: most_due - len(chosen)]
        one.visited(step, chosen)
        for index in chosen:
            assert step - first.pop(index) <= max_wait + (candidates - 1) // most_due


def test_all_visited_is_the_plain_stream():
    one, stream = waiting(10, 4, 3), PromptSampler([str(i) for i in range(10)], 1, 0)
    seen = []
    for step in range(5):
        offered, due = one.offer(step)
        assert not any(due)
        one.visited(step, offered)
        seen += offered
    assert sorted(seen[:8]) == sorted(stream.take(i)[0] for i in range(8))
    assert one.longest_wait == 0


def test_what_is_refused():
    one = waiting(10, 4, 1)
    offered, _ = one.offer(0)
    with pytest.raises(ValueError, match="not been offered"):
        one.visited(0, [next(i for i in range(10) if i not in offered)])
    one.visited(0, offered[1:])
    assert one.offer(1)[1][0]
    with pytest.raises(ValueError, match="due"):
        one.visited(1, [])
    for arguments in ((0, 1), (11, 1), (4, -1)):
        with pytest.raises(ValueError, match=r"candidates|max_wait"):
            waiting(10, *arguments)
    with pytest.raises(ValueError, match="stream"):
        Admission(PromptSampler(list("abcd"), 2, 0), 2, 1)
    with pytest.raises(ValueError, match="version"):
        one.load_dict({})


@given(st.integers(1, 30), st.data(), st.integers(0, 2**32))
@settings(max_examples=100)
def test_other_bounds_are_taken_up_at_once(prompts, data, seed):
    one = waiting(prompts, data.draw(st.integers(1, prompts)), data.draw(st.integers(0, 6)))
    rng, lateness = np.random.default_rng(seed), 0
    for step in range(40):
        if step in (10, 20):
            other = waiting(prompts, data.draw(st.integers(1, prompts)), data.draw(st.integers(0, 6)))
            other.load_dict(json.loads(json.dumps(one.to_dict())))
            one, lateness = other, len(one.to_dict()["since"])
        offered, due = one.offer(step)
        assert len(offered) == one.candidates
        since = dict(one.to_dict()["since"])
        assert due == [step - since[index] >= one.max_wait for index in offered]
        one.visited(step, [i for i, must in zip(offered, due, strict=True) if must or rng.random() < 0.2])
    # what waits is at most what a step offers, once those that waited under wider bounds have had their turn
    assert step - 20 < lateness or len(one.to_dict()["since"]) <= one.candidates


def test_a_stream_is_gone_on_with_where_nobody_waited():
    one, stream = waiting(10, 4, 3), PromptSampler([str(i) for i in range(10)], 1, 0)
    one.skip(6)
    assert one.offer(3)[0] == [stream.take(i)[0] for i in range(6, 10)]
