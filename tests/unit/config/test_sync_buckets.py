"""Weights by buckets are off unless asked for, and refused where somebody keeps whole weights."""

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


def test_buckets_are_refused_with_an_opponent_that_keeps_whole_weights(load):
    with pytest.raises(ConfigError, match=r"rollout\.sync_bucket_mib 64: the opponent past keeps whole weights"):
        load("rollout.sync_bucket_mib=64", PAST)
    load(PAST)
