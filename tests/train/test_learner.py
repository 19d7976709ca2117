"""The learner on real (small, random) models: against a slow reference, over ranks, over saves and exports."""

from __future__ import annotations

import math
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from kray.config.schema import TrainConfig
from kray.records import ConfigError, KrayError, Prompt, Rollout, RolloutGroup
from kray.train.learner import Learner, step_rows
from kray.train.model import decoder_layers, state_digest

VOCABULARY = 32
# AdamW's eps is large so that a gradient of rounding error does not become a step of full size.
TRAIN = TrainConfig(lr=1e-2, eps=1e-3, weight_decay=0.1, grad_clip=0.5, microbatch_tokens=48, timeout_s=60)
PROBE = [((1, 2, 3), (4, 5)), ((7,), (8, 9, 10, 11))]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[bool, str]:
    """Folders of a tied and an untied model."""
    folders = {}
    for tied in (True, False):
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=128,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
        folders[tied] = str(tmp_path_factory.mktemp("tied" if tied else "untied"))
        Qwen3ForCausalLM(config).save_pretrained(folders[tied])
    return folders


@pytest.fixture
def make():
    """Learners of one rank; only one lives at a time in a process."""
    made: list[Learner] = []

    def build(path: str, train: TrainConfig = TRAIN, dtype: str = "float32", **options) -> Learner:
        for learner in made:
            learner.shutdown()
        made.append(Learner(0, 1, "", 0, path, train, dtype, 10, 0, **options))
        return made[-1]

    yield build
    for learner in made:
        learner.shutdown()


def some_groups(seed: int, rewards: list[list[float]]) -> list[RolloutGroup]:
    rng = np.random.default_rng(seed)
    groups = []
    for g, values in enumerate(rewards):
        rollouts = []
        for index, reward in enumerate(values):
            size = int(rng.integers(1, 12))
            tokens = rng.integers(0, VOCABULARY, size).astype(np.int32)
            logprobs = np.full(size, -math.log(VOCABULARY), np.float32)
            rollouts.append(Rollout(f"p{g}", index, tokens, logprobs, "stop", ((0, 0, size),), reward=reward))
        prompt = tuple(int(token) for token in rng.integers(0, VOCABULARY, rng.integers(1, 9)))
        groups.append(RolloutGroup(Prompt(f"p{g}", "", "exact", "test", text="x"), prompt, rollouts, 1.5 * len(values)))
    return groups


RAGGED = [[0, 1, 0], [1, 1], [0, 1, 1, 0.5, 0], [0], [1, 0], [0, 0, 0, 1]]


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
    for update in range(rows.updates):
        optimizer.zero_grad()
        for index in np.flatnonzero(rows.update == update):
            new, advantage = logprobs(index), float(rows.advantages[index])
            ratio = (new - (old[index] if rows.updates > 1 else new.detach())).exp()
            bounded = ratio.clamp(1 - train.clip_low, 1 + train.clip_high)
            objective = torch.minimum(ratio * advantage, bounded * advantage).sum()
            (-objective * float(rows.weights[index])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        optimizer.step()


@pytest.mark.parametrize(("tied", "updates"), [(True, 1), (False, 1), (True, 3)])
def test_an_update_equals_the_slow_reference(models, make, tied, updates):
    train = replace(TRAIN, updates=updates)
    learner = make(models[tied], train)
    model = AutoModelForCausalLM.from_pretrained(models[tied], dtype=torch.float64)
    decay = [p for p in model.parameters() if p.ndim > 1]
    norms = [{"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [{"params": decay}, *norms], lr=train.lr, eps=train.eps, weight_decay=train.weight_decay
    )
    for seed in range(2):
        rows = step_rows(some_groups(seed, RAGGED), train)
        metrics = learner.update(rows)
        reference_update(model, optimizer, rows, train)
    assert metrics["train/optimizer_steps"] == updates
    assert metrics["train/tokens"] == rows.response_lengths.sum()
    assert metrics["train/rows"] == len(rows)
    assert (metrics["train/clip_ratio"] > 0) == (updates > 1)
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
def test_microbatches_and_checkpointing_do_not_change_the_update(models, make, change):
    rows = step_rows(some_groups(0, RAGGED), TRAIN)
    learner = make(models[True])
    metrics, state = learner.update(rows), dict(learner.state())
    other = make(models[True], replace(TRAIN, **change))
    assert other.update(rows)["train/grad_norm"] == pytest.approx(metrics["train/grad_norm"], rel=1e-4)
    for name, tensor in other.state():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=2e-6)


def test_groups_of_equal_rewards_cost_nothing_and_change_nothing(models, make):
    learner = make(models[True])
    forwards = []
    learner.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    before = state_digest(learner.state())
    for groups in ([], some_groups(0, [[1, 1], [0, 0, 0], [0]])):
        metrics = learner.update(step_rows(groups, TRAIN))
        assert metrics["train/skipped"] == 1
        assert metrics["train/tokens"] == 0
        assert all(math.isfinite(value) for value in metrics.values())
    assert not forwards
    assert state_digest(learner.state()) == before
    assert learner.updates_done == 0


def test_a_gradient_that_is_not_finite_poisons_nothing(models, make):
    learner = make(models[True])
    rows = step_rows(some_groups(0, RAGGED), TRAIN)
    learner.update(rows)
    before = state_digest(learner.state())
    broken = replace(rows, advantages=np.full_like(rows.advantages, np.nan))
    metrics = learner.update(broken)
    assert metrics["train/nonfinite"] == metrics["train/skipped"] == 1
    assert state_digest(learner.state()) == before
    assert learner.updates_done == 1
    assert learner.update(rows)["train/skipped"] == 0
    assert state_digest(learner.state()) != before


def test_the_learning_rate_rises_then_stays(models, make):
    learner = make(models[True], replace(TRAIN, lr_warmup_steps=3))
    rows = step_rows(some_groups(0, [[0, 1]]), TRAIN)
    rates = [learner.update(rows)["train/lr"] for _ in range(5)]
    assert rates == pytest.approx([TRAIN.lr / 3, TRAIN.lr * 2 / 3, TRAIN.lr, TRAIN.lr, TRAIN.lr])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gap_to_a_perfect_engine_is_rounding(models, make, temperature):
    learner = make(models[True], temperature=temperature)
    groups = some_groups(0, RAGGED)
    for group in groups:
        rows = [(group.prompt_tokens, rollout.tokens) for rollout in group.rollouts]
        for rollout, logprobs in zip(group.rollouts, learner.logprobs(rows, temperature), strict=True):
            rollout.logprobs = logprobs
    metrics = learner.update(step_rows(groups, TRAIN))
    assert metrics["train/logprob_gap_max"] < 1e-5
    assert metrics["train/logprob_kl"] < 1e-9
    assert 0 < metrics["train/entropy"] < math.log(VOCABULARY)


def test_a_run_that_was_saved_goes_on_bit_for_bit(models, make, tmp_path):
    first, second = (step_rows(some_groups(seed, RAGGED), TRAIN) for seed in range(2))
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
def test_weights_and_exports_are_what_the_learner_computes_with(models, make, tmp_path, tied, dtype):
    source = tmp_path / "source"
    source.mkdir()
    for file in Path(models[tied]).iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "tokenizer.json").write_text("{}")
    learner = make(str(source), dtype=dtype)
    learner.logprobs(PROBE)  # a pass without a gradient must not leave stale parameters for the next one
    learner.update(step_rows(some_groups(0, RAGGED), TRAIN))
    probe = learner.logprobs(PROBE)
    weights = learner.weights()
    assert weights.buffer.flags.c_contiguous
    assert {kind for _, _, kind, _ in weights.manifest} == {dtype}
    assert any(name == "lm_head.weight" for name, *_ in weights.manifest) is not tied
    learner.export(tmp_path / "export")
    assert (tmp_path / "export" / "tokenizer.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert model.dtype == getattr(torch, dtype)
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    assert state_digest(weights.tensors()) == state_digest(list(model.named_parameters()))
    for (prompt, response), logprobs in zip(PROBE, probe, strict=True):
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_ranks_learn_what_one_rank_learns(models, make, tmp_path):
    single = some_groups(5, [[0, 1]])
    single[0].rollouts[0].tokens = np.zeros(0, np.int32)  # one row for two ranks: the second has only an empty batch
    single[0].rollouts[0].logprobs = np.zeros(0, np.float32)
    cases = []
    for tied, updates, groups in [
        (True, 1, [some_groups(0, RAGGED), some_groups(1, RAGGED)]),
        (False, 2, [some_groups(0, RAGGED), some_groups(1, RAGGED)]),
        (True, 1, [single, [], some_groups(2, RAGGED)]),
    ]:
        train = replace(TRAIN, updates=updates)
        cases.append({
            "model": models[tied],
            "train": train,
            "rows": [step_rows(step, train) for step in groups],
            "probe": PROBE,
            "port": free_port(),
            "checkpoint": str(tmp_path / f"checkpoint-{len(cases)}"),
        })  # fmt: skip
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps((2, cases)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    program = [sys.executable, str(Path(__file__).with_name("rank_process.py")), str(job)]
    ranks = [subprocess.Popen([*program, str(rank)], env=environment) for rank in range(2)]
    try:
        assert [rank.wait(timeout=180) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (pickle.loads((tmp_path / f"result-{rank}").read_bytes()) for rank in range(2))
    for case, result, other in zip(cases, first, second, strict=True):
        learner = make(case["model"], case["train"])
        metrics = [learner.update(rows) for rows in case["rows"]]
        assert other["state"] == []
        for got, same, expected in zip(result["metrics"], other["metrics"], metrics, strict=True):
            assert got.keys() == same.keys() == expected.keys()
            for name in set(got) - {
                "train/update_s",
                "train/peak_memory_gib",
                "train/attention_padding_ratio",
                "train/computed_tokens",
            }:
                assert got[name] == same[name]
                assert got[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
        for (name, tensor), (got_name, got_tensor) in zip(learner.state(), result["state"], strict=True):
            assert got_name == name
            np.testing.assert_allclose(got_tensor, tensor.numpy(), rtol=0, atol=2e-6)
        # What two ranks saved, one rank goes on with.
        learner = make(case["model"], case["train"])
        learner.load(case["checkpoint"])
        assert all(
            np.array_equal(t.numpy(), a) for (_, t), (_, a) in zip(learner.state(), result["state"], strict=True)
        )
        assert learner.updates_done == sum(m["train/optimizer_steps"] for m in metrics)
        for got, expected in zip(learner.logprobs(PROBE), result["probe"], strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)
