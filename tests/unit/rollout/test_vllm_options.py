"""Names of vLLM's options are those of the vLLM that is installed, without importing it."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kray.config.actor_options import OWN_KEYS, REFUSED
from kray.config.engine_options import STEP_TOKENS
from kray.errors import ConfigError
from kray.rollout.engine_spec import WORKER_EXTENSION, EngineSpec
from kray.rollout.vllm_options import check_options, option_types

SPEC = EngineSpec("model", "float32", 128, 16, 2, 0, 0.1, 0.85, eager=True, seed=3)
ON_GPU = EngineSpec("model", "bfloat16", 128, 16, 2, 1, 0.1, 0.85, eager=False, seed=3, overlap=True)


def test_every_option_that_is_used_or_refused_exists():
    known = option_types()
    assert known is not None
    assert len(known) > 100
    assert {*REFUSED, *OWN_KEYS} - set(known) == set()
    assert {*SPEC.vllm_options(), *ON_GPU.vllm_options()} - set(known) == set()


def test_an_unknown_option_is_refused_with_a_similar_one():
    check_options({})
    check_options({"max_num_batched_tokens": 1, "kv_cache_dtype": "fp8"})
    with pytest.raises(ConfigError, match=r"rollout\.vllm\.max_batched_tokens is not .*mean max_num_batched_tokens\?"):
        check_options({"max_num_batched_tokens": 1, "max_batched_tokens": 1})


@pytest.mark.parametrize(
    ("name", "good", "bad", "wanted"),
    [
        ("max_num_batched_tokens", [1, None], ["abc", 1.5, True, [1]], "int or null"),
        ("block_size", [16, None], ["16"], "int or null"),
        ("cpu_offload_gb", [4, 0.5], ["4", None, False], "float"),
        ("disable_cascade_attn", [True, None], [1, "yes"], "bool or null"),
        ("served_model_name", ["a", ["a"], None], [3], "str or list or null"),
        ("limit_mm_per_prompt", [{"image": 1}], ["image"], "dict"),
        # Choices and classes of vLLM are left to it.
        ("attention_backend", ["FLASH_ATTN", 3], [], ""),
    ],
)
def test_values_have_the_types_that_vllm_declares(name, good, bad, wanted):
    for value in good:
        check_options({name: value})
    for value in bad:
        with pytest.raises(ConfigError, match=re.escape(f"rollout.vllm.{name} must be {wanted} for ")):
            check_options({name: value})


def test_without_vllm_the_engines_find_out(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert option_types() is None
    check_options({"nothing_of_that_name": 1})


def test_several_gpus_divide_the_model():
    two = dataclasses.replace(ON_GPU, gpus=2)
    options = two.vllm_options()
    assert (options["tensor_parallel_size"], options["distributed_executor_backend"]) == (2, "mp")
    assert ON_GPU.vllm_options()["distributed_executor_backend"] == "uni"
    on_cpu = dataclasses.replace(SPEC, cpus=4, tensor_parallel=2)
    # Of each of the two processes.
    assert on_cpu.vllm_options()["kv_cache_memory_bytes"] == SPEC.vllm_options()["kv_cache_memory_bytes"] // 2
    assert on_cpu.environment()["OMP_NUM_THREADS"] == "2"
    assert two.environment()["OMP_NUM_THREADS"] == "1"


def test_vllm_imports_the_transport_by_its_name():
    module, _, name = WORKER_EXTENSION.rpartition(".")
    source = importlib.util.find_spec(module)
    assert source is not None
    assert f"class {name}:" in Path(source.origin).read_text()


def test_names_are_read_without_importing_vllm():
    code = (
        "import sys, kray.rollout.vllm_options as o; o.option_types(); "
        "print([n for n in ('vllm', 'torch', 'ray') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_options_of_the_configuration_come_last():
    given = EngineSpec(
        "model", "float32", 128, 16, 2, 0, 0.1, 0.85, eager=True, seed=3, vllm={"max_num_batched_tokens": 99}
    )
    changed = {key: value for key, value in given.vllm_options().items() if SPEC.vllm_options().get(key) != value}
    assert changed == {"max_num_batched_tokens": 99}


def test_an_engine_without_a_gpu_sees_none():
    assert SPEC.environment()["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in ON_GPU.environment()


def test_variables_of_the_configuration_replace_those_of_kray():
    given = EngineSpec(
        "model", "float32", 1, 1, 2, 0, 0.1, 0.8, eager=True, seed=0, env={"VLLM_LOGGING_LEVEL": "INFO", "X": "1"}
    )
    changed = {key: value for key, value in given.environment().items() if SPEC.environment().get(key) != value}
    assert changed == {"VLLM_LOGGING_LEVEL": "INFO", "X": "1"}


def test_a_gpu_engine_gets_graphs_and_its_share_of_the_memory():
    options = ON_GPU.vllm_options()
    assert (options["enforce_eager"], options["gpu_memory_utilization"], options["tensor_parallel_size"]) == (
        False,
        0.85,
        1,
    )
    assert options["async_scheduling"] is False
    assert "kv_cache_memory_bytes" not in options
    assert "gpu_memory_utilization" not in SPEC.vllm_options()


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        ({}, STEP_TOKENS),
        ({"gpus": 0}, STEP_TOKENS),
        # A step has a token of every sequence: vLLM refuses fewer.
        ({"max_sequences": 10_000}, 10_000),
        ({"max_sequences": 10_000, "gpus": 0}, 10_000),
        # A prompt that is not computed in chunks must fit into a step.
        ({"context_tokens": 30_000}, STEP_TOKENS),
        ({"context_tokens": 30_000, "gpus": 0}, 30_000),
        ({"context_tokens": 30_000, "vllm": {"enable_chunked_prefill": False}}, 30_000),
        ({"context_tokens": 30_000, "gpus": 0, "vllm": {"enable_chunked_prefill": True}}, STEP_TOKENS),
        ({"max_sequences": 10_000, "vllm": {"max_num_batched_tokens": 16_384}}, 16_384),
    ],
)
def test_the_tokens_of_a_step_are_set_and_never_left_to_vllm(change, tokens):
    assert dataclasses.replace(ON_GPU, **change).vllm_options()["max_num_batched_tokens"] == tokens
