"""Decides from a model's configuration whether kray can train it.

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Keys that, when false, mean that a configuration which counts experts uses none.
MOE_SWITCHES = ("is_moe", "enable_moe_block")
# Keys of lists that give the kind of each layer's feed-forward part, for instance dense or sparse.
MLP_LISTS = ("mlp_layer_types", "layers_block_type")

# Encoders whose classes are decoders with is_decoder: true.
ENCODERS = frozenset(
    {
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
NOT_TEXT = "it reads or writes images or sound besides text, and only models of text are trained"
NOT_CAUSAL = "it is not causal: a token sees later ones"
# Reasons that no key of a configuration reveals.
REASONS = {
    "cpmant": NOT_CAUSAL,
    "fuyu": NOT_TEXT,
    "gemma4_assistant": "it drafts for another model, whose states it reads",
    "gemma4_unified_assistant": "it drafts for another model, whose states it reads",
    "reformer": "it can be trained only in train mode, in which its dropout is active",
    "trocr": NOT_TEXT,
    "xlstm": "what it computes for a token depends on how many tokens follow",
}
# Kinds of rotary positions that change with the longest sequence of a batch.
LENGTH_DEPENDENT = ("dynamic", "longrope")


def check_supported(config: PretrainedConfig, tokens: int | None = None) -> None:
    """Refuse a model that kray cannot train correctly.

    Args:
        config: The model's configuration, as AutoConfig.from_pretrained returns it.
        tokens: The longest sequence of the run, prompt and response together; None where it is not known.

    Raises:
        ConfigError: One sentence that names the model type and the reason.
    """
    reason = refusal(config)
    if reason is not None:
        raise ConfigError(f"model.path: a model of type {config.model_type} cannot be trained: {reason}")
    if tokens is not None:
        check_length(config, tokens)


def check_length(config: PretrainedConfig, tokens: int) -> None:
    """Refuse sequences so long that the model's positions would depend on the rest of their batch.

    Args:
        config: The model's configuration.
        tokens: Longest sequence, prompt and response together.

    Raises:
        ConfigError: One sentence that names the model type and the length up to which it can be trained.
    """
    most = longest_sequence(config)
    if most is not None and tokens > most:
        raise ConfigError(
            f"model.path: a model of type {config.model_type} cannot be trained on sequences of {tokens} tokens: its rotary "
            f"positions change above {most}; lower prompts.max_tokens or rollout.max_response_tokens"
        )


def refusal(config: PretrainedConfig) -> str | None:
    """Return the reason for which a model with this configuration is refused, None for a supported one."""
    experts = _experts(config.to_dict())
    if experts is not None:
        return (
            f"it is a mixture of experts ({experts}), and no engine has yet been shown to compute the same after a reload "
            "of its weights; choose a dense model"
        )
    return _not_language_model(config) or REASONS.get(config.model_type) or _not_causal(config)


def longest_sequence(config: PretrainedConfig) -> int | None:
    """Return the most tokens of a sequence whose positions do not depend on its batch; None for any number."""
    text = config.get_text_config()
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in [ropes, *(part for part in ropes.values() if isinstance(part, dict))]:
        if rope.get("rope_type") in LENGTH_DEPENDENT:
            original = rope.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            return int(original or text.max_position_embeddings)
    return None


def _not_language_model(config: PretrainedConfig) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    if config.is_encoder_decoder:
        return "it is an encoder with a decoder, and only models of a decoder alone are trained"
    if config.model_type not in CLASSES:
        return "transformers knows no causal language model of this type"
    more = [name for name in config.sub_configs if re.search(r"vision|image|audio|speech|vq", name)]
    if CLASSES[config.model_type].endswith("ForConditionalGeneration") or more:
        return NOT_TEXT
    return None


def _not_causal(config: PretrainedConfig) -> str | None:
    text: Any = config.get_text_config()
    if config.model_type in ENCODERS and not text.is_decoder:
        return f"{NOT_CAUSAL} (is_decoder: false)"
    for key, value in {
        "is_causal": False,
        "use_bidirectional_attention": True,
        "causal": False,
        "attn_type": "bi",
    }.items():
        if getattr(text, key, None) == value and isinstance(getattr(text, key), type(value)):
            return f"{NOT_CAUSAL} ({key}: {str(value).lower()})"
    if getattr(text, "attention_type", None) == "block_sparse":
        return "it attends to blocks that are drawn at random (attention_type: block_sparse)"
    return None


def _experts(values: dict[str, Any]) -> str | None:
    """Return the setting that shows that the model has experts, as `key: value`; None for a dense model.

    A single expert counts, too: the engine computes it by the same code.
    """
    for name, part in _parts(values):
        if _is_dense(part):
            continue
        for key, value in part.items():
            if _counts_experts(str(key)) and _largest(value) >= 1:
                return f"{name}{key}: {_largest(value)}"
    return None


def _is_dense(part: dict[str, Any]) -> bool:
    """Return whether a switch, or a list of layer kinds, shows that no layer has experts."""
    kinds: set[Any] = set()
    for key in MLP_LISTS:
        if isinstance(part.get(key), list | tuple):
            kinds |= set(part[key]) & {"mlp", "dense", "moe", "sparse"}
    return any(part.get(switch) is False for switch in MOE_SWITCHES) or (bool(kinds) and kinds <= {"mlp", "dense"})


def _parts(values: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the configuration and those nested in it, each with its name followed by a dot."""
    yield name, values
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _parts(value, f"{name}{key}.")


def _counts_experts(key: str) -> bool:
    """Return whether a key is num_experts, num_local_experts, n_routed_experts or the like; not experts a token."""
    return re.search(r"experts$", key) is not None and "shared" not in key and not key.startswith("top_k")


def _largest(value: Any) -> int:
    """Return a number, or the largest of a list with one for each layer; 0 for anything else."""
    numbers = value if isinstance(value, list | tuple) else [value]
    return max((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), default=0)
