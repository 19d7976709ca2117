"""Each loss against a slow, obvious reference in float64 that goes rollout by rollout and token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kray.train.logprobs import logprobs_and_entropy
from kray.train.loss import OBJECTIVES, LossConfig, LossInputs, policy_loss

LOW, HIGH = 0.2, 0.28


def reference(kind, new, old, engine, advantages, weights, rollouts, tis=0.0, kl=0.0, start=None):
    """Loss, its gradient for `new`, tokens clipped and truncated; lists of floats. Gradients by hand."""
    loss, gradient, clipped, truncated = 0.0, [0.0] * len(new), 0, 0
    members = [[t for t in range(len(new)) if rollouts[t] == r] for r in set(rollouts)]
    for tokens in members:
        mean = math.fsum(new[t] - old[t] for t in tokens) / len(tokens)
        for t in tokens:
            a, w = advantages[t], weights[t]
            correction = math.exp(old[t] - engine[t]) if tis else 1.0
            if tis and correction > tis:
                correction, truncated = tis, truncated + 1
            w *= correction
            ratio = math.exp(mean) if kind == "gspo" else math.exp(new[t] - old[t])
            bounded = min(max(ratio, 1 - LOW), 1 + HIGH)
            if kind == "cispo":
                loss -= w * bounded * a * new[t]
                gradient[t] -= w * bounded * a
                clipped += bounded != ratio
                continue
            loss -= w * min(ratio * a, bounded * a)
            if bounded * a < ratio * a:
                clipped += 1
            elif kind == "gspo":
                for other in tokens:
                    gradient[other] -= w * a * ratio / len(tokens)
            else:
                gradient[t] -= w * a * ratio
    for t in range(len(new) if kl else 0):  # GRPO, equation 4
        away = start[t] - new[t]
        loss += kl * weights[t] * (math.exp(away) - away - 1)
        gradient[t] += kl * weights[t] * (1 - math.exp(away))
    return loss, gradient, clipped, truncated


@given(
    st.sampled_from(sorted(OBJECTIVES)),
    st.lists(st.integers(1, 6), max_size=7),
    st.sampled_from([0.0, 1.1, 2.0]),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 2**32 - 1),
)
def test_every_loss_equals_its_reference(kind, lengths, tis, kl, seed):
    """Rollouts of any lengths, none included, their tokens in any order."""
    rng = np.random.default_rng(seed)
    rollouts = rng.permutation(np.repeat(np.arange(len(lengths)), lengths)).astype(np.int64)
    count = len(rollouts)
    old, engine, start = (-rng.random(count) * 3 for _ in range(3))
    new, engine = old + rng.normal(size=count) * 0.3, old + rng.normal(size=count) * 0.3
    advantages, weights = rng.normal(size=len(lengths))[rollouts], rng.random(count)
    columns = (new, old, engine, advantages, weights)
    expected = reference(kind, *(column.tolist() for column in columns), rollouts.tolist(), tis, kl, start.tolist())
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        tensors = [torch.tensor(column, dtype=dtype) for column in columns]
        tensors[0].requires_grad_()
        inputs = LossInputs(*tensors, torch.from_numpy(rollouts), torch.tensor(start, dtype=dtype))
        result = policy_loss(inputs, LossConfig(kind, LOW, HIGH, tis, kl))
        result.loss.backward()
        assert result.loss.item() == pytest.approx(expected[0], rel=rtol, abs=rtol)
        np.testing.assert_allclose(tensors[0].grad.numpy(), expected[1], rtol=rtol * 10, atol=rtol)
        if dtype == torch.float64:
            assert (result.clipped.item(), result.truncated.item()) == expected[2:]
            moved = [math.exp(n - o) - 1 - (n - o) for n, o in zip(new, old, strict=True)]
            assert result.kl.item() == pytest.approx(math.fsum(moved), abs=1e-9)


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_the_first_step_of_every_loss_is_the_policy_gradient(kind):
    """Where the policy has not moved, no clip is active; with equal weights in a rollout all losses have one gradient."""
    rollouts = torch.repeat_interleave(torch.arange(10), 5)
    new = torch.randn(50, generator=torch.Generator().manual_seed(1), requires_grad=True)
    advantages = torch.linspace(-3, 3, 10)[rollouts]
    inputs = LossInputs(new, new.detach(), new.detach(), advantages, torch.ones(50), rollouts)
    result = policy_loss(inputs, LossConfig(kind, LOW, HIGH))
    result.loss.backward()
    assert result.clipped.item() == 0
    torch.testing.assert_close(new.grad, -advantages)


def test_truncated_importance_weights_by_hand():
    """Probabilities of the learner over those of the engine: 1/2, 3/2 and 4, which is cut at 2."""
    old = torch.log(torch.tensor([0.1, 0.6, 0.8], dtype=torch.float64))
    engine = torch.log(torch.tensor([0.2, 0.4, 0.2], dtype=torch.float64))
    new = old.clone().requires_grad_()
    advantages, weights = torch.tensor([1.0, -2.0, 3.0]).double(), torch.tensor([0.5, 0.25, 0.25]).double()
    inputs = LossInputs(new, old, engine, advantages, weights, torch.tensor([0, 1, 1]))
    result = policy_loss(inputs, LossConfig("dapo", LOW, HIGH, tis_cap=2.0))
    result.loss.backward()
    # - (1/2 * 1/2 * 1 + 1/4 * 3/2 * -2 + 1/4 * 2 * 3)
    assert result.loss.item() == pytest.approx(-1.0)
    np.testing.assert_allclose(new.grad.numpy(), [-0.25, 0.75, -1.5], rtol=1e-12)
    assert result.truncated.item() == 1


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_importance_weights_of_1_change_no_bit(kind):
    """An engine whose log-probabilities are the learner's."""
    generator = torch.Generator().manual_seed(3)
    old = -3 * torch.rand(40, generator=generator)
    moved = old + 0.3 * torch.randn(40, generator=generator)
    advantages, weights = torch.randn(40, generator=generator), torch.rand(40, generator=generator)
    found = []
    for cap in (0.0, 1.0, 2.0):
        new = moved.clone().requires_grad_()
        inputs = LossInputs(new, old, old.clone(), advantages, weights, torch.arange(10).repeat_interleave(4))
        result = policy_loss(inputs, LossConfig(kind, LOW, HIGH, cap))
        result.loss.backward()
        assert result.truncated.item() == 0
        found.append((result.loss.detach(), new.grad))
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_scores_do_not_depend_on_the_chunks(dtype, temperature):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(23, 7, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(11, 7, generator=generator).to(dtype).requires_grad_()
    source = (
        torch.randint(0, 23, (40,), generator=generator).sort().values
    )  # some places predict several targets or none
    targets = torch.randint(0, 11, (40,), generator=generator)
    weights = torch.randn(40, generator=generator)
    logits = (hidden @ weight.T).detach().double() / temperature
    exact = logits.log_softmax(-1)[source]
    gradients = []
    for chunk in (10**6, 44, 1):
        logprobs, entropy = logprobs_and_entropy(
            lambda states: states @ weight.T, hidden, source, targets, temperature, 11, chunk
        )
        assert not entropy.requires_grad
        atol = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(logprobs.double(), exact.gather(-1, targets[:, None])[:, 0], rtol=1e-5, atol=atol)
        torch.testing.assert_close(entropy.double(), -(exact.exp() * exact).sum(-1), rtol=1e-5, atol=atol)
        gradients.append(torch.autograd.grad((logprobs * weights).sum(), (hidden, weight)))
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], **tolerance)


def test_no_targets_have_scores_and_a_gradient():
    none = torch.zeros(0, dtype=torch.int64)
    hidden = torch.zeros(0, 3, requires_grad=True)
    logprobs, entropy = logprobs_and_entropy(lambda states: states, hidden, none, none)
    assert len(logprobs) == len(entropy) == 0
    inputs = LossInputs(*[logprobs] * 5, none)
    policy_loss(inputs, LossConfig("gspo", LOW, HIGH)).loss.backward()
    assert hidden.grad is not None


def test_a_forbidden_token_does_not_spoil_the_entropy():
    zero = torch.zeros(1, dtype=torch.int64)
    _, entropy = logprobs_and_entropy(lambda logits: logits, torch.tensor([[0.0, 0.0, -math.inf]]), zero, zero)
    assert entropy.item() == pytest.approx(math.log(2))
