"""Tiny models of every type that AutoModelForCausalLM supports, with which kray/bench/model_support.py finds what works."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kray.train.supported_models import ENCODERS

MIXED = ["sliding_attention", "full_attention"]
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS = 32, 4, 2, 8, 48, 4
# The first pattern that fully matches a key of a configuration gives its tiny value.
SIZES: tuple[tuple[str, Any], ...] = (
    (r"(num_hidden|n|num|decoder|encoder)_?layers?|num_blocks", LAYERS),
    (r"num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups|swa_num_key_value_heads", KV_HEADS),
    (r"qk_head_dim", 2 * HEAD_DIM),
    (r"(mamba_n|n_mamba|mamba_num)_heads", 8),
    (r"mamba_(d_head|headdim|head_dim)", 8),
    (r"mamba_d_ssm", 64),
    (r"linear_num_key_heads", 2),
    (r"(.*_)?(num|n)_?(.*_)?heads?|(encoder_|decoder_)?attention_heads", HEADS),
    (r"(.*_)?(head_dim|dim_head|d_head|kv_channels|attention_head_(size|dim)|rotary_dim)", HEAD_DIM),
    (
        r"hidden_size(_global)?|n_embd|d_model|emb_dim|embedding_(dim|size)|word_embed_proj_dim|(in|out)put_embedding_size",
        HIDDEN,
    ),
    (r"lru_width|attention_hidden_size", HIDDEN),
    (r"(.*_)?intermediate_size|(.*_)?ffn_(dim|hidden_size)|d_?ff|dim_ff|n_inner|feed_forward_size|d_inner", INNER),
    (r"(.*_)?vocab(_size)?(_.*)?", 64),
    (r"max_position_embeddings|n_positions|n_ctx|context_length|max_seq_len", 128),
    (r"local_attention", 8),
    (r"original_max_position_embeddings", 16),
    (r"sliding_window|(attention_)?window_size|attention_chunk_size", 4),
    (r"(mamba_)?(d_state|state_size)|ssm_state_size", 4),
    (r"q_lora_rank|kv_lora_rank|mamba_dt_rank|.*lora_rank|adapter_rank", 8),
    (r"(mamba_)?n_?groups|num_groups", 1),
    (r".*drop(out)?(_prob)?|.*dropout.*|.*pdrop", 0.1),
    (r"initializer_range|init_std|embed_init_std", 0.2),
)


# Settings that a type needs in addition, or must not have.
NEEDS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {k: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]} for k in MIXED},
        "layer_types": MIXED * 2,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "diffllama": {"attention_dropout": 0.0},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": MIXED * 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {"num_kv_shared_layers": 2, "layer_types": MIXED * 2, "per_layer_config": {}},
    "gemma4_unified_text": {"num_kv_shared_layers": 2, "layer_types": MIXED * 2, "per_layer_config": {}},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "full_attn_idxs": [1, 3]},
    "minicpm3": {"num_key_value_heads": HEADS},
    "mamba2": {"num_heads": 8},
    "xmod": {"default_language": "en_XX"},
    "youtu": {"num_key_value_heads": HEADS},
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 8,
        "hybrid_layer_ids": [3],
        "layers_block_type": ["linear_attention"] * 3 + ["hybrid"],
    },
    "zamba": {
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
    },
}


# Components without which a configuration cannot be made at all.
PARTS = {
    kind: {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}, "decoder": {}}
    for kind in ("musicgen", "musicgen_melody")
}
# Noise of the weights: smaller where deep recursion amplifies rounding.
NOISE = {"hrm_text": 0.02}


@dataclass(frozen=True, slots=True)
class Case:
    """A model type and the keys that make a variant of it."""

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        changes = ", ".join(f"{key}: {_shown(value)}" for key, value in self.changes.items() if value is not None)
        return f"{self.model_type} ({changes})" if changes else self.model_type


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["rope_type"])
    return str(value).lower() if isinstance(value, bool) else str(value)


WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "layer_types": None}
ROPE = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", **ROPE, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
VARIANTS = (
    *(Case(kind, {"is_decoder": True}) for kind in sorted(ENCODERS)),
    Case("big_bird", {"is_decoder": True, "attention_type": "original_full"}),
    Case("bloom", {"apply_residual_connection_post_layernorm": True}),
    Case("cohere", {"use_qk_norm": True}),
    Case("falcon", {"alibi": True}),
    Case("falcon", {"new_decoder_architecture": True}),
    Case("falcon", {"multi_query": False, "parallel_attn": False, "num_kv_heads": HEADS}),
    Case("gemma3_text", {"use_bidirectional_attention": True}),
    Case("gemma2", {"sliding_window": 16}),
    Case("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    Case("gpt_bigcode", {"multi_query": False}),
    Case("gpt_neox", {"use_parallel_residual": False}),
    Case("granitemoehybrid", {"num_local_experts": 0}),
    Case("llama", {"is_causal": False}),
    Case("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    Case("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    Case("llama", {"rope_parameters": {"rope_type": "yarn", **ROPE}}),
    Case("mistral", {"sliding_window": 128}),
    Case("mpt", {"norm_type": "low_precision_layernorm", "learned_pos_emb": False}),
    Case("nemotron_h", {"layers_block_type": ["mamba", "attention", "mlp", "mamba"]}),
    Case("olmo", {"clip_qkv": 0.5}),
    Case("opt", {"do_layer_norm_before": False}),
    Case("opt", {"layerdrop": 0.9}),
    Case("phi", {"qk_layernorm": True}),
    Case("phi3", {"sliding_window": 4}),
    Case("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    Case("qwen2", WINDOWS),
    Case("qwen3", WINDOWS),
    Case("smollm3", WINDOWS),
    Case("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    Case("starcoder2", {"sliding_window": 4}),
    Case("xlm", {"causal": True}),
    Case("xlnet", {"attn_type": "uni"}),
)


def cases() -> list[Case]:
    """Return every type with its default settings, then the variants."""
    return [*map(Case, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), *VARIANTS]


def default_config(model_type: str) -> PretrainedConfig:
    """Return the default configuration of a type."""
    # A copy: the configuration modifies its parts.
    return AutoConfig.for_model(model_type, **deepcopy(PARTS.get(model_type, {})))


def tiny_config(case: Case) -> PretrainedConfig:
    """Return the case's configuration with small sizes and windows, and with dropout, whose use would be noticed."""
    default = default_config(case.model_type)
    values = _tiny(default.to_dict()) | NEEDS.get(case.model_type, {}) | case.changes
    return type(default)(**{key: value for key, value in values.items() if key != "model_type"})


def _tiny(values: dict[str, Any]) -> dict[str, Any]:
    layers = next((v for k, v in values.items() if re.fullmatch(SIZES[0][0], k) and isinstance(v, int)), 0)
    small: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("transformers_version", "architectures", "id2label", "label2id"):
            continue
        if isinstance(value, dict):
            small[key] = _tiny(value)
        elif isinstance(value, list) and layers > 1 and len(value) == layers:
            small[key] = _cut(value)
        elif key.endswith("_token_id") and value is not None:
            small[key] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}.get(key, 3)
        elif (isinstance(value, int | float) and not isinstance(value, bool)) or key in (
            "head_dim",
            "num_key_value_heads",
        ):
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, key)), value)
            small[key] = value if isinstance(value, int) and isinstance(size, float) else size
        else:
            small[key] = value
    return small


def _cut(kinds: list[Any]) -> list[Any]:
    """Return LAYERS entries with every kind among them."""
    found = list(dict.fromkeys(map(str, kinds)))
    first = kinds[:LAYERS]
    if len(found) > LAYERS:
        return first
    missing = [k for k in found if k not in map(str, first)]
    for place, kind in enumerate(reversed(missing)):
        first[LAYERS - 1 - place] = next(k for k in kinds if str(k) == kind)
    return first


def tiny_model(config: PretrainedConfig) -> Any:
    """Make a model in which every parameter matters: biases, norms and attention sinks are not at their initial values."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    noise = NOISE.get(config.model_type, 0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return model.eval()
