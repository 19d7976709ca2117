"""All ranks of a job, for test_loading.py: learner_loading_process.py JOB, where JOB is pickled (number of ranks, cases)."""

from __future__ import annotations

import gc
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from learner_memory_process import run_forked
from state_digest import state_digest
from torch.distributed.device_mesh import init_device_mesh

from kray.config.train_schema import TrainConfig
from kray.train import model as policy
from kray.train.process_group import join_process_group
from kray.train.sharding import load_sharded


def resident(field: str) -> int:
    """Bytes of VmRSS, or of VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def load(job: Path, rank: int, ranks: int, cases: list[dict]) -> None:
    results = []
    join_process_group(rank, ranks, "127.0.0.1", cases[0]["port"], torch.device("cpu"), 60)
    mesh = init_device_mesh("cpu", (ranks,))
    for case in cases:
        gc.collect()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        torch.manual_seed(7)
        model = load_sharded(case["model"], "float32", mesh, TrainConfig(), case["lora"])
        peak = resident("VmHWM") - before
        held = sum(p.to_local().numel() * 4 for p in model.parameters())
        dist.barrier()
        results.append({"peak": peak, "held": held})
        if case["digest"]:
            buffers = [(name, buffer.clone()) for name, buffer in model.named_buffers()]
            results[-1]["digest"] = state_digest(policy.full_state(model) + buffers)
            trained = [(name, p.full_tensor()) for name, p in model.named_parameters() if ".lora_" in name]
            results[-1]["adapters"] = state_digest(trained)
    dist.destroy_process_group()
    job.with_name(f"result-{rank}").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    sys.exit(run_forked(load, Path(sys.argv[1])))
