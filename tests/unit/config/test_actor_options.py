"""What may be passed on to actors, and what is refused with its reason."""

from __future__ import annotations

import pytest

from kray.config import flat, load_config, to_yaml
from kray.config.actor_options import OWN_KEYS, REFUSED, option_problems, variables_of
from kray.config.reading import all_keys
from kray.config.schema import KrayConfig
from kray.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: x}\n")
    return lambda *overrides: load_config(file, list(overrides))


def test_variables_and_options_are_read(load):
    config = load("run.env={NCCL_DEBUG: INFO, NCCL_IB_DISABLE: 1}", "rollout.vllm.max_num_batched_tokens=16384")
    assert variables_of(config.run.env) == {"NCCL_DEBUG": "INFO", "NCCL_IB_DISABLE": "1"}
    assert config.rollout.vllm == {"max_num_batched_tokens": 16384}
    assert load("rollout.vllm.kv_cache_dtype=auto").rollout.vllm == {"kv_cache_dtype": "auto"}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("run.env={CUDA_VISIBLE_DEVICES: 1}", ["run.env.CUDA_VISIBLE_DEVICES cannot be set: Ray gives each actor"]),
        ("run.env={OMP_NUM_THREADS: 4}", ["rollout.threads_per_engine and train.threads_per_rank"]),
        ("run.env={VLLM_ENABLE_V1_MULTIPROCESSING: 1}", ["run.env.VLLM_ENABLE_V1_MULTIPROCESSING cannot be set"]),
        ("run.env={NCCL_P2P_DISABLE: true}", ["run.env.NCCL_P2P_DISABLE must be text or a number, not True"]),
        ("run.env={A: [1]}", ["run.env.A must be text or a number"]),
        ("run.env={'A B': 1}", ["'A B' is not the name of an environment variable"]),
        (
            "rollout.vllm.quantization=fp8",
            ["rollout.vllm.quantization must be one of null, fp8_per_tensor", "not 'fp8'"],
        ),
        ("rollout.vllm.quantization=fp8_per_tensor", ["quantization fp8_per_tensor needs engines on GPUs"]),
        ("rollout.vllm.kv_cache_dtype=int8", ["rollout.vllm.kv_cache_dtype must be one of auto, fp8", "not 'int8'"]),
        ("rollout.vllm.quantization_config={linear: mxfp4}", ["cannot be set: rollout.vllm.quantization names"]),
        ("rollout.vllm.hf_overrides={rope_theta: 1}", ["rollout.vllm.hf_overrides cannot be set", "another model"]),
        ("rollout.vllm.logprobs_mode=raw_logprobs", ["the distribution that was sampled"]),
        ("rollout.vllm.speculative_config={model: x}", ["the draft model would not be trained"]),
        (
            "rollout.vllm.tensor_parallel_size=2",
            ["rollout.vllm.tensor_parallel_size is set by rollout.gpus_per_engine"],
        ),
        ("rollout.vllm.dtype=half", ["is set by model.dtype"]),
    ],
)
def test_what_would_break_a_run_is_refused_with_the_reason(load, override, parts):
    with pytest.raises(ConfigError) as error:
        load(override)
    assert all(part in str(error.value) for part in parts), error.value
    assert f"command line: {override}" in str(error.value)


def test_every_refusal_names_its_key():
    found = dict(option_problems({}, dict.fromkeys([*REFUSED, *OWN_KEYS], 1)))
    assert found.keys() == {f"rollout.vllm.{name}" for name in [*REFUSED, *OWN_KEYS]}
    assert all(text.startswith(key) for key, text in found.items())
    assert set(OWN_KEYS.values()) <= set(all_keys(KrayConfig))


def test_secrets_among_variables_are_not_written_down(load, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_a-secret-of-the-tests")
    config = load("run.env.HF_TOKEN=${oc.env:HF_TOKEN}")
    assert variables_of(config.run.env)["HF_TOKEN"] == "hf_a-secret-of-the-tests"
    assert "hf_a-secret" not in to_yaml(config)
    assert flat(config)["run.env.HF_TOKEN"] == "***"
