"""Laws of the order in which prompts are visited."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.prompts import PromptSampler


@st.composite
def samplers(draw):
    prompts = draw(st.integers(1, 40))
    per_step = draw(st.integers(1, prompts))
    return PromptSampler([f"p{i}" for i in range(prompts)], per_step, draw(st.integers(0, 99)), draw(st.booleans()))


def like(sampler: PromptSampler) -> PromptSampler:
    ids = [f"p{i}" for i in range(sampler.prompts)]
    return PromptSampler(ids, sampler.per_step, sampler.seed, sampler.shuffle)


@settings(max_examples=200)
@given(samplers(), st.integers(1, 6))
def test_epochs_hold_every_prompt_once_and_steps_none_twice(sampler, epochs):
    needed = -(-epochs * sampler.prompts // sampler.per_step)
    steps = [sampler.take(step) for step in range(needed)]
    assert all(len(step) == len(set(step)) == sampler.per_step for step in steps)
    stream = [index for step in steps for index in step][: epochs * sampler.prompts]
    for epoch in range(epochs):
        part = stream[epoch * sampler.prompts : (epoch + 1) * sampler.prompts]
        assert sorted(part) == list(range(sampler.prompts)), f"epoch {epoch}"


@settings(max_examples=100)
@given(samplers(), st.integers(1, 200))
def test_counts_of_prompts_differ_by_at_most_one(sampler, steps):
    counts = Counter(index for step in range(steps) for index in sampler.take(step))
    low = steps * sampler.per_step // sampler.prompts
    assert all(counts[index] in (low, low + 1) for index in range(sampler.prompts))


@settings(max_examples=100)
@given(samplers(), st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_a_step_does_not_depend_on_the_steps_taken_before(sampler, steps):
    """Resuming needs the step alone."""
    walked = like(sampler)
    for step in range(max(steps) + 1):
        walked.take(step)
    for step in steps:
        assert sampler.take(step) == like(sampler).take(step) == walked.take(step)


@given(samplers(), st.integers(0, 100))
def test_epoch_counts_the_complete_ones(sampler, step):
    assert sampler.epoch(step) == step * sampler.per_step // sampler.prompts


def test_orders_differ_by_epoch_and_seed_and_not_by_machine():
    ids = [str(i) for i in range(10)]
    first = PromptSampler(ids, 5, seed=1)
    orders = [first.take(2 * e) + first.take(2 * e + 1) for e in range(5)]
    assert len({tuple(order) for order in orders}) == 5
    assert PromptSampler(ids, 5, seed=2).take(0) != first.take(0)
    assert orders[0] == [3, 0, 6, 8, 2, 9, 7, 5, 4, 1]  # written down once: it must never change


def test_without_shuffling_the_given_order_is_kept():
    sampler = PromptSampler("abcde", 2, seed=1, shuffle=False)
    assert [sampler.take(step) for step in range(5)] == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]


def test_a_far_step_is_found_at_once():
    sampler = PromptSampler([str(i) for i in range(1000)], 64, seed=0)
    assert len(set(sampler.take(10**9))) == 64


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="per_step is 4, but there are only 3 prompts"):
        PromptSampler("abc", 4, 0)
    with pytest.raises(ValueError, match="per_step must be at least 1"):
        PromptSampler("abc", 0, 0)
    with pytest.raises(ValueError, match="an id occurs twice"):
        PromptSampler("aba", 1, 0)
    with pytest.raises(ValueError, match="step must not be negative"):
        PromptSampler("abc", 1, 0).take(-1)
