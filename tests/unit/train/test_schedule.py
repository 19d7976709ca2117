"""The learning rate over a run, and the order of optimizer steps."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.config.train_schema import TrainConfig
from kray.train.schedule import schedule_share, update_order


def course(train: TrainConfig, steps: int) -> list[float]:
    each = train.updates * train.epochs
    return [schedule_share(train, k / each, (k + 1) / each, steps) for k in range(steps * each)]


def test_constant_is_constant_and_warms_up_by_optimizer_steps():
    assert course(TrainConfig(), 3) == [1.0] * 3
    assert course(TrainConfig(lr_warmup_steps=2, updates=2), 4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_linear_and_cosine_fall_to_the_final_share():
    linear = TrainConfig(lr_schedule="linear", lr_final=0.2, epochs=2)
    assert course(linear, 2) == pytest.approx([1.0, 0.8, 0.6, 0.4])
    assert course(TrainConfig(lr_schedule="cosine"), 4) == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-5)


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(1, 3),
    st.floats(0, 1),
    st.integers(1, 12),
)
def test_it_rises_then_falls_and_is_never_0(schedule, warmup, updates, epochs, final, steps):
    train = TrainConfig(lr_schedule=schedule, lr_warmup_steps=warmup, updates=updates, epochs=epochs, lr_final=final)
    shares = course(train, steps)
    rising = min(warmup, steps) * updates * epochs
    assert all(a < b for a, b in itertools.pairwise(shares[:rising]))
    assert all(a >= b for a, b in itertools.pairwise(shares[rising:]))
    assert all(0 < share <= 1 for share in shares)


def test_a_run_beyond_its_steps_keeps_the_final_rate():
    assert schedule_share(TrainConfig(lr_schedule="linear", lr_final=0.1), 12, 13, 10) == pytest.approx(0.1)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**62))
def test_each_pass_takes_every_optimizer_step_once(updates, epochs, seed):
    order = update_order(updates, epochs, seed)
    passes = [order[i : i + updates] for i in range(0, len(order), updates)]
    assert len(passes) == epochs
    assert all(sorted(each) == list(range(updates)) for each in passes)
    assert passes[0] == list(range(updates))
    assert order == update_order(updates, epochs, seed)


def test_orders_differ_by_pass_and_seed():
    orders = {tuple(update_order(8, 2, seed)[8:]) for seed in range(20)}
    assert len(orders) == 20
    assert len({tuple(update_order(8, 4, 0)[i : i + 8]) for i in (8, 16, 24)}) == 3
