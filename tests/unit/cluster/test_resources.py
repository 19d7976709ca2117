"""What a machine lacks is said before a run waits for it."""

from __future__ import annotations

import pytest

from kray.cluster.resources import require_gpus, shortages, shortages_here
from kray.config import KrayConfig, RolloutConfig, TrainConfig
from kray.errors import ConfigError


@pytest.mark.parametrize(
    ("train", "rollout", "said"),
    [
        ({}, {}, []),
        ({"ranks": 3}, {}, ["train.ranks 3 and rollout.engines 1 ask for 4 CPUs, and this machine has 2"]),
        ({"ranks": 2, "gpus_per_rank": 1, "cpus_per_rank": 0}, {}, ["= 2 GPUs, and this machine has 1"]),
        ({}, {"engines": 2, "cpus_per_engine": 0, "gpus_per_engine": 1}, ["= 2 GPUs, and this machine has 1"]),
        (
            {},
            {"engines": 9, "min_engines": 0, "cpus_per_engine": 0, "gpus_per_engine": 1},
            [],
        ),  # one is enough to begin
    ],
)
def test_what_is_asked_for_is_counted_against_what_is_there(train, rollout, said):
    found = shortages(KrayConfig(train=TrainConfig(**train), rollout=RolloutConfig(**rollout)), cpus=2, gpus=1)
    assert len(found) == len(said), found
    assert all(part in line for part, line in zip(said, found, strict=True))


def test_missing_gpus_are_refused_outside_clusters(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    config = KrayConfig(train=TrainConfig(ranks=1000, gpus_per_rank=1))
    with pytest.raises(ConfigError, match=r"train\.gpus_per_rank.* 1000 GPUs.*submit to a cluster"):
        require_gpus(config)
    assert len(shortages_here(config)) == 2
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert shortages_here(config) == []
    require_gpus(config)
