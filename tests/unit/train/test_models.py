"""Every type of model that transformers knows: computed as its own forward pass does, or refused before anything starts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from state_digest import state_digest
from transformers import AutoModelForCausalLM

from kray.bench import model_support
from kray.bench.model_families import Case, cases, tiny_config, tiny_model
from kray.errors import ConfigError
from kray.train import attention
from kray.train import layout_choice as layouts
from kray.train import model as policy
from kray.train.supported_models import NOT_CAUSAL
from kray.train.training_rows import step_rows

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
CASES = cases()


def test_the_page_names_every_type_and_those_refused():
    taken, refused = PAGE.read_text().split("## Refused")
    refused_cases = set()
    for case in CASES:
        reason = model_support.refused_early(case)
        if reason is not None:
            assert model_support.short(reason) in re.sub(r"\s+", " ", refused), case
            refused_cases.add(str(case))
    for text, names in ((refused, refused_cases), (taken, {str(case) for case in CASES} - refused_cases)):
        listed = re.findall(r"`([^`]+)`[,\n]", text)
        assert sorted(listed) == sorted(names)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_called_not_causal_is_not(case):
    if not (model_support.refused_early(case) or "").startswith(NOT_CAUSAL):
        return
    model = tiny_model(tiny_config(case))
    tokens = torch.randint(3, 64, (1, 20), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 64
    with torch.no_grad():
        before, after = (model(input_ids=each, use_cache=False).logits[0, :12] for each in (tokens, changed))
    assert (before - after).abs().max() > 1e-2


def saved(case: Case, folder: Path) -> str:
    tiny_model(tiny_config(case)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        (Case("bert"), "it is not causal: changing a later token moves earlier log-probabilities by"),
        (Case("llama", {"is_causal": False}), "it is not causal: changing a later token"),
    ],
    ids=str,
)
def test_learner_refuses_unsupported_forward_passes(case, problem, make, monkeypatch, tmp_path):
    monkeypatch.setattr(policy, "check_supported", lambda config: None)
    with pytest.raises(ConfigError, match=rf"a model of type {case.model_type} cannot be trained: {problem}"):
        make(saved(case, tmp_path / "model"))


def test_noise_in_the_forward_pass_is_refused(make, monkeypatch, tmp_path):
    """A module that draws random numbers in eval mode, too."""
    path = saved(Case("llama"), tmp_path / "model")
    mlp = transformers.models.llama.modeling_llama.LlamaMLP
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: torch.nn.functional.dropout(forward(self, x), 0.1))
    with pytest.raises(ConfigError, match=r"type llama cannot be trained: two equal calls differ by"):
        make(path)


def test_weights_that_are_not_finite_are_refused(make, tmp_path):
    model = tiny_model(tiny_config(Case("llama")))
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="its log-probabilities are not finite"):
        make(str(tmp_path / "model"))


def test_a_wrong_attention_is_not_taken(make, monkeypatch, tmp_path):
    """The layout is judged by the model's own attention, not by the one that it would use."""
    path = saved(Case("granite_swa"), tmp_path / "model")
    assert make(path).layout.attention == attention.ATTENTION
    right = attention.packed_attention
    wrong = lambda *tensors, s_aux=None, **options: right(*tensors, **options)  # noqa: E731
    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.ATTENTION, wrong)
    learner = make(path)
    assert learner.layout.attention == policy.OWN
    assert all("off by" in doubt for doubt in learner.rejected_layouts)


@pytest.mark.parametrize(
    "case",
    [
        Case("opt", {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}),
        Case("starcoder2", {"residual_dropout": 0.5, "embedding_dropout": 0.5, "attention_dropout": 0.5}),
        Case("gptj", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}),
    ],
    ids=lambda case: case.model_type,
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_equal_calls_are_equal(case, checkpointing, make, train, some_groups, ragged, probe, tmp_path):
    """Whatever the model's dropout is, before and after an update; and so are two equal updates."""
    path = saved(case, tmp_path / "model")
    train = replace(train, activation_checkpointing=checkpointing)
    rows = step_rows(some_groups(0, ragged), train)
    states = []
    for _ in range(2):
        learner = make(path, train)
        for _ in range(2):
            first, second = learner.logprobs(probe), learner.logprobs(probe)
            assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
            learner.update(rows)
        states.append(state_digest(learner.state()))
        assert not learner.model.training
    assert states[0] == states[1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointed_layers_are_computed_twice(checkpointing, make, train, some_groups, ragged, tmp_path, monkeypatch):
    path = saved(Case("llama"), tmp_path / "model")
    calls = []
    layer = transformers.models.llama.modeling_llama.LlamaMLP
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: (calls.append(x.requires_grad), forward(self, x))[1])
    train = replace(train, activation_checkpointing=checkpointing, microbatch_tokens=10**6)
    learner = make(path, train)
    calls.clear()
    learner.update(step_rows(some_groups(0, ragged), train))
    layers = len(policy.decoder_layers(learner.model))
    assert len(calls) == (2 if checkpointing else 1) * layers


def test_sequences_beyond_what_positions_allow_are_refused(make, tmp_path):
    """Above 16 tokens a short row would be computed with other rotary frequencies beside a long one than alone."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope |= {"factor": 8.0, "original_max_position_embeddings": 16}
    case = Case("phi3", {"rope_parameters": rope, "original_max_position_embeddings": 16})
    path = saved(case, tmp_path / "model")
    learner = make(path)
    own = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    row = ((1, 2, 3), tuple(range(4, 16)))
    np.testing.assert_allclose(learner.logprobs([row])[0], model_support._exact(own, [row])[0][0], atol=1e-4)
    with pytest.raises(ConfigError, match=r"type phi3 cannot be trained on sequences of 17 tokens: .* change above 16"):
        learner.logprobs([row, ((1, 2, 3), tuple(range(14)))])


def test_every_way_is_tried_from_the_fastest():
    assert layouts.LAYOUTS[0] == layouts.LearnerLayout(True, False, attention.ATTENTION)
    assert [layout.packed for layout in layouts.LAYOUTS] == sorted(
        (layout.packed for layout in layouts.LAYOUTS), reverse=True
    )
    assert str(layouts.LAYOUTS[-1]) == "padded, all logits, its own attention"
