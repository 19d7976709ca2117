"""Numbers among the options of vLLM: which are refused, what is counted of them, and what is proposed instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paper_models import SMALL_PAPER, paper_sizes

from kray.config import KrayConfig, load_config
from kray.config.memory import GIB, engine_memory
from kray.config.memory_check import Devices, memory_rows, require_fits
from kray.config.model_sizes import ModelSizes
from kray.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL, LARGE = SMALL_PAPER["0.5b"], paper_sizes("Qwen/Qwen2.5-Math-7B")
TOKENS, CACHE = "rollout.vllm.max_num_batched_tokens", "rollout.vllm.kv_cache_memory_bytes"


def gsm8k(*overrides: str) -> KrayConfig:
    return load_config(CONFIGS / "gsm8k.yaml", list(overrides))


def refused(config: KrayConfig, sizes: ModelSizes, gpu_gib: float) -> str:
    """Return the message with which an engine on such a GPU is refused; "" where it is not."""
    config.train.gpus_per_rank = 0
    try:
        require_fits(config, sizes, Devices(gpu=int(gpu_gib * GIB)))
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "key", ["max_num_batched_tokens", "block_size", "kv_cache_memory_bytes", "num_gpu_blocks_override"]
)
@pytest.mark.parametrize("value", ["0", "-5", "abc", "1.5", "true"])
def test_numbers_that_engines_count_with_are_whole_and_positive(key, value):
    with pytest.raises(ConfigError, match=rf"rollout\.vllm\.{key} must be a whole number of 1 or more, not "):
        gsm8k(f"rollout.vllm.{key}={value}")


def test_what_is_counted_is_not_left_to_vllm():
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens must be a whole number of 1 or more, not null"):
        gsm8k(f"{TOKENS}=null")
    gsm8k("rollout.vllm.num_gpu_blocks_override=null")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{TOKENS}=200"], "200 is below rollout.max_sequences 256, each of which has a token in a step"),
        ([f"{TOKENS}=256"], ""),
        ([f"{TOKENS}=1024", "rollout.vllm.enable_chunked_prefill=false"], "1024 is below the 1536 tokens of a prompt"),
        ([f"{TOKENS}=1024", "rollout.gpus_per_engine=0"], "1024 is below the 1536 tokens of a prompt and its response"),
        ([f"{TOKENS}=1024", "rollout.gpus_per_engine=0", "rollout.vllm.enable_chunked_prefill=true"], ""),
        ([f"{TOKENS}=1536", "rollout.gpus_per_engine=0"], ""),
    ],
)
def test_a_step_has_a_token_of_each_sequence_and_a_whole_prompt_without_chunks(overrides, message):
    if not message:
        gsm8k(*overrides)
        return
    with pytest.raises(ConfigError) as error:
        gsm8k(*overrides)
    assert f"{TOKENS} {message}" in str(error.value)


def test_given_bytes_of_keys_and_values_are_those_that_are_counted():
    given = gsm8k(f"{CACHE}={2 * GIB}")
    assert engine_memory(given, SMALL, None).cache == engine_memory(given, SMALL, 24 * GIB).cache == 2 * GIB
    given.rollout.gpus_per_engine = 0
    assert engine_memory(given, SMALL, None).cache == 2 * GIB
    given = gsm8k(f"{CACHE}={2 * GIB}")
    rows = dict(memory_rows(given, SMALL, Devices(gpu=24 * GIB)))
    assert rows["  keys and values"].startswith("2.00 GiB, 12,288 bytes a token: 113 sequences")
    # The share bounds weights and what is computed only as vLLM starts.
    assert "gpu_memory_share" not in rows["memory of an engine"]


@pytest.mark.parametrize(
    ("given", "gpu_gib", "said"),
    [
        (2 * GIB, 22.5, ""),
        # More than rollout.gpu_memory_share leaves, and there.
        (19 * GIB, 22.5, ""),
        (40 * GIB, 22.5, "a GPU has 21.5 GiB for an engine, of which weights take 0.9 and computing about 0.6;"),
        (1000, 22.5, "is less than keys and values of one sequence of 1,536 tokens;"),
    ],
)
def test_a_given_cache_must_fit_and_hold_a_sequence(given, gpu_gib, said):
    told = refused(gsm8k(f"{CACHE}={given}"), SMALL, gpu_gib)
    assert said in told
    assert bool(told) == bool(said)
    if said:
        proposed = re.search(r"kv_cache_memory_bytes=(\d+) fits", told)
        assert refused(gsm8k(f"{CACHE}={proposed[1]}"), SMALL, gpu_gib) == ""


def test_a_given_cache_does_not_hide_that_weights_do_not_fit():
    assert "needs 14.2 GiB for weights" in refused(gsm8k(f"{CACHE}={2 * GIB}"), LARGE, 10)


@pytest.mark.parametrize(
    ("sizes", "gpu_gib", "overrides", "names"),
    [
        (SMALL, 22.5, ["rollout.max_sequences=100000"], ["rollout.max_sequences"]),
        (LARGE, 79, ["rollout.max_sequences=100000"], ["rollout.max_sequences"]),
        (LARGE, 79, [f"{TOKENS}=2000000"], [TOKENS]),
        (LARGE, 79, [f"{TOKENS}=2000000", "rollout.max_sequences=300000"], ["rollout.max_sequences", TOKENS]),
    ],
)
def test_what_computing_takes_too_much_for_is_named_with_a_value_that_fits(sizes, gpu_gib, overrides, names):
    told = refused(gsm8k(*overrides), sizes, gpu_gib)
    assert "smaller model" not in told
    proposed = [part for part in re.split("; | or ", told) if part.endswith(" fits one") and names[0] in part]
    changes = proposed[0].removesuffix(" fits one").split()
    assert [change.partition("=")[0] for change in changes] == names
    assert refused(gsm8k(*overrides, *changes), sizes, gpu_gib) == ""


def test_nothing_of_a_step_is_proposed_where_it_does_not_help():
    told = refused(gsm8k("rollout.max_response_tokens=300000"), LARGE, 22.5)
    assert "max_response_tokens=" in told
    assert "max_sequences=" not in told
    assert "choose a smaller model" in refused(gsm8k(), LARGE, 1)
