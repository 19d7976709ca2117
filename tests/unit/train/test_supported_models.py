"""Models that are refused by their configuration alone."""

from __future__ import annotations

import pytest
import transformers
from transformers import AutoConfig

from kray.errors import ConfigError
from kray.train.model import load_policy
from kray.train.supported_models import check_supported

EXPERTS = ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "dbrx", "phimoe", "olmoe", "jamba", "llama4_text", "zaya"]
DENSE = ["qwen2", "qwen3", "llama", "mistral", "gemma3_text", "phi3", "gemma4_text", "doge", "dots1", "mamba"]


@pytest.mark.parametrize("model_type", EXPERTS)
def test_mixtures_of_experts_are_refused(model_type):
    with pytest.raises(ConfigError, match=rf"type {model_type} cannot be trained: it is a mixture of experts \(.*: \d"):
        check_supported(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("model_type", DENSE)
def test_dense_models_are_taken(model_type):
    check_supported(AutoConfig.for_model(model_type))


@pytest.mark.parametrize(
    ("config", "taken"),
    [
        (transformers.JambaConfig(num_experts=1), False),  # an engine would use the code of several
        (transformers.GraniteMoeHybridConfig(num_local_experts=0), True),
        (transformers.Gemma4TextConfig(enable_moe_block=True, num_experts=4, top_k_experts=2), False),
        (transformers.DogeConfig(is_moe=True), False),
        (transformers.Qwen3Config(n_extra_experts=[0, 4]), False),  # a key that no known model has
        (transformers.Qwen3Config(num_experts_per_tok=2), True),  # says nothing without a number of experts
        (transformers.NemotronHConfig(layers_block_type=["mamba", "attention", "mlp"]), True),
        (transformers.NemotronHConfig(layers_block_type=["mamba", "attention", "moe"]), False),
    ],
)
def test_experts_are_what_the_configuration_says(config, taken):
    if taken:
        return check_supported(config)
    with pytest.raises(ConfigError, match="mixture of experts"):
        check_supported(config)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.T5Config(), "encoder with a decoder"),
        (transformers.BartConfig(), "encoder with a decoder"),
        (transformers.ViTConfig(), "knows no causal language model"),
        (transformers.Gemma3Config(), "reads or writes images or sound"),
    ],
)
def test_what_is_no_model_of_text_alone_is_refused(config, reason):
    with pytest.raises(ConfigError, match=reason):
        check_supported(config)


def test_a_refused_model_is_never_loaded(tmp_path):
    transformers.MixtralConfig().save_pretrained(tmp_path)  # there are no weights in the folder
    for empty in (True, False):
        with pytest.raises(ConfigError, match=r"type mixtral cannot be trained"):
            load_policy(str(tmp_path), empty=empty)
