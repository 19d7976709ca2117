"""Which models kray refuses, judged by their configuration alone.

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kray.records import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Switches by which a configuration that counts experts says that it uses none.
MOE_SWITCHES = ("is_moe", "enable_moe_block")
# Lists of what each layer's feed-forward part is, for instance dense or sparse.
MLP_LISTS = ("mlp_layer_types", "layers_block_type")


def check_supported(config: PretrainedConfig) -> None:
    """Refuse a model that kray cannot train rightly.

    Args:
        config: The model's configuration, as AutoConfig.from_pretrained returns it.

    Raises:
        ConfigError: One sentence that names the model type and the reason.
    """
    reason = refusal(config)
    if reason is not None:
        raise ConfigError(f"model.path: a model of type {config.model_type} cannot be trained: {reason}")


def refusal(config: PretrainedConfig) -> str | None:
    """The reason for which a model with this configuration is refused, or None."""
    experts = _experts(config.to_dict())
    if experts is not None:
        return (
            f"it is a mixture of experts ({experts}), and no engine has yet been shown to compute the same after a reload "
            "of its weights; choose a dense model"
        )
    return _no_language_model(config)


def _no_language_model(config: PretrainedConfig) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    if config.is_encoder_decoder:
        return "it is an encoder with a decoder, and only models of a decoder alone are trained"
    if config.model_type not in CLASSES:
        return "transformers knows no causal language model of this type"
    if CLASSES[config.model_type].endswith("ForConditionalGeneration"):
        return "it reads images or sound besides text, and only models of text are trained"
    return None


def _experts(values: dict[str, Any]) -> str | None:
    """What says that the model has experts, as `key: value`; None for a dense model.

    A count of one is refused, too: the engine would compute it by the same code.
    """
    for name, part in _parts(values):
        if _says_dense(part):
            continue
        for key, value in part.items():
            if _counts_experts(str(key)) and _largest(value) >= 1:
                return f"{name}{key}: {_largest(value)}"
    return None


def _says_dense(part: dict[str, Any]) -> bool:
    """Whether a switch, or a list of what each layer is, says that no layer has experts."""
    kinds: set[Any] = set()
    for key in MLP_LISTS:
        if isinstance(part.get(key), list | tuple):
            kinds |= set(part[key]) & {"mlp", "dense", "moe", "sparse"}
    return any(part.get(switch) is False for switch in MOE_SWITCHES) or (bool(kinds) and kinds <= {"mlp", "dense"})


def _parts(values: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The configuration and those nested in it, each with its name and a dot."""
    yield name, values
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _parts(value, f"{name}{key}.")


def _counts_experts(key: str) -> bool:
    """num_experts, num_local_experts, n_routed_experts, moe_num_experts and the like; not how many a token takes."""
    return re.search(r"experts$", key) is not None and "shared" not in key and not key.startswith("top_k")


def _largest(value: Any) -> int:
    """Of a number or of a list with one for each layer; 0 for anything else."""
    numbers = value if isinstance(value, list | tuple) else [value]
    return max((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), default=0)
