"""Whether adapters go to engines as adapters or merged into whole weights."""

from __future__ import annotations

import pytest

from kray.config import load_config
from kray.config.validation import check
from kray.errors import ConfigError
from kray.rollout.adapters import AdapterSpec, adapters_of

BASE = ("model.tiny={}", "model.lora={}")


def configured(tmp_path, *keys):
    file = tmp_path / "c.yaml"
    file.write_text("prompts: {train: {kind: arithmetic}, test: {kind: arithmetic, split: test}}\n")
    return load_config(file, [*BASE, *keys])


@pytest.mark.parametrize("keys", [["model.lora=null"], [], ["rollout.gpus_per_engine=1"], ["rollout.lora=merged"]])
def test_adapters_are_merged_unless_asked_for(tmp_path, keys):
    assert adapters_of(configured(tmp_path, *keys)) is None


def test_adapters_go_as_adapters(tmp_path):
    config = configured(tmp_path, "rollout.lora=adapter", "model.lora.rank=12", "model.lora.alpha=6")
    assert adapters_of(config) == AdapterSpec(12, 6.0)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["model.lora.rank=513"], "vLLM takes adapters up to rank 512, model.lora.rank is 513"),
        (["model.lora.targets=[q_proj,lm_head]"], "no adapter of the output layer"),
        (["rollout.colocate=true"], "engines discard the model's weights"),
        (["rollout.gpus_per_engine=1", "model.dtype=float32"], "compute in bfloat16, model.dtype is float32"),
        (
            ["environment.name=nim", "environment.roles={second: {opponent: start}}"],
            "an opponent plays with whole weights",
        ),
    ],
)
def test_what_vllm_cannot_take_is_refused(tmp_path, keys, reason):
    with pytest.raises(ConfigError, match=r"rollout\.lora adapter: .*; set rollout.lora to merged") as refused:
        configured(tmp_path, *keys, "rollout.lora=adapter")
    assert reason in str(refused.value)


def test_adapter_without_model_lora_is_refused(tmp_path):
    config = configured(tmp_path)
    config.model.lora, config.rollout.lora = None, "adapter"
    assert check(config) == ["rollout.lora adapter: there are none, model.lora is null"]


@pytest.mark.parametrize(("rank", "padded"), [(1, 8), (8, 8), (9, 16), (200, 256), (512, 512)])
def test_rank_is_padded_to_one_that_vllm_has(rank, padded):
    assert AdapterSpec(rank, 1.0).vllm_options() == {"enable_lora": True, "max_loras": 1, "max_lora_rank": padded}
