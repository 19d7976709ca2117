"""Every prompt is offered in every step, none is passed over beyond the bound, and a saved state goes on exactly."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.prompts.admission import Admission
from kray.prompts.full_admission import FullAdmission
from kray.prompts.sampler import PromptSampler


def waiting(prompts, max_wait=3, most_due=2, seed=0):
    return FullAdmission(PromptSampler([str(i) for i in range(prompts)], 1, seed), max_wait, most_due)


@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 8), st.integers(0, 4), st.integers(0, 2**32))
@settings(max_examples=150)
def test_no_prompt_is_passed_over_beyond_the_bound(prompts, max_wait, most_due, chosen_freely, seed):
    one, rng = waiting(prompts, max_wait, most_due, seed), np.random.default_rng(seed)
    last = np.full(prompts, -1)
    for step in range(80):
        offered, due = one.offer(step)
        assert sorted(offered.tolist()) == list(range(prompts))
        late = step - last[offered] - 1 >= max_wait
        assert due.sum() == min(most_due, late.sum())
        assert late[due].all()
        # those that are due have waited longest
        assert not (late & ~due).any() or last[offered[due]].max() <= last[offered[late & ~due]].min()
        # what the planner chooses besides: always the same few, the worst case for the others
        favourites = rng.permutation(min(prompts, 5))[:chosen_freely]
        visited = np.union1d(offered[due], favourites)
        one.visited(step, visited)
        assert (step - last[visited] - 1 <= max_wait + (prompts - 1) // most_due).all()
        last[visited] = step
        assert (step - last <= max_wait + (prompts - 1) // most_due).all()
        if step == 40:
            other = waiting(prompts, max_wait, most_due, seed)
            other.load_dict(json.loads(json.dumps(one.to_dict())))
            one = other


def test_prompts_are_offered_in_the_order_of_the_stream_and_longest_waits_are_told():
    one, stream = waiting(10), PromptSampler([str(i) for i in range(10)], 1, 0)
    offered, due = one.offer(0)
    assert offered.tolist() == [stream.take(i)[0] for i in range(10)]
    assert not due.any()
    one.visited(0, [4])
    for step in (1, 2):
        one.visited(step, [])
    assert one.offer(3)[0][one.offer(3)[1]].tolist() == [i for i in offered.tolist() if i != 4][:2]
    one.visited(3, [*one.offer(3)[0][one.offer(3)[1]], 4])
    assert one.metrics() == {"prompts/waiting": 7.0, "prompts/longest_wait": 3.0, "prompts/longest_gap": 3.0}


def test_what_is_refused():
    one = waiting(5, max_wait=0)
    with pytest.raises(ValueError, match="due"):
        one.visited(0, [int(one.offer(0)[0][4])])
    for index in (5, -1):
        with pytest.raises(ValueError, match="not been offered"):
            one.visited(0, [index])
    with pytest.raises(ValueError, match="version"):
        one.load_dict({})
    with pytest.raises(ValueError, match="5 are saved, but there are 6"):
        waiting(6).load_dict(one.to_dict())
    with pytest.raises(ValueError, match="max_wait"):
        waiting(5, max_wait=-1)
    with pytest.raises(ValueError, match="most_due"):
        waiting(5, most_due=0)


def test_states_of_either_admission_are_taken_over():
    full = waiting(8)
    few = Admission(PromptSampler([str(i) for i in range(8)], 1, 0), 4, 3)
    few.visited(0, few.offer(0)[0][:2])
    full.load_dict(json.loads(json.dumps(few.to_dict())))
    assert sorted(full.offer(5)[0][full._last >= 0].tolist()) == sorted(few._visited)
    full.visited(1, [0, 7])
    few.load_dict(json.loads(json.dumps(full.to_dict())))
    assert few._visited[0] == few._visited[7] == 1
    offered, _ = few.offer(2)
    assert len(offered) == 4


def test_the_state_of_many_prompts_is_small():
    many = waiting(100_000)
    many.visited(0, np.arange(0, 100_000, 2))
    assert len(json.dumps(many.to_dict())) < 100_000
