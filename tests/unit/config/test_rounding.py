"""Engines that compute with 8-bit numbers: importance weights, tolerance and memory that follow."""

from __future__ import annotations

import pytest
from paper_models import paper_sizes

from kray.config import load_config
from kray.config.advice import warnings
from kray.config.memory import GIB, engine_memory
from kray.config.rounding import KV_DTYPES, QUANTIZATIONS, ROUNDED_TOLERANCE
from kray.config.train_schema import TIS_CAP, TrainConfig
from kray.train.loss import LossConfig

WEIGHTS = [f"rollout.vllm.quantization={scheme}" for scheme in QUANTIZATIONS]
CACHES = [f"rollout.vllm.kv_cache_dtype={dtype}" for dtype in KV_DTYPES]


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: x}\nrollout: {gpus_per_engine: 1}\n")
    return lambda *overrides, begun=None: load_config(file, list(overrides), begun=begun)


@pytest.mark.parametrize("override", WEIGHTS + CACHES)
def test_importance_weights_are_on_by_default_where_engines_round(load, override):
    config = load(override)
    assert config.train.tis == TIS_CAP == LossConfig.from_train(config.train).tis_cap
    assert config.rollout.probe_tolerance == ROUNDED_TOLERANCE
    assert not any("8-bit" in line for line in warnings(config))


@pytest.mark.parametrize("override", ["rollout.vllm.quantization=null", "rollout.vllm.kv_cache_dtype=auto"])
def test_otherwise_they_are_off(load, override):
    config = load(override)
    assert (config.train.tis, config.rollout.probe_tolerance) == (0.0, 0.0)
    assert LossConfig.from_train(TrainConfig()).tis_cap == 0.0


def test_what_was_chosen_stays(load):
    config = load(CACHES[0], "train.tis=0", "rollout.probe_tolerance=0.3")
    assert (config.train.tis, config.rollout.probe_tolerance) == (0.0, 0.3)
    assert any("8-bit" in line for line in warnings(config))
    # A resumed run goes on with what it began with.
    assert load(CACHES[0], begun=config).train.tis == 0.0
    assert load(CACHES[0], "train.tis=4", begun=config).train.tis == 4.0


def test_memory_of_rounded_weights_and_caches(load):
    sizes = paper_sizes("Qwen/Qwen2.5-Math-7B")
    plain, weights, cache = (engine_memory(load(*o), sizes, 80 * GIB) for o in ([], WEIGHTS[:1], CACHES[:1]))
    # 28 layers of 233,046,016 weights in matrices; embeddings, output layer, biases and norms have two bytes each.
    assert sizes.served_matrices == 28 * 233_046_016
    assert plain.weights - weights.weights == sizes.served_matrices
    assert (plain.token, weights.token, cache.token) == (57344, 57344, 28672)
    assert weights.cache > plain.cache == cache.cache
