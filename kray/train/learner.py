"""One rank of the learner: a plain class that Ray (group.py) or a test puts into a process of its own.

Promises
- Every public method except `describe` and `shutdown` is a collective: all ranks call it, with the same arguments, in the
  same order.
- The update does not depend on how many ranks or micro-batches it was split over, up to float32 rounding.
- A step without an effective group, or with a gradient that is not finite, leaves weights and optimizer as they were.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from kray.config.schema import TrainConfig
from kray.records import KrayError, RolloutGroup
from kray.train import model as policy
from kray.train.advantages import advantages
from kray.train.batches import Batch, Rows, collate, make_rows, split_ranks
from kray.train.loss import k3, policy_loss, token_logprobs_and_entropy
from kray.weights import FlatWeights

# What one update adds up over its tokens, micro-batches and ranks.
SUMS = ("loss", "clipped", "kl", "entropy", "gap", "engine_kl", "tokens", "padded", "filled", "rows")


def step_rows(groups: Sequence[RolloutGroup], train: TrainConfig) -> Rows:
    """What one update learns from the groups of a step. Raises ValueError that names an unusable rollout."""

    def compute(rewards_R: np.ndarray, group_R: np.ndarray) -> np.ndarray:
        return advantages(
            torch.from_numpy(rewards_R), torch.from_numpy(group_R), scale=train.advantage == "std"
        ).numpy()

    return make_rows(groups, compute, train.aggregation, train.updates)


class Learner:
    """One FSDP2 rank: model shard, optimizer, and its part of each update."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        model_path: str,
        train: TrainConfig,
        dtype: str,
        total_steps: int,
        seed: int,
        device: str = "cpu",
        temperature: float = 1.0,
    ):
        """Loads the model and joins the process group (blocks until all ranks did, at most train.timeout_s).

        dtype: of compute and of the weights handed out, float32 | bfloat16; the master is float32. total_steps: kray steps
        of the run, which bound the warm-up of the learning rate. device: cpu (gloo) | cuda (nccl, one device).
        temperature: at which the rollouts are sampled; the policy that learns is the policy at this temperature.
        """
        self.rank, self.world_size, self.train, self.dtype = rank, world_size, train, dtype
        self.model_path, self.seed, self.temperature = model_path, seed, temperature
        self.device = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
        self.warmup_updates = min(train.lr_warmup_steps, total_steps) * train.updates
        self.updates_done = 0  # optimizer steps
        torch.manual_seed(seed)
        model = policy.load_policy(model_path, dtype, train.activation_checkpointing)
        self._join(master_addr, master_port)
        self.model = policy.shard(model, init_device_mesh(self.device.type, (world_size,)), dtype)
        self.model.to(self.device)  # what FSDP does not shard: buffers
        self.optimizer = self._make_optimizer()

    def _join(self, master_addr: str, master_port: int) -> None:
        timeout = timedelta(seconds=self.train.timeout_s)
        if self.world_size == 1:
            store: dist.Store = dist.HashStore()
        else:
            store = dist.TCPStore(master_addr, master_port, self.world_size, is_master=self.rank == 0, timeout=timeout)
        # gloo also on CUDA: checkpoints and the metrics' last sums travel between processes' main memory.
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size, timeout=timeout)

    def _make_optimizer(self) -> torch.optim.AdamW:
        train = self.train
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},  # norms and biases
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps, foreach=True
        )
        for parameter in parameters:  # as AdamW's first step would, so that a load always finds its place
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer

    def __repr__(self) -> str:
        return f"learner-{self.rank}"  # Ray puts it before the rank's log lines

    def describe(self) -> dict[str, Any]:
        """Who this is, for logs: rank, host, process id, device, parameters of the whole model."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        where = {"host": socket.gethostname(), "pid": os.getpid(), "device": str(self.device)}
        return {"rank": self.rank, **where, "parameters": parameters}

    # -- the update ---------------------------------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """Of the next optimizer step: rises in a straight line over the warm-up, then stays."""
        return self.train.lr * min(1.0, (self.updates_done + 1) / max(1, self.warmup_updates))

    def update(self, rows: Rows) -> dict[str, float]:
        """One GRPO step: rows.updates optimizer steps. Returns the same metrics on every rank; README lists them.

        With one optimizer step the old log-probabilities are this pass's own, detached: the ratio is 1 and the clip inert.
        With several they are computed before the first one.
        """
        started = time.monotonic()
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        gap_max = torch.zeros((), dtype=torch.float64, device=self.device)
        lr, norms = self.lr, []
        plan = [self._batches(rows, update) for update in range(rows.updates)]
        old = [[None] * len(batches) for batches in plan]
        if rows.updates > 1:
            old = [[self._old_logprobs(batch) for batch in batches] for batches in plan]
            self.model.reshard()
        for batches, olds in zip(plan, old, strict=True):
            for batch, old_N in zip(batches, olds, strict=True):
                part, part_gap = self._backward(batch, old_N)
                sums += part
                gap_max = torch.maximum(gap_max, part_gap)
            norms.append(self._optimizer_step())
        dist.all_reduce(sums)
        dist.all_reduce(gap_max, dist.ReduceOp.MAX)
        metrics = self._metrics(dict(zip(SUMS, sums.tolist(), strict=True)), norms, rows)
        metrics["train/logprob_gap_max"] = gap_max.item() if plan else np.nan
        metrics |= {"train/lr": lr, "train/update_s": time.monotonic() - started}
        # Left out rather than NaN: what is unknown because nothing was trained on.
        return {name: value for name, value in metrics.items() if np.isfinite(value)}

    def _batches(self, rows: Rows, update: int) -> list[Batch]:
        mine = np.flatnonzero(rows.update == update)
        split = split_ranks(rows.lengths[mine], self.train.microbatch_tokens, self.world_size)
        return [collate(rows, mine[indices]) for indices in split[self.rank]]

    def _forward(self, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the batch's N targets, each (N,) float32."""
        first = batch.first_target
        input_ids = torch.from_numpy(batch.input_ids).to(self.device)
        mask = torch.from_numpy(batch.target_mask[:, first:]).to(self.device)
        # No attention mask: padding is on the right, so causal attention hides it from every token that counts, and
        # without a mask the kernels that need no (T, T) matrix can be used. Positions count from 0, the default.
        keep = torch.arange(first, input_ids.shape[1] - 1, device=self.device)
        logits = self.model(input_ids=input_ids, logits_to_keep=keep, use_cache=False).logits
        return token_logprobs_and_entropy(logits[mask], input_ids[:, first + 1 :][mask], temperature)

    def _old_logprobs(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self._forward(batch, self.temperature)[0]

    def _backward(self, batch: Batch, old_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adds the batch's gradient; returns the SUMS (S,) float64 and the largest gap to the engine's logprobs."""
        logprobs_N, entropy_N = self._forward(batch, self.temperature)
        old_N = logprobs_N.detach() if old_N is None else old_N
        engine_N, advantages_N, weights_N = (
            torch.from_numpy(array).to(self.device) for array in (batch.logprobs, batch.advantages, batch.weights)
        )
        train = self.train
        result = policy_loss(logprobs_N, old_N, advantages_N, weights_N, train.clip_low, train.clip_high)
        (result.loss * self.world_size).backward()  # FSDP averages gradients over ranks; the loss is a sum
        gap_N = (old_N - engine_N).abs().double()
        filled = int(batch.attention_mask.sum())
        parts = [result.loss, result.clipped, result.kl, entropy_N.sum(), gap_N.sum(), k3(old_N, engine_N).sum()]
        counts = [len(logprobs_N), batch.input_ids.size, filled, int(batch.attention_mask.any(axis=1).sum())]
        sums = torch.stack([part.detach().double() for part in parts])
        gap_max = gap_N.max() if len(gap_N) else gap_N.new_zeros(())
        return torch.cat([sums, torch.tensor(counts, dtype=torch.float64, device=self.device)]), gap_max

    def _optimizer_step(self) -> float:
        """Steps unless the gradient is not finite; clears the gradient; returns its norm before clipping."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if bool(norm.isfinite()):  # the norm is global, so all ranks decide alike
            if self.train.grad_clip > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.train.grad_clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
            self.optimizer.step()
            self.updates_done += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def _metrics(self, sums: dict[str, float], norms: list[float], rows: Rows) -> dict[str, float]:
        tokens = sums["tokens"] or np.nan
        finite = [norm for norm in norms if np.isfinite(norm)]
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        memory = torch.tensor(peak / 2**30, dtype=torch.float64, device=self.device)
        dist.all_reduce(memory, dist.ReduceOp.MAX)
        return {
            "train/loss": sums["loss"] / len(norms) if norms else np.nan,
            "train/grad_norm": float(np.mean(finite)) if finite else np.nan,
            "train/entropy": sums["entropy"] / tokens,
            "train/clip_ratio": sums["clipped"] / tokens,
            "train/kl": sums["kl"] / tokens,
            "train/tokens": sums["tokens"],
            "train/rows": sums["rows"],
            "train/groups_ratio": rows.effective_groups / max(1, rows.groups),
            "train/padding_ratio": 1 - sums["filled"] / sums["padded"] if sums["padded"] else np.nan,
            "train/logprob_gap_mean": sums["gap"] / tokens,
            "train/logprob_kl": sums["engine_kl"] / tokens,
            "train/optimizer_steps": float(len(finite)),
            "train/nonfinite": float(len(norms) - len(finite)),
            "train/skipped": float(not finite),
            "train/peak_memory_gib": memory.item(),
        }

    # -- weights ------------------------------------------------------------------------------------------------------

    def logprobs(
        self, token_rows: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float = 1.0
    ) -> list[np.ndarray]:
        """Log-probabilities of each response's tokens, (T,) float32 each; rows are (prompt tokens, response tokens).

        For probes that prove an engine's weights: every rank computes all rows.
        """
        found = []
        for prompt, response in token_rows:
            tokens = np.array([[*prompt, *response]], dtype=np.int64)
            mask = (np.arange(1, tokens.shape[1]) >= len(prompt))[None]
            none = np.zeros(0, dtype=np.float32)
            batch = Batch(tokens, np.ones(tokens.shape, dtype=bool), mask, none, none, none)
            with torch.no_grad():
                found.append(self._forward(batch, temperature)[0].cpu().numpy())
        self.model.reshard()
        return found

    def state(self) -> list[tuple[str, Tensor]]:
        """The whole model in the compute dtype on rank 0's CPU; [] on the other ranks."""
        return policy.full_state(self.model, self.dtype, keep=self.rank == 0)

    def weights(self) -> FlatWeights:
        """The whole model in the compute dtype on rank 0; empty on the other ranks."""
        return policy.flat_state(self.model, self.dtype, keep=self.rank == 0)

    def sized_weights(self) -> tuple[int, FlatWeights]:
        """Bytes, and `weights`: a caller on another node can see that it went well without fetching the weights."""
        weights = self.weights()
        return weights.buffer.nbytes, weights

    def export(self, folder: str | Path) -> None:
        """Writes a Hugging Face folder with tokenizer (rank 0 writes)."""
        state = self.state()
        self._on_rank_0(lambda: policy.export_policy(self.model, state, self.dtype, self.model_path, Path(folder)))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _sharded_state(self) -> dict[str, Any]:
        """Everything that is sharded, by name, and shared with the live tensors: loading into it loads the learner."""
        state: dict[str, Any] = {f"model.{name}": tensor for name, tensor in policy.state_tensors(self.model)}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = value
        return state

    def save(self, folder: str | Path) -> None:
        """Writes model, optimizer, step and random states; each rank writes its shard, so all must see `folder`."""
        folder = Path(folder)
        self._on_rank_0(lambda: folder.mkdir(parents=True, exist_ok=True))
        dcp.save(self._sharded_state(), checkpoint_id=str(folder))
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state()
        torch.save({"updates_done": self.updates_done, "rng": rng}, folder / f"rank-{self.rank}.pt")
        dist.barrier()

    def load(self, folder: str | Path) -> None:
        """Goes on from `save`, also of another number of ranks (a new rank then draws its random state from the seed)."""
        folder = Path(folder)
        if not (folder / ".metadata").is_file():
            raise KrayError(f"learner: {folder} holds no learner checkpoint (no .metadata); nothing was loaded")
        dcp.load(self._sharded_state(), checkpoint_id=str(folder))
        mine = folder / f"rank-{self.rank}.pt"
        own = torch.load(mine if mine.is_file() else folder / "rank-0.pt", weights_only=True)
        self.updates_done = own["updates_done"]
        if mine.is_file():
            torch.set_rng_state(own["rng"]["cpu"])
            if self.device.type == "cuda" and "cuda" in own["rng"]:
                torch.cuda.set_rng_state(own["rng"]["cuda"])
        else:
            torch.manual_seed(self.seed + self.updates_done)
        dist.barrier()

    def _on_rank_0(self, write) -> None:
        """Runs `write` on rank 0; all ranks leave together and with rank 0's error, if it had one."""
        error = [None]
        if self.rank == 0:
            try:
                write()
            except Exception as failure:  # told to all, then raised: no rank may wait for one that gave up
                error = [f"{type(failure).__name__}: {failure}"]
        dist.broadcast_object_list(error, src=0, device=torch.device("cpu"))
        if error[0]:
            raise KrayError(f"learner rank 0: {error[0]}")

    def shutdown(self) -> None:
        """Leaves the process group; safe to call twice."""
        if dist.is_initialized():
            dist.destroy_process_group()
