"""Which memory is known where a run would be on this machine; GPUs are simulated."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from kray.cluster.memory import devices_here
from kray.config import KrayConfig, RolloutConfig, TrainConfig
from kray.config.memory_check import Devices

ON_GPUS = KrayConfig(rollout=RolloutConfig(gpus_per_engine=1), train=TrainConfig(gpus_per_rank=1))
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def cards(monkeypatch):
    """Pretends GPUs of these sizes, on a machine that joins no cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)

    def pretend(*sizes: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(sizes))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=sizes[i]))

    return pretend


def test_the_smallest_gpu_counts(cards):
    cards(80, 24)
    assert devices_here(ON_GPUS, elsewhere=False) == Devices(24, MACHINE)


def test_a_run_without_gpus_asks_for_none(cards):
    cards(80, 24)
    assert devices_here(KrayConfig(), elsewhere=False) == Devices(None, MACHINE)


def test_nothing_is_known_of_another_place(cards, monkeypatch):
    cards(80)
    # The run needs two: it is checked here and will run elsewhere.
    assert devices_here(ON_GPUS, elsewhere=False) == Devices()
    cards(80, 80)
    assert devices_here(ON_GPUS, elsewhere=True) == Devices()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert devices_here(ON_GPUS, elsewhere=False) == Devices()
