"""The learner on real (small, random) models: against a slow reference, over ranks, over saves and exports."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from state_digest import state_digest
from transformers import AutoModelForCausalLM

from kray.config.train_schema import TrainConfig
from kray.errors import ConfigError, KrayError
from kray.train.metrics import count_nonfinite_steps
from kray.train.model import decoder_layers
from kray.train.schedule import update_order
from kray.train.training_rows import step_rows


def reference_update(model, optimizer, rows, train: TrainConfig) -> None:
    """Row by row, without padding, in float64."""
    ends = np.cumsum(rows.lengths)
    parts = [
        torch.tensor(rows.tokens[end - n : end].astype(np.int64)) for end, n in zip(ends, rows.lengths, strict=True)
    ]

    def logprobs(index):
        tokens, prompt = parts[index], rows.prompt_lengths[index]
        logits = model(input_ids=tokens[None]).logits[0, prompt - 1 : -1]
        return logits.log_softmax(-1).gather(-1, tokens[prompt:, None])[:, 0]

    with torch.no_grad():
        old = [logprobs(index) for index in range(len(rows))]
    for update in update_order(rows.updates, train.epochs, rows.seed):
        optimizer.zero_grad()
        for index in np.flatnonzero(rows.update == update):
            new, advantage = logprobs(index), float(rows.advantages[index])
            ratio = (new - old[index]).exp()
            bounded = ratio.clamp(1 - train.clip_low, 1 + train.clip_high)
            objective = torch.minimum(ratio * advantage, bounded * advantage).sum()
            (-objective * float(rows.weights[index])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        optimizer.step()


@pytest.mark.parametrize(
    ("tied", "changes"),
    [
        (True, {}),
        (False, {}),
        (True, {"updates": 3}),
        (True, {"epochs": 3}),
        (False, {"updates": 2, "epochs": 2, "baseline": "belief", "thin": 0.6}),
    ],
)
def test_an_update_equals_the_slow_reference(models, make, tied, changes, train, some_groups, ragged):
    train = replace(train, **changes)
    learner = make(models[tied], train)
    model = AutoModelForCausalLM.from_pretrained(models[tied], dtype=torch.float64)
    decay = [p for p in model.parameters() if p.ndim > 1]
    norms = [{"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [{"params": decay}, *norms], lr=train.lr, eps=train.eps, weight_decay=train.weight_decay
    )
    for seed in range(2):
        rows = step_rows(some_groups(seed, ragged), train, seed)
        metrics = learner.update(rows)
        reference_update(model, optimizer, rows, train)
    assert metrics["train/optimizer_steps"] == train.updates * train.epochs
    assert metrics["train/epochs"] == train.epochs
    assert metrics["train/tokens"] == rows.response_lengths.sum() * train.epochs
    assert metrics["train/rows"] == len(rows) * train.epochs
    assert metrics["train/prompts"] == len(set(rows.group.tolist())) * train.epochs
    assert (metrics["train/clip_ratio"] > 0) == (train.updates * train.epochs > 1)
    named = dict(model.named_parameters())
    state = learner.state()
    assert [name for name, _ in state] == list(named)
    for name, tensor in state:
        torch.testing.assert_close(
            tensor.double(), named[name].detach(), rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    "change", [{"microbatch_tokens": 1}, {"microbatch_tokens": 10**6}, {"activation_checkpointing": True}]
)
def test_microbatches_and_checkpointing_do_not_change_the_update(models, make, change, train, some_groups, ragged):
    rows = step_rows(some_groups(0, ragged), train)
    learner = make(models[True])
    metrics, state = learner.update(rows), dict(learner.state())
    other = make(models[True], replace(train, **change))
    assert other.update(rows)["train/grad_norm"] == pytest.approx(metrics["train/grad_norm"], rel=1e-4)
    for name, tensor in other.state():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=2e-6)


def test_no_step_is_made_beyond_the_largest_kl(models, make, train, some_groups, ragged):
    rows = step_rows(some_groups(0, ragged), train)
    steps = {}
    for limit in (0.0, 1e-9, 1e9):
        learner = make(models[True], replace(train, epochs=4, max_kl=limit))
        steps[limit] = learner.update(rows)["train/optimizer_steps"]
    # the first step's rows are of the policy itself: their KL is 0
    assert steps == {0.0: 4, 1e-9: 1, 1e9: 4}
    once = make(models[True])
    once.update(rows)
    state = state_digest(once.state())
    stopped = make(models[True], replace(train, epochs=4, max_kl=1e-9))
    assert stopped.update(rows)["train/epochs"] == 1
    assert state_digest(stopped.state()) == state


def test_a_schedule_goes_on_exactly_after_a_resume(models, make, train, some_groups, ragged, tmp_path):
    train = replace(train, epochs=2, updates=2, lr_schedule="cosine", lr_warmup_steps=2, baseline="belief", thin=0.7)
    rows = [step_rows(some_groups(seed, ragged), train, seed) for seed in range(4)]
    whole = make(models[True], train)
    rates = [whole.update(each)["train/lr"] for each in rows]
    expected = state_digest(whole.state())
    first = make(models[True], train)
    for each in rows[:2]:
        first.update(each)
    first.save(tmp_path / "learner")
    second = make(models[True], train)
    second.load(tmp_path / "learner")
    assert [second.update(each)["train/lr"] for each in rows[2:]] == rates[2:]
    assert state_digest(second.state()) == expected
    assert rates[1] > rates[0]
    assert rates[3] < rates[2]


def test_groups_of_equal_rewards_cost_nothing_and_change_nothing(models, make, train, some_groups):
    learner = make(models[True])
    forwards = []
    learner.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    before = state_digest(learner.state())
    for groups in ([], some_groups(0, [[1, 1], [0, 0, 0], [0]])):
        metrics = learner.update(step_rows(groups, train))
        assert metrics["train/skipped"] == 1
        assert metrics["train/tokens"] == 0
        assert all(math.isfinite(value) for value in metrics.values())
    assert not forwards
    assert state_digest(learner.state()) == before
    assert learner.updates_done == 0


def test_a_gradient_that_is_not_finite_poisons_nothing(models, make, train, some_groups, ragged):
    learner = make(models[True])
    rows = step_rows(some_groups(0, ragged), train)
    learner.update(rows)
    before = state_digest(learner.state())
    broken = replace(rows, advantages=np.full_like(rows.advantages, np.nan))
    metrics = learner.update(broken)
    assert metrics["train/nonfinite"] == metrics["train/skipped"] == 1
    assert state_digest(learner.state()) == before
    assert learner.updates_done == 1
    good = learner.update(rows)
    assert good["train/skipped"] == 0
    assert state_digest(learner.state()) != before
    idle = learner.update(step_rows(some_groups(0, [[1, 1]]), train))  # says nothing of the gradient
    lost = 0
    for each in (metrics, good, metrics, idle, metrics):
        lost = count_nonfinite_steps(lost, each, 3)
    assert lost == count_nonfinite_steps(lost, idle, 2) == 2
    assert count_nonfinite_steps(99, metrics, 0) == 100
    with pytest.raises(KrayError, match=r"not finite in 3 steps in a row \(train\.max_nonfinite\)"):
        count_nonfinite_steps(lost, metrics, 3)


def test_the_learning_rate_rises_then_stays(models, make, train, some_groups):
    learner = make(models[True], replace(train, lr_warmup_steps=3))
    rows = step_rows(some_groups(0, [[0, 1]]), train)
    rates = [learner.update(rows)["train/lr"] for _ in range(5)]
    assert rates == pytest.approx([train.lr / 3, train.lr * 2 / 3, train.lr, train.lr, train.lr])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gap_to_a_perfect_engine_is_rounding(models, make, temperature, train, some_groups, ragged):
    learner = make(models[True], temperature=temperature)
    groups = some_groups(0, ragged)
    for group in groups:
        rows = [(group.prompt_tokens, rollout.tokens) for rollout in group.rollouts]
        for rollout, logprobs in zip(group.rollouts, learner.logprobs(rows, temperature), strict=True):
            rollout.logprobs = logprobs
    metrics = learner.update(step_rows(groups, train))
    assert metrics["train/logprob_gap_max"] < 1e-5
    assert metrics["train/logprob_kl"] < 1e-9
    assert 0 < metrics["train/entropy"] < math.log(32)


def test_a_run_that_was_saved_goes_on_bit_for_bit(models, make, tmp_path, train, some_groups, ragged):
    first, second = (step_rows(some_groups(seed, ragged), train) for seed in range(2))
    learner = make(models[True])
    learner.update(first)
    learner.save(tmp_path / "learner")
    random = torch.rand(3)
    metrics = learner.update(second)
    expected = state_digest(learner.state())
    learner = make(models[True])
    learner.load(tmp_path / "learner")
    assert torch.equal(torch.rand(3), random)
    again = learner.update(second)
    assert state_digest(learner.state()) == expected
    assert again["train/loss"] == metrics["train/loss"]
    assert again["train/grad_norm"] == metrics["train/grad_norm"]
    with pytest.raises(KrayError, match="nowhere"):
        learner.load(tmp_path / "nowhere")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_exports_are_what_the_learner_computes_with(
    models, make, tmp_path, tied, dtype, train, probe, some_groups, ragged
):
    source = tmp_path / "source"
    source.mkdir()
    for file in Path(models[tied]).iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "tokenizer.json").write_text("{}")
    learner = make(str(source), dtype=dtype)
    learner.logprobs(probe)  # a pass without a gradient must not leave stale parameters for the next one
    learner.update(step_rows(some_groups(0, ragged), train))
    computed = learner.logprobs(probe)
    gathered, weights = learner.weights()
    assert (gathered.nbytes, gathered.checksum) == (weights.nbytes, weights.checksum)
    assert {entry.dtype for entry in weights.manifest} == {dtype}
    assert any(entry.name == "lm_head.weight" for entry in weights.manifest) is not tied
    learner.export(tmp_path / "export")
    assert (tmp_path / "export" / "tokenizer.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert model.dtype == getattr(torch, dtype)
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    assert state_digest(weights.tensors()) == state_digest(list(model.named_parameters()))
    for (prompt, response), logprobs in zip(probe, computed, strict=True):
        tokens = torch.tensor([[*prompt, *response]])
        exact = model(tokens).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        expected = exact.gather(-1, tokens[0, len(prompt) :, None])[:, 0].detach().numpy()
        np.testing.assert_allclose(logprobs, expected, atol=1e-5 if dtype == "float32" else 0.1)


def test_layers_are_found_in_other_families():
    sizes = {
        "vocab_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "intermediate_size": 8,
    }
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    assert decoder_layers(llama) is llama.model.layers
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=16, n_layer=3, n_head=2, n_embd=8))
    assert decoder_layers(gpt2) is gpt2.transformer.h


def test_a_model_that_cannot_be_loaded_is_a_config_error(models, make, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path"):
        make(str(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.dtype"):
        make(models[True], dtype="float16")
