"""One rank of the learner: a plain class that Ray (learner_group.py) or a test runs in a process of its own.

Guarantees
- Every public method except `describe`, `saved` and `shutdown` is a collective: all ranks call it with the same
  arguments and in the same order.
- An update does not depend on the number of ranks or micro-batches it is split over, up to float32 rounding.
- A step without a rollout that has an advantage, or whose gradient is not finite, leaves weights and optimizer as they were.
- No optimizer step is made once the policy is further than train.max_kl from the one before the step.

Shape suffixes: N sampled tokens of one micro-batch, R rollouts.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kray.config.schema import LoraConfig
from kray.config.train_schema import BUILT_WITH, TrainConfig, reduces_each_microbatch
from kray.errors import ConfigError
from kray.metrics import TRAIN_LOGPROB_GAP_MAX, TRAIN_LR, TRAIN_UPDATE_S
from kray.train import model as policy
from kray.train.context_parallel import context_ranks
from kray.train.layout_choice import LearnerLayout, choose_layout
from kray.train.lora import without_adapters
from kray.train.loss import LossConfig, LossInputs, policy_loss
from kray.train.metrics import SUMS, batch_sums, no_sums, update_metrics
from kray.train.optimizer import ShardedAdamW
from kray.train.packing import MicroBatch, collate, own_part, split_ranks
from kray.train.process_group import join_process_group, rank_device, run_on_rank_0
from kray.train.schedule import learning_rate, update_order
from kray.train.sharded_checkpoint import CheckpointWriter, random_states, read_checkpoint, set_random_states
from kray.train.sharding import load_sharded, rank_mesh
from kray.train.supported_models import check_length
from kray.train.training_rows import TrainingRows, unscored_rows
from kray.weight_sync.flat_weights import FlatWeights, Gathered


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
        """Join the process group and load the model; blocks until all ranks have joined.

        Args:
            rank: This rank.
            world_size: Number of ranks.
            master_addr: Address of rank 0, "" for a single rank.
            master_port: Free port on that address.
            model_path: Hugging Face folder or hub id of the start model.
            train: The run's `train` section; joining takes at most train.timeout_s seconds.
            dtype: Compute dtype and dtype of the gathered weights, float32 or bfloat16; master weights are float32.
            total_steps: Steps of the run, by which the learning rate's schedule ends.
            seed: Seed of torch's random numbers.
            device: "cpu" (gloo) or "cuda" (nccl, one device a rank).
            temperature: Sampling temperature of the rollouts; the trained policy is the policy at this temperature.
            lora: Trains adapters instead of all weights.

        Raises:
            ConfigError: The model cannot be loaded or trained, or this process can use no GPU.
        """
        self.rank, self.world_size, self.train, self.dtype = rank, world_size, train, dtype
        self.model_path, self.seed, self.temperature, self.lora = model_path, seed, temperature, lora
        self.device = rank_device(device)
        torch.manual_seed(seed)
        join_process_group(rank, world_size, master_addr, master_port, self.device, train.timeout_s)
        try:
            self.mesh = rank_mesh(self.device.type, world_size, train.replicas)
            self.context = context_ranks(train.context_parallel, train.timeout_s)
            # An FSDPModule and a PreTrainedModel.
            load = partial(load_sharded, model_path, dtype, self.mesh, train)
            self.model: Any = load(lora)
            # The start model, for train.kl: with LoRA the model without its adapters.
            start = load(frozen=True) if train.kl and lora is None else self.model
            self.reference: Any = start if train.kl else None
            self.configure(train, total_steps)
            self.writer = CheckpointWriter(rank, train.timeout_s)
            self.layout, self.rejected_layouts = choose_layout(self.model, self._row_logprobs, dtype, train)
            if self.reference is not None and self.reference is not self.model:
                policy.set_attention(self.reference, self.layout.attention)
            for layer in policy.decoder_layers(self.model) if train.compile else []:
                layer.compile(dynamic=True)
        except BaseException:
            self.shutdown()
            raise

    def configure(self, train: TrainConfig, total_steps: int) -> None:
        """Begin another run on the model as it is: a new optimizer, no step done. `load` then sets the start weights.

        Args:
            train: The new run's `train` section.
            total_steps: Steps of the new run.

        Raises:
            ConfigError: A key differs that the ranks were built with.
        """
        for key in BUILT_WITH:
            old, new = getattr(self.train, key), getattr(train, key)
            if old != new:
                raise ConfigError(f"train.{key}: the learner was built with {old!r} and cannot go on with {new!r}")
        self.train = train
        self.loss = LossConfig.from_train(train)
        self.total_steps = total_steps
        # Numbers of steps that were learned from, and of optimizer steps.
        self.steps_done = self.updates_done = 0
        self.optimizer = ShardedAdamW(self.model, train)
        self.reduces = reduces_each_microbatch(train, sum(p.numel() for _, p in self.optimizer.named))

    def __repr__(self) -> str:
        # Ray puts it before the rank's log lines.
        return f"learner-{self.rank}"

    def describe(self) -> dict[str, Any]:
        """Return what logs show of this rank.

        Returns:
            rank, host, pid, device, parameters and trained (numbers of parameters), layout, and rejected_layouts, the
            reasons why faster layouts were not taken.
        """
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.model.parameters()]
        return {
            "rank": self.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": str(self.device),
            "parameters": sum(size for size, _ in sizes),
            "trained": sum(size for size, trained in sizes if trained),
            "layout": str(self.layout),
            "rejected_layouts": self.rejected_layouts,
        }

    def _lr(self, done: float, mixed_share: float) -> float:
        """Return the learning rate of an optimizer step before which this share of the step's has been done."""
        return learning_rate(self.train, self.steps_done + done, self.total_steps, mixed_share)

    def update(self, rows: TrainingRows) -> dict[str, float]:
        """Learn from one step by train.epochs passes of rows.updates optimizer steps each.

        Ratios are taken to the log-probabilities of the policy before the first optimizer step. With one optimizer step a
        pass they are the first pass's own; with several they are computed beforehand.

        Returns:
            The train/* metrics, the same on every rank; those that are unknown because nothing was trained on are absent.
        """
        started = time.monotonic()
        sums, gap_max = no_sums(self.device)
        mixed_share = rows.effective_groups / max(1, rows.groups)
        norms: list[float] = []
        plan = [self._micro_batches(rows, update) for update in range(rows.updates)]
        old: list[list[Tensor | None]] = [[None] * len(batches) for batches in plan]
        if rows.updates > 1:
            old = self._old_logprobs(plan)
        lr, order = self._lr(0.0, mixed_share), update_order(rows.updates, self.train.epochs, rows.seed)
        for k, update in enumerate(order):
            pass_sums, pass_gap = self._accumulate(plan[update], old[update])
            if self._too_far(pass_sums):
                self.optimizer.clear()
                break
            sums += pass_sums
            gap_max = torch.maximum(gap_max, pass_gap)
            lr = self._lr(k / len(order), mixed_share)
            norms.append(self.optimizer.step(lr))
            self.updates_done += bool(np.isfinite(norms[-1]))
        self.steps_done += 1
        dist.all_reduce(sums)
        dist.all_reduce(gap_max, dist.ReduceOp.MAX)
        metrics = update_metrics(dict(zip(SUMS, sums.tolist(), strict=True)), norms, rows, self.train, self.device)
        metrics[TRAIN_LOGPROB_GAP_MAX] = gap_max.item() if plan else np.nan
        metrics |= {TRAIN_LR: lr, TRAIN_UPDATE_S: time.monotonic() - started}
        return {name: value for name, value in metrics.items() if np.isfinite(value)}

    @torch.no_grad()
    def _old_logprobs(self, plan: list[list[MicroBatch]]) -> list[list[Tensor | None]]:
        old: list[list[Tensor | None]] = [[self._forward(batch)[0] for batch in batches] for batches in plan]
        self.model.reshard()
        return old

    def _accumulate(self, batches: list[MicroBatch], old: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Add up the gradient of one optimizer step, and fill in old log-probabilities that are not known yet.

        Returns:
            SUMS (S,) float64 and the largest gap to the engine's log-probabilities.
        """
        sums, gap_max = no_sums(self.device)
        for k, batch in enumerate(batches):
            last = k == len(batches) - 1
            self.model.set_requires_gradient_sync(last or self.reduces)
            # Between replicas once a step: what the ranks of one have reduced is added up until then.
            self.model.set_requires_all_reduce(last)
            self.model.set_is_last_backward(last)
            found, batch_gap, old[k] = self._backward(batch, old[k])
            sums += found
            gap_max = torch.maximum(gap_max, batch_gap)
        return sums, gap_max

    def _too_far(self, sums: Tensor) -> bool:
        """Return whether the policy has moved further than train.max_kl allows. A collective where that is set."""
        if not self.train.max_kl:
            return False
        both = torch.stack([sums[SUMS.index("kl")], sums[SUMS.index("tokens")]])
        dist.all_reduce(both)
        kl, tokens = both.tolist()
        return kl > self.train.max_kl * tokens

    def _micro_batches(self, rows: TrainingRows, update: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of one optimizer step."""
        check_length(self.model.config, int(rows.lengths.max(initial=0)))
        packed = self.layout.packed
        chosen = np.flatnonzero(rows.update == update)
        together = self.context.size
        split = split_ranks(rows, chosen, self.train.microbatch_tokens, self.world_size // together, packed)
        return [self._placed(collate(rows, indices, packed)) for indices in split[self.rank // together]]

    def _placed(self, batch: MicroBatch) -> MicroBatch:
        """Return what this rank computes of a micro-batch, on its device."""
        return own_part(batch, self.context).to(self.device)

    def _forward(
        self,
        batch: MicroBatch,
        temperature: float | None = None,
        model: Any = None,
        layout: LearnerLayout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability (nats) and entropy (nats) of the batch's N targets, each (N,) float32."""
        temperature = self.temperature if temperature is None else temperature
        all_logits = (layout or self.layout).all_logits
        model = self.model if model is None else model
        own = model.score(batch.inputs, batch.keep, batch.source, batch.targets, temperature, all_logits)
        return own if batch.parts is None else batch.parts.gather(*own)

    @torch.no_grad()
    def _reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        if self.reference is None:
            return None
        with without_adapters(self.reference):
            logprobs_N = self._forward(batch, model=self.reference)[0]
        self.reference.reshard()
        return logprobs_N

    def _backward(self, batch: MicroBatch, old_N: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Add the batch's gradient.

        Returns:
            SUMS (S,) float64, of ranks that compute together on the first alone; the largest gap to the engine's
            log-probabilities; and the old log-probabilities (N,).
        """
        reference_N = self._reference_logprobs(batch)
        logprobs_N, entropy_N = self._forward(batch)
        old_N = logprobs_N.detach() if old_N is None else old_N
        result = policy_loss(
            LossInputs(logprobs_N, old_N, batch.logprobs, batch.advantages, batch.weights, batch.rollout, reference_N),
            self.loss,
        )
        # FSDP averages gradients over the ranks; the loss is a sum. Ranks that compute together have the same loss, and each
        # the gradient of its own tokens.
        (result.loss * self.world_size).backward()
        sums, gap_max = batch_sums(result, batch, entropy_N, old_N)
        return sums * (self.context.rank == 0), gap_max, old_N

    @torch.no_grad()
    def _row_logprobs(
        self, rows: TrainingRows, layout: LearnerLayout | None = None, temperature: float = 1.0
    ) -> np.ndarray:
        """Log-probabilities of all response tokens of all rows, (N,) float32, row after row."""
        layout = layout or self.layout
        check_length(self.model.config, int(rows.lengths.max(initial=0)))
        try:
            batch = self._placed(collate(rows, np.arange(len(rows)), layout.packed))
            logprobs = self._forward(batch, temperature, layout=layout)[0].float().cpu()
        finally:
            self.model.reshard()
        ordered = np.empty(len(logprobs), dtype=np.float32)
        ordered[batch.order.cpu().numpy()] = logprobs.numpy()
        return ordered

    def logprobs(
        self, token_rows: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float = 1.0
    ) -> list[np.ndarray]:
        """Compute log-probabilities of response tokens; every rank computes all rows.

        Args:
            token_rows: (prompt tokens, response tokens) pairs; a response may be empty.
            temperature: Divides the logits.

        Returns:
            For each pair (T,) float32, nats.
        """
        kept = [i for i, (_, response) in enumerate(token_rows) if len(response)]
        rows = unscored_rows([token_rows[i] for i in kept])
        results = [np.zeros(0, dtype=np.float32) for _ in token_rows]
        if kept:
            split = np.cumsum(rows.response_lengths)[:-1]
            computed = np.split(self._row_logprobs(rows, temperature=temperature), split)
            for i, values in zip(kept, computed, strict=True):
                results[i] = values
        return results

    def state(self) -> list[tuple[str, Tensor]]:
        """Return (name, tensor) of the whole model in the compute dtype on rank 0's CPU; [] on the other ranks."""
        return policy.full_state(self.model, self.dtype, keep=self.rank == 0)

    def weights(self) -> tuple[Gathered, FlatWeights]:
        """Gather the whole model in the compute dtype on rank 0; the other ranks return no weights.

        Tensors may share the live parameters' memory: the caller must copy them (Ray does) before the next update.

        Returns:
            Size, checksum and timings, small enough for a caller on another node, and the weights.
        """
        started = time.monotonic()
        state = policy.gathered_state(self.model, self.dtype, keep=self.rank == 0)
        gathered = time.monotonic()
        weights = FlatWeights.pack(state)
        return Gathered(weights.nbytes, weights.checksum, gathered - started, time.monotonic() - gathered), weights

    def export(self, folder: str | Path) -> None:
        """Write a Hugging Face folder with its tokenizer; rank 0 writes."""
        state = self.state()
        run_on_rank_0(lambda: policy.export_policy(self.model, state, self.dtype, self.model_path, Path(folder)))

    def _sharded_state(self) -> dict[str, Tensor]:
        """Everything that is trained, by name; shares memory with the live tensors, so loading into it is enough."""
        state = policy.trained_tensors(self.model)
        return state | {f"optimizer.{name}": tensor for name, tensor in self.optimizer.tensors().items()}

    def save(self, folder: str | Path, background: bool = False) -> None:
        """Write model, optimizer, step and random states; waits for an earlier write.

        Args:
            folder: Where each rank writes its shard; all ranks must see it.
            background: Return as soon as a copy has been taken; `saved` then reports when it is on disk.

        Raises:
            StorageError: A rank could not write.
        """
        own = {"updates_done": self.updates_done, "steps_done": self.steps_done, "rng": random_states(self.device)}
        self.writer.start(Path(folder), self._sharded_state(), own, background)

    def saved(self) -> bool:
        """Return whether this rank has nothing left to write; never waits.

        Raises:
            KrayError: The last write failed.
        """
        return self.writer.poll()

    def load(self, folder: str | Path) -> None:
        """Restore what `save` wrote, also on another number of ranks; a rank it lacks seeds its own random numbers.

        Raises:
            KrayError: The folder is not a checkpoint of such a learner, or cannot be read.
        """
        self.writer.wait()
        own, is_own = read_checkpoint(Path(folder), self._sharded_state(), self.rank)
        self.updates_done = own["updates_done"]
        # Older checkpoints count optimizer steps only; they made one pass over each step.
        self.steps_done = own.get("steps_done", -(-self.updates_done // self.train.updates))
        if is_own:
            set_random_states(own["rng"], self.device)
        else:
            torch.manual_seed(self.seed + self.updates_done)
        dist.barrier()

    def shutdown(self) -> None:
        """Finish a background write and leave the process group; safe to call twice."""
        writer = getattr(self, "writer", None)
        if writer is not None and writer.thread is not None:
            writer.thread.join()
        if dist.is_initialized():
            dist.destroy_process_group()
