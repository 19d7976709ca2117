"""Weights by buckets are off unless asked for, and refused where weights go another way."""

from __future__ import annotations

import pytest

from kray.config import load_config
from kray.errors import ConfigError

PAST = "environment={name: nim, roles: {second: {opponent: past, every: 5}}}"


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: x}\n")
    return lambda *overrides: load_config(file, list(overrides))


def test_buckets_are_off_by_default_also_on_gpus(load):
    assert load().rollout.sync_bucket_mib == 0
    assert load("rollout.gpus_per_engine=1").rollout.sync_bucket_mib == 0
    assert load("rollout.sync_bucket_mib=512").rollout.sync_bucket_mib == 512


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([PAST], "the opponent past keeps whole weights"),
        (["rollout.colocate=true"], r"rollout\.colocate has them take turns"),
        (["model.lora={rank: 2, alpha: 4}", "rollout.lora=adapter"], r"a few MB of adapters"),
    ],
)
def test_buckets_are_refused_where_weights_go_another_way(load, overrides, reason):
    with pytest.raises(ConfigError, match=rf"rollout\.sync_bucket_mib 64.*{reason}"):
        load("rollout.sync_bucket_mib=64", *overrides)
    load(*overrides)


@pytest.mark.parametrize("size", ["-1", "0.5", "2000000"])
def test_a_bucket_has_a_size(load, size):
    with pytest.raises(ConfigError, match=r"rollout\.sync_bucket_mib"):
        load(f"rollout.sync_bucket_mib={size}")
