"""Moments in bfloat16: rounded without bias, alike on any number of ranks, and close to those in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from state_digest import state_digest

from kray.train.offload import local
from kray.train.rounded_moments import random_bits, rounded, step_rounded
from kray.train.training_rows import step_rows

CPU = torch.device("cpu")
OPTIONS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("value", [1.0, -1.2345678, 3e-12, -7e20, 0.0, 1 + 2**-20])
def test_rounding_takes_a_neighbour_and_keeps_the_mean(value):
    values = torch.full((2**16,), value)
    found = rounded(values, random_bits(0, len(values), 3, 7, CPU)).double()
    exact = values.double()
    assert (found - exact).abs().max() <= 2**-7 * abs(exact[0])
    spread = 2**-7 * abs(exact[0])
    assert (found.mean() - exact[0]).abs() <= 5 * 0.5 * spread / 2**8
    assert len(found.unique()) <= 2
    if float(torch.tensor(value).bfloat16()) == float(torch.tensor(value)):
        assert torch.equal(found, exact)


def test_bits_differ_between_elements_parameters_and_steps():
    drawn = [random_bits(0, 4096, number, step, CPU) for number in (0, 1) for step in (1, 2)]
    assert len(torch.cat(drawn).unique()) == 4 * 4096
    for bits in drawn:
        ones = torch.stack([(bits >> k) & 1 for k in range(64)]).double().mean(1)
        assert (ones - 0.5).abs().max() < 0.05
    assert torch.equal(random_bits(100, 50, 0, 1, CPU), drawn[0][100:150])


def states(size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {"step": torch.zeros(())} | {name: torch.zeros(size, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")}


def test_shards_round_as_the_whole_does():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(1000, generator=generator)
    halves, state = [whole[:300].clone(), whole[300:].clone()], states(1000, torch.bfloat16)
    parts = [states(300, torch.bfloat16), states(700, torch.bfloat16)]
    for _ in range(3):
        gradient = torch.randn(1000, generator=generator)
        step_rounded(whole, gradient, state, OPTIONS, 5, 0)
        step_rounded(halves[0], gradient[:300], parts[0], OPTIONS, 5, 0)
        step_rounded(halves[1], gradient[300:], parts[1], OPTIONS, 5, 300)
    assert torch.equal(torch.cat(halves), whole)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(torch.cat([part[name] for part in parts]), state[name])


def test_second_moments_follow_where_nearest_values_would_not():
    """After 3,000 steps of equal gradients the moment is .95 of their square, in the mean within half a percent."""
    gradient, state = torch.full((2048,), 0.3), states(2048, torch.bfloat16)
    parameter, nearest = torch.zeros(2048), torch.zeros((), dtype=torch.bfloat16)
    for _ in range(3000):
        step_rounded(parameter, gradient, state, OPTIONS, 0, 0)
        nearest = (nearest.float() * 0.999 + 0.001 * 0.09).bfloat16()
    exact = 0.09 * (1 - 0.999**3000)
    found = state["exp_avg_sq"].double()
    assert found.mean() == pytest.approx(exact, rel=5e-3)
    assert found.std() < 0.1 * exact
    assert nearest.item() < 0.6 * exact


def test_a_learner_moves_as_with_float32_moments(models, make, train, some_groups, ragged, tmp_path):
    """After 8 steps the two policies differ by less than 2 % of the distance that they have moved."""
    found = {}
    for moments in ("float32", "bfloat16"):
        setting = replace(train, moments=moments)
        learner = make(models[True], setting)
        start = torch.cat([tensor.flatten().clone() for _, tensor in learner.state()])
        for seed in range(8):
            learner.update(step_rows(some_groups(seed, ragged), setting))
        found[moments] = torch.cat([tensor.flatten() for _, tensor in learner.state()])
    moved = (found["float32"] - start).norm()
    gap = (found["bfloat16"] - found["float32"]).norm() / moved
    print(f"\ngap of bfloat16 moments after 8 steps: {gap:.2%} of the way")
    assert 0 < gap < 0.02
    # Resumed, the run is the same bit for bit.
    learner.save(tmp_path / "learner")
    rows, digests = step_rows(some_groups(9, ragged), setting), []
    for each in (learner, None):
        resumed = each or make(models[True], setting)
        if each is None:
            resumed.load(tmp_path / "learner")
        resumed.update(rows)
        moments = [(name, local(tensor)) for name, tensor in resumed.optimizer.tensors().items()]
        digests.append((state_digest(resumed.state()), state_digest(moments)))
    assert digests[0] == digests[1]
