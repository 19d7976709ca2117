"""One rank of the learner: a plain class that Ray (group.py) or a test puts into a process of its own.

Promises
- Every public method except `describe`, `saved` and `shutdown` is a collective: all ranks call it, with the same
  arguments, in the same order.
- The update does not depend on how many ranks or micro-batches it was split over, up to float32 rounding.
- A step without an effective group, or with a gradient that is not finite, leaves weights and optimizer as they were.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from kray.config.schema import LoraConfig
from kray.config.train_schema import BUILT_WITH, TrainConfig, advantage_of, aggregation_of
from kray.errors import ConfigError, KrayError
from kray.metrics import TRAIN_LOGPROB_GAP_MAX, TRAIN_LR, TRAIN_UPDATE_S
from kray.records import RolloutGroup
from kray.train import model as policy
from kray.train import sharded_checkpoint as saving
from kray.train.advantages import advantages
from kray.train.layout_choice import LearnerLayout, choose_layout
from kray.train.logprobs import add_score_method
from kray.train.lora import without_adapters
from kray.train.loss import k3, policy_loss
from kray.train.metrics import SUMS, update_metrics
from kray.train.optimizer import ShardedAdamW
from kray.train.packing import MicroBatch, collate, split_ranks
from kray.train.supported_models import check_length
from kray.train.training_rows import TrainingRows, make_rows, unscored_rows
from kray.weight_sync.flat_weights import FlatWeights, Gathered

LR_POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # of the share of groups that carry a gradient


def step_rows(groups: Sequence[RolloutGroup], train: TrainConfig) -> TrainingRows:
    """What one update learns from the groups of a step. Raises ValueError that names an unusable rollout."""

    def compute(rewards_R: np.ndarray, group_R: np.ndarray) -> np.ndarray:
        scale = advantage_of(train) == "std"
        return advantages(torch.from_numpy(rewards_R), torch.from_numpy(group_R), scale).numpy()

    constant, clip = train.constant_tokens, train.advantage_clip
    return make_rows(groups, compute, aggregation_of(train), train.updates, constant, clip)


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
        lora: LoraConfig | None = None,
    ):
        """Joins the process group (blocks until all ranks did, at most train.timeout_s) and loads the model.

        dtype: of compute and of the weights handed out, float32 | bfloat16; the master is float32. total_steps: kray steps
        of the run, which bound the warm-up of the learning rate. device: cpu (gloo) | cuda (nccl, one device).
        temperature: at which the rollouts are sampled; the policy that learns is the policy at this temperature.
        """
        self.rank, self.world_size, self.train, self.dtype = rank, world_size, train, dtype
        self.model_path, self.seed, self.temperature, self.lora = model_path, seed, temperature, lora
        self.device = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
        torch.manual_seed(seed)
        self._join(master_addr, master_port)
        try:
            self.mesh = init_device_mesh(self.device.type, (world_size,))
            self.model: Any = self._load_policy(lora)  # an FSDPModule and a PreTrainedModel
            self.reference = self._load_reference()
            self.configure(train, total_steps)
            self.saver = saving.CheckpointWriter(rank, train.timeout_s)
            self.way = self._choose_layout()
            for layer in policy.decoder_layers(self.model) if train.compile else []:
                layer.compile(dynamic=True)
        except BaseException:
            self.shutdown()
            raise

    def _join(self, master_addr: str, master_port: int) -> None:
        timeout = timedelta(seconds=self.train.timeout_s)
        if self.world_size == 1:
            store: dist.Store = dist.HashStore()
        else:
            store = dist.TCPStore(master_addr, master_port, self.world_size, is_master=self.rank == 0, timeout=timeout)
        # gloo also on CUDA: checkpoints and the metrics' last sums travel between processes' main memory.
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size, timeout=timeout)

    def _load_policy(self, lora: LoraConfig | None, frozen: bool = False) -> Any:
        """The sharded model; all ranks raise when one cannot load it."""
        checkpointing = self.train.activation_checkpointing and not frozen
        model: Any = None
        problem = ""
        try:
            model = policy.load_policy(self.model_path, self.dtype, checkpointing, lora, empty=self.rank > 0)
        except ConfigError as error:
            problem = str(error)
        problems: list[Any] = [""] * self.world_size
        dist.all_gather_object(problems, problem)
        if model is None or any(problems):
            raise ConfigError(next(filter(None, problems)))
        if frozen:
            model.requires_grad_(False)
            for parameter in model.parameters():  # not the buffers: rotary frequencies stay float32, as the policy's do
                parameter.data = parameter.data.to(policy.DTYPES[self.dtype])
        model = policy.shard(model, self.mesh, self.dtype)
        model.to(self.device)  # what FSDP does not shard: buffers
        add_score_method(model)
        return model

    def _load_reference(self) -> Any:
        """The start model, sharded and frozen, when train.kl needs one. LoRA's base weights are their own."""
        if self.train.kl == 0:
            return None
        return self.model if self.lora is not None else self._load_policy(None, frozen=True)

    @property
    def packed(self) -> bool:
        return self.way.packed

    @property
    def whole(self) -> bool:
        return self.way.whole

    def _choose_layout(self) -> LearnerLayout:
        """The fastest way to compute that gives the log-probabilities of the model's own forward pass. A collective."""

        def gather(value: Any) -> list[Any]:
            values: list[Any] = [None] * self.world_size
            dist.all_gather_object(values, value)
            return values

        way, self.rejected_layouts = choose_layout(self.model, self._probe, gather, self.dtype, self.train.packing)
        if self.reference is not None and self.reference is not self.model:
            policy.set_attention(self.reference, way.attention)
        return way

    def configure(self, train: TrainConfig, total_steps: int) -> None:
        """Begins another run with these settings on the model as it is: a new optimizer, no step done.

        `load` of a checkpoint then brings the weights that the run starts from. Raises ConfigError for a change of what
        the ranks were built with.
        """
        for key in BUILT_WITH:
            old, new = getattr(self.train, key), getattr(train, key)
            if old != new:
                raise ConfigError(f"train.{key}: the learner was built with {old!r} and cannot go on with {new!r}")
        self.train = train
        self.warmup_updates = min(train.lr_warmup_steps, total_steps) * train.updates
        self.updates_done = 0  # optimizer steps
        self.optimizer = ShardedAdamW(self.model, train)

    def __repr__(self) -> str:
        return f"learner-{self.rank}"  # Ray puts it before the rank's log lines

    def describe(self) -> dict[str, Any]:
        """Who this is, for logs: rank, host, process id, device, parameters of the model, trained ones, layout, and why
        faster layouts were not taken."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.model.parameters()]
        where = {"host": socket.gethostname(), "pid": os.getpid(), "device": str(self.device)}
        counts = {"parameters": sum(n for n, _ in sizes), "trained": sum(n for n, trained in sizes if trained)}
        return {
            "rank": self.rank,
            **where,
            **counts,
            "layout": str(self.way),
            "rejected_layouts": self.rejected_layouts,
        }

    # -- the update ---------------------------------------------------------------------------------------------------

    def lr(self, share: float = 1.0) -> float:
        """Of the next optimizer step: rises in a straight line over the warm-up, then stays.

        share: of the step's groups that carry a gradient; counts as train.lr_scaling says.
        """
        rise = min(1.0, (self.updates_done + 1) / max(1, self.warmup_updates))
        return self.train.lr * rise * share ** LR_POWERS[self.train.lr_scaling]

    def update(self, rows: TrainingRows) -> dict[str, float]:
        """One GRPO step: rows.updates optimizer steps. Returns the same metrics on every rank (metrics.py lists them).

        With one optimizer step the old log-probabilities are this pass's own, detached: the ratio is 1 and the clip inert.
        With several they are computed before the first one.
        """
        started = time.monotonic()
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        gap_max = torch.zeros((), dtype=torch.float64, device=self.device)
        share = rows.effective_groups / max(1, rows.groups)
        lr, norms = self.lr(share), []
        plan = [self._batches(rows, update) for update in range(rows.updates)]
        old: list[list[Tensor | None]] = [[None] * len(batches) for batches in plan]
        if rows.updates > 1:
            old = [[self._old_logprobs(batch) for batch in batches] for batches in plan]
            self.model.reshard()
        for batches, olds in zip(plan, old, strict=True):
            for k, (batch, old_N) in enumerate(zip(batches, olds, strict=True)):
                last = k == len(batches) - 1
                self.model.set_requires_gradient_sync(last or self.train.reduce_each_microbatch)
                self.model.set_is_last_backward(last)
                part, part_gap = self._backward(batch, old_N)
                sums += part
                gap_max = torch.maximum(gap_max, part_gap)
            norms.append(self.optimizer.step(self.lr(share)))
            self.updates_done += bool(np.isfinite(norms[-1]))
        dist.all_reduce(sums)
        dist.all_reduce(gap_max, dist.ReduceOp.MAX)
        metrics = update_metrics(dict(zip(SUMS, sums.tolist(), strict=True)), norms, rows, self.train, self.device)
        metrics[TRAIN_LOGPROB_GAP_MAX] = gap_max.item() if plan else np.nan
        metrics |= {TRAIN_LR: lr, TRAIN_UPDATE_S: time.monotonic() - started}
        # Left out rather than NaN: what is unknown because nothing was trained on.
        return {name: value for name, value in metrics.items() if np.isfinite(value)}

    def _batches(self, rows: TrainingRows, update: int) -> list[MicroBatch]:
        check_length(self.model.config, int(rows.lengths.max(initial=0)))
        mine = np.flatnonzero(rows.update == update)
        split = split_ranks(rows, mine, self.train.microbatch_tokens, self.world_size, self.packed)
        return [collate(rows, indices, self.packed).to(self.device) for indices in split[self.rank]]

    def _forward(
        self, batch: MicroBatch, temperature: float, model: Any = None, whole: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the batch's N targets, each (N,) float32."""
        whole = self.whole if whole is None else whole
        model = self.model if model is None else model
        return model.score(batch.inputs, batch.keep, batch.source, batch.targets, temperature, whole)

    @torch.no_grad()
    def _old_logprobs(self, batch: MicroBatch) -> Tensor:
        return self._forward(batch, self.temperature)[0]

    @torch.no_grad()
    def _reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        if self.reference is None:
            return None
        with without_adapters(self.reference):
            logprobs_N = self._forward(batch, self.temperature, self.reference)[0]
        self.reference.reshard()
        return logprobs_N

    def _backward(self, batch: MicroBatch, old_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adds the batch's gradient; returns the SUMS (S,) float64 and the largest gap to the engine's logprobs."""
        train = self.train
        reference_N = self._reference_logprobs(batch)
        logprobs_N, entropy_N = self._forward(batch, self.temperature)
        old_N = logprobs_N.detach() if old_N is None else old_N
        result = policy_loss(
            train.loss,
            logprobs_N,
            old_N,
            batch.logprobs,
            batch.advantages,
            batch.weights,
            batch.rollout,
            (train.clip_low, train.clip_high),
            train.tis,
            train.kl,
            reference_N,
        )
        (result.loss * self.world_size).backward()  # FSDP averages gradients over ranks; the loss is a sum
        gap_N = (old_N - batch.logprobs).abs().double()
        engine_kl = k3(old_N, batch.logprobs).sum()
        parts = [result.loss, result.clipped, result.kl, result.truncated, result.reference_kl, entropy_N.sum()]
        parts += [gap_N.sum(), engine_kl]
        counts = [len(logprobs_N), batch.input_ids.numel(), batch.filled, batch.rows, *_attention_places(batch)]
        sums = torch.stack([part.detach().double() for part in parts])
        gap_max = gap_N.max() if len(gap_N) else gap_N.new_zeros(())
        return torch.cat([sums, torch.tensor(counts, dtype=torch.float64, device=self.device)]), gap_max

    # -- weights ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _probe(self, rows: TrainingRows, packed: bool, whole: bool, temperature: float = 1.0) -> np.ndarray:
        """Log-probabilities of all response tokens of all rows, one row after the other."""
        check_length(self.model.config, int(rows.lengths.max(initial=0)))
        try:
            batch = collate(rows, np.arange(len(rows)), packed).to(self.device)
            logprobs = self._forward(batch, temperature, whole=whole)[0].float().cpu()
        finally:
            self.model.reshard()
        found = np.empty(len(logprobs), dtype=np.float32)
        found[batch.order.cpu().numpy()] = logprobs.numpy()
        return found

    def logprobs(
        self, token_rows: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float = 1.0
    ) -> list[np.ndarray]:
        """Log-probabilities of each response's tokens, (T,) float32 each; rows are (prompt tokens, response tokens).

        For probes that prove an engine's weights: every rank computes all rows.
        """
        kept = [i for i, (_, response) in enumerate(token_rows) if len(response)]
        rows = unscored_rows([token_rows[i] for i in kept])
        found = [np.zeros(0, dtype=np.float32) for _ in token_rows]
        if kept:
            split = np.cumsum(rows.response_lengths)[:-1]
            computed = np.split(self._probe(rows, self.packed, self.whole, temperature), split)
            for i, values in zip(kept, computed, strict=True):
                found[i] = values
        return found

    def state(self) -> list[tuple[str, Tensor]]:
        """The whole model in the compute dtype on rank 0's CPU; [] on the other ranks."""
        return policy.full_state(self.model, self.dtype, keep=self.rank == 0)

    def weights(self) -> tuple[Gathered, FlatWeights]:
        """The whole model in the compute dtype on rank 0, empty on the other ranks; and what a caller on another node can
        know of it without fetching it.

        What need not be gathered or cast is not copied: it is the live parameters' memory, to be copied (Ray does) before
        the next update.
        """
        started = time.monotonic()
        state = policy.gathered_state(self.model, self.dtype, keep=self.rank == 0)
        gathered = time.monotonic()
        weights = FlatWeights.pack(state)
        times = gathered - started, time.monotonic() - gathered
        return Gathered(weights.nbytes, weights.checksum, *times), weights

    def export(self, folder: str | Path) -> None:
        """Writes a Hugging Face folder with tokenizer (rank 0 writes)."""
        state = self.state()
        self._on_rank_0(lambda: policy.export_policy(self.model, state, self.dtype, self.model_path, Path(folder)))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _sharded_state(self) -> dict[str, Tensor]:
        """Everything that is trained, by name, and shared with the live tensors: loading into it loads the learner."""
        state = policy.trained_tensors(self.model)
        return state | {f"optimizer.{name}": tensor for name, tensor in self.optimizer.tensors().items()}

    def save(self, folder: str | Path, background: bool = False) -> None:
        """Writes model, optimizer, step and random states; each rank writes its shard, so all must see `folder`.

        background: returns when a copy has been taken; `saved` then tells when it is on disk. A later call waits for an
        earlier write.
        """
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state()
        own = {"updates_done": self.updates_done, "rng": rng}
        self.saver.start(Path(folder), self._sharded_state(), own, background)

    def saved(self) -> bool:
        """Whether this rank has nothing left to write; never waits. Raises KrayError when the last write failed."""
        return self.saver.done()

    def load(self, folder: str | Path) -> None:
        """Goes on from `save`, also of another number of ranks (a new rank then draws its random state from the seed)."""
        self.saver.wait()
        own, mine = saving.read(Path(folder), self._sharded_state(), self.rank)
        self.updates_done = own["updates_done"]
        if mine:
            torch.set_rng_state(own["rng"]["cpu"])
            if self.device.type == "cuda" and "cuda" in own["rng"]:
                torch.cuda.set_rng_state(own["rng"]["cuda"])
        else:
            torch.manual_seed(self.seed + self.updates_done)
        dist.barrier()

    def _on_rank_0(self, write: Callable[[], Any]) -> None:
        """Runs `write` on rank 0; all ranks leave together and with rank 0's error, if it had one."""
        error: list[str | None] = [None]
        if self.rank == 0:
            try:
                write()
            except Exception as failure:  # told to all, then raised: no rank may wait for one that gave up
                error = [f"{type(failure).__name__}: {failure}"]
        dist.broadcast_object_list(error, src=0, device=torch.device("cpu"))
        if error[0]:
            raise KrayError(f"learner rank 0: {error[0]}")

    def shutdown(self) -> None:
        """Ends a background write and leaves the process group; safe to call twice."""
        saver = getattr(self, "saver", None)
        if saver is not None and saver.thread is not None:
            saver.thread.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def _attention_places(batch: MicroBatch) -> tuple[int, int]:
    """(tokens, places) of the keys that attention reads, padding included."""
    return (batch.filled, batch.input_ids.numel()) if batch.plan is None else batch.plan.padding
