"""Fixtures shared by all tests: a local Ray cluster of this test run, and tiny policies with random weights.

The marker of a test is the folder that it lies in: unit, integration or nightly.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says something about the machine: no test is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# No test may depend on a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray uses its own loopback address, see kray/cluster/session.py.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


@pytest.fixture(autouse=True)
def same_gpus():
    """Restore the GPUs that this process may see: a Driver that a test constructs here hides them."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    yield
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if before is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = before


@pytest.fixture
def same_signals():
    """Restore what signals do, for a test that runs a job's main in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def ray_local():
    """Start a Ray cluster for this test run; one that happens to run on this machine is never used."""
    import ray

    # Ray's processes must find sample_verifiers, the environments of examples/ and what is on this run's own path.
    tests = Path(__file__).parent
    paths = [str(tests), str(tests.parent / "examples"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # The key of the services that tests start; a driver gets the environment that Ray started with.
    os.environ["KRAY_TESTS_KEY"] = "a-planted-key-of-the-tests"
    ray.init(
        address="local",
        num_cpus=8,
        # Not a real one: tests check which processes would see it.
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=300 * 2**20,
    )
    yield ray
    ray.shutdown()


def make_policy(folder: Path, tied: bool = True, vocabulary: int = 48, seed: int = 0) -> Path:
    """Save a Qwen3 of some thousand parameters with random weights, as a Hugging Face folder without a tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=128,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tied_policy(tmp_path_factory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def untied_policy(tmp_path_factory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"), tied=False)


@pytest.fixture(scope="session")
def warm_policy(tmp_path_factory) -> Path:
    """Return a tiny policy with a tokenizer, warmed up for a few steps only: it writes digits at random."""
    return make_warm(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tool_policy(tmp_path_factory) -> Path:
    """Return such a policy with the characters that call a calculator, some of which it writes by chance."""
    return make_warm(tmp_path_factory.mktemp("cache"), tool_share=0.5)


def make_warm(cache: Path, **settings) -> Path:
    from kray.config import TinyPolicyConfig
    from kray.train.tiny_policy import ensure_tiny_policy

    shape = {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
    return ensure_tiny_policy(TinyPolicyConfig(**(shape | {"warmup_steps": 20} | settings)), cache)


@pytest.fixture(scope="session")
def wide_policy(tmp_path_factory) -> Path:
    """Return such a policy of some 4 MB."""
    shape = {"hidden_size": 128, "layers": 4, "heads": 4, "kv_heads": 2, "intermediate_size": 384}
    return make_warm(tmp_path_factory.mktemp("cache"), **shape)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the folder of tests/ that it lies in, and run the fast ones first."""
    tests = Path(__file__).parent
    folders = [item.path.relative_to(tests).parts[0] for item in items]
    for item, folder in zip(items, folders, strict=True):
        item.add_marker(folder)
    order = ("unit", "integration", "nightly")
    ranked = sorted(zip(items, folders, strict=True), key=lambda pair: order.index(pair[1]))
    items[:] = [item for item, _ in ranked]
