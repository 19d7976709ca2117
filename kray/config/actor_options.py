"""What may be passed on to actors: environment variables (run.env) and options of vLLM (rollout.vllm). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Variables that run.env cannot set -> why, or what sets them.
OWN_VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "Ray gives each actor its GPUs (rollout.gpus_per_engine, train.gpus_per_rank)",
    "OMP_NUM_THREADS": "rollout.threads_per_engine and train.threads_per_rank set it",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "an engine computes in its actor's process, where its weights are replaced",
}

# Options of vLLM that another key sets.
OWN_KEYS = {
    "model": "model.path",
    "dtype": "model.dtype",
    "max_model_len": "rollout.max_context_tokens",
    "max_num_seqs": "rollout.max_sequences",
    "enforce_eager": "rollout.eager",
    "gpu_memory_utilization": "rollout.gpu_memory_share",
    "tensor_parallel_size": "rollout.gpus_per_engine",
    "seed": "run.seed",
    "enable_sleep_mode": "rollout.colocate",
}
ANOTHER_MODEL = "the engine would compute another model than the learner"
ADAPTERS = "model.lora and rollout.lora decide which adapters an engine takes"
SCHEMES = "rollout.vllm.quantization names the schemes that are possible"
ONLY_LAYERS = "the GPUs of an engine divide its layers (rollout.gpus_per_engine); rollout.engines adds engines"
LOADED = "weights reach the engine from the learner, by kray's own transport, on the node of the engine's actor"
STOPS = "a rollout is sampled as `rollout` says and ends at the learner's stop tokens alone"
# Options of vLLM that break what kray guarantees -> the reason.
REFUSED = {
    "logprobs_mode": "the update needs the log-probabilities of the distribution that was sampled",
    "logits_processors": "tokens would be drawn from another distribution than the policy",
    "watermark_config": "tokens would be drawn from another distribution than the policy",
    "quantization_config": SCHEMES,
    "speculative_config": "drafted tokens are not drawn by the rollout's seed, and the draft model would not be trained",
    "hf_overrides": ANOTHER_MODEL,
    "model_class_overrides": ANOTHER_MODEL,
    "model_impl": ANOTHER_MODEL,
    "hf_config_path": ANOTHER_MODEL,
    "revision": ANOTHER_MODEL,
    "code_revision": ANOTHER_MODEL,
    "tokenizer": ANOTHER_MODEL,
    "tokenizer_revision": ANOTHER_MODEL,
    "diffusion_config": ANOTHER_MODEL,
    "enable_lora": ADAPTERS,
    "max_loras": ADAPTERS,
    "max_cpu_loras": ADAPTERS,
    "max_lora_rank": ADAPTERS,
    "lora_dtype": ADAPTERS,
    "lora_target_modules": ADAPTERS,
    "kv_sharing_fast_prefill": "the log-probabilities of a prompt, by which an engine proves its weights, would be wrong",
    "generation_config": STOPS,
    "override_generation_config": STOPS,
    "runner": "an engine generates",
    "convert": "an engine generates",
    "skip_tokenizer_init": "kray decides whether an engine needs the tokenizer",
    "distributed_executor_backend": LOADED,
    "weight_transfer_config": LOADED,
    "worker_cls": LOADED,
    "worker_extension_cls": LOADED,
    "async_scheduling": "with async.max_staleness above 0, tokens would be reported with the wrong policy version",
    "pipeline_parallel_size": ONLY_LAYERS,
    "data_parallel_size": ONLY_LAYERS,
    "prefill_context_parallel_size": ONLY_LAYERS,
    "decode_context_parallel_size": ONLY_LAYERS,
    "nnodes": ONLY_LAYERS,
}
# Short names of the parts of an option that is refused.
REFUSED |= {name: REFUSED["speculative_config"] for name in ("spec_method", "spec_model", "spec_tokens")}


def option_problems(variables: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what cannot be passed on.

    Args:
        variables: run.env.
        options: rollout.vllm. Whether vLLM has an option of that name is checked where vLLM is (kray/rollout/vllm_options.py).
    """
    for name, value in variables.items():
        key = f"run.env.{name}"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield key, f"run.env: {name!r} is not the name of an environment variable"
        elif name in OWN_VARIABLES:
            yield key, f"{key} cannot be set: {OWN_VARIABLES[name]}"
        elif isinstance(value, bool) or not isinstance(value, str | int | float):
            yield key, f"{key} must be text or a number, not {value!r}: put it in quotes"
        elif "\0" in str(value):
            yield key, f"{key} holds a zero byte"
    for name in options:
        key = f"rollout.vllm.{name}"
        if name in OWN_KEYS:
            yield key, f"{key} is set by {OWN_KEYS[name]}"
        elif name in REFUSED:
            yield key, f"{key} cannot be set: {REFUSED[name]}"


def variables_of(env: Mapping[str, Any]) -> dict[str, str]:
    """Return run.env as a process takes it."""
    return {name: str(value) for name, value in env.items()}
