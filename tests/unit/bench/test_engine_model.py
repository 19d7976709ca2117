"""Simulated engines: their arithmetic, a lower bound, and how near to it the schedule comes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.bench.engine_model import (
    ENGINE_MODELS,
    EngineModel,
    Work,
    lower_bound,
    make_work,
    schedule_overhead_s,
    simulate,
    simulate_static,
)

LENGTHS = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=9), min_size=1, max_size=12)
PROMPT = st.integers(0, 500)


@settings(max_examples=200)
@given(LENGTHS, PROMPT, st.integers(1, 5), st.integers(1, 6), st.sampled_from(["gpu", "cpu"]), st.integers(1, 12))
def test_no_schedule_beats_the_bound(lengths, prompt_tokens, engines, sequences, kind, split):
    model = replace(ENGINE_MODELS[kind], engines=engines, max_sequences=sequences, latency_s=0.0)
    groups = [np.array(each) for each in lengths]
    work = Work(groups, np.array([each.mean() for each in groups]), np.full(len(groups), prompt_tokens))
    bound = lower_bound(model, work)
    found = [simulate_static(model, work)]
    found += [simulate(model, work, split, capacity, progress) for capacity in (1.0, 3.0) for progress in (True, False)]
    for outcome in found:
        assert outcome.makespan_s >= bound * (1 - 1e-5)
        assert 0 <= outcome.idle < 1
        assert 1 <= outcome.prompts <= engines
    assert simulate(model, work.known).makespan_s >= lower_bound(model, work.known) * (1 - 1e-5)


def test_the_bound_is_reached_where_the_best_schedule_is_plain():
    model = EngineModel(2, 4, 0.01, 0.001, 0.0, latency_s=0.0)
    even = Work([np.full(8, 100), np.full(8, 100)], np.full(2, 100.0), np.zeros(2, int))
    assert simulate(model, even, split=4).makespan_s == pytest.approx(2 * 100 * 0.014)
    assert lower_bound(model, even) == pytest.approx(2 * 100 * 0.014, rel=1e-4)
    single = Work([np.array([500]), np.array([10])], np.array([500.0, 10.0]), np.zeros(2, int))
    assert lower_bound(model, single) == pytest.approx(500 * 0.011) == simulate(model, single).makespan_s


def test_engine_busy_time_is_steps_tokens_and_prompts():
    model = EngineModel(1, 2, 0.01, 0.001, 0.0001, latency_s=0.0)
    work = Work([np.array([10, 20]), np.array([30])], np.array([15.0, 30.0]), np.array([100, 200]))
    # 30 first and 20 or 10 beside it, then the other: 30 steps that never stop, 60 tokens, 300 tokens of prompts
    assert simulate(model, work).makespan_s == pytest.approx(30 * 0.01 + 60 * 0.001 + 300 * 0.0001)


def test_schedule_is_nearer_the_bound_than_static_sharding():
    for kind, near in (("gpu", 1.2), ("cpu", 1.1)):
        model = replace(ENGINE_MODELS[kind], engines=16)
        work = make_work(16 * 128, 0)
        bound = lower_bound(model, work)
        assert simulate(model, work).makespan_s < near * bound
        assert simulate(model, work.known).makespan_s < 1.02 * bound
        assert simulate_static(model, work).makespan_s > 1.3 * bound


def test_whole_task_reports_need_more_than_one_batch():
    model = replace(ENGINE_MODELS["gpu"], engines=4)
    work = make_work(4 * 128, 0)
    exact = simulate(model, work).makespan_s
    assert simulate(model, work, progress=False).makespan_s > 1.3 * exact  # it looks full while its last stragglers run
    assert simulate(model, work, progress=False, capacity=3).makespan_s < 1.05 * exact


def test_a_step_of_few_rollouts_an_engine_wants_small_parts():
    model = replace(ENGINE_MODELS["gpu"], engines=16, max_sequences=8)
    found = {split: [] for split in (0, 32)}
    for seed in range(4):
        work = make_work(16 * 8, seed)
        for split, makespans in found.items():
            makespans.append(simulate(model, work, split).makespan_s / lower_bound(model, work))
    assert np.mean(found[0]) < 0.85 * np.mean(found[32])


def test_work_has_the_budgets_and_lengths_that_it_says():
    work = make_work(4000, 1)
    budgets = np.array([len(each) for each in work.lengths])
    assert (budgets.min(), budgets.max()) == (2, 128)
    assert 7 < budgets.mean() < 9
    means = np.array([each.mean() for each in work.lengths])
    assert 600 < means.mean() < 800
    assert 0.6 < np.corrcoef(np.log(means), np.log(work.expected))[0, 1] < 0.95
    assert work.known.rollouts == work.rollouts
    assert work.known.prompt_tokens.sum() == work.prompt_tokens.sum()


def test_overhead_is_counted_for_every_task():
    assert 0 < schedule_overhead_s(10, 2000) < 1e-3
