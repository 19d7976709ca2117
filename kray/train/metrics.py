"""The metrics of one update (kray/metrics/ says what each means) and the count of steps without a finite gradient."""

from __future__ import annotations

import resource

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kray.config.train_schema import TrainConfig
from kray.errors import KrayError
from kray.metrics import (
    TRAIN_ADVANTAGE_CUT_GROUPS,
    TRAIN_ADVANTAGE_MAX,
    TRAIN_ADVANTAGE_MEAN,
    TRAIN_ATTENTION_PADDING_RATIO,
    TRAIN_CLIP_RATIO,
    TRAIN_COMPUTED_TOKENS,
    TRAIN_EFFECTIVE_RATIO,
    TRAIN_EFFECTIVE_SAMPLE_SIZE,
    TRAIN_ENTROPY,
    TRAIN_EPOCHS,
    TRAIN_GRAD_NORM,
    TRAIN_GROUPS_RATIO,
    TRAIN_KEPT_RATIO,
    TRAIN_KL,
    TRAIN_LOGPROB_GAP_MEAN,
    TRAIN_LOGPROB_KL,
    TRAIN_LOSS,
    TRAIN_NONFINITE,
    TRAIN_OPTIMIZER_STEPS,
    TRAIN_PADDING_RATIO,
    TRAIN_PEAK_MEMORY_GIB,
    TRAIN_PROMPTS,
    TRAIN_REFERENCE_KL,
    TRAIN_ROWS,
    TRAIN_SKIPPED,
    TRAIN_TIS_RATIO,
    TRAIN_TOKENS,
)
from kray.train.loss import LossResult, k3
from kray.train.packing import MicroBatch
from kray.train.training_rows import TrainingRows

# What an update sums over its tokens, micro-batches and ranks. tokens: response tokens trained on; computed_tokens: places
# that the layers computed, padding included; filled: those of them that hold a token; keys, key_places: the same for what
# attention reads.
SUMS = (
    "loss",
    "clipped",
    "kl",
    "truncated",
    "reference_kl",
    "entropy",
    "gap",
    "engine_kl",
    "tokens",
    "computed_tokens",
    "filled",
    "rows",
    "keys",
    "key_places",
)


def no_sums(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what `batch_sums` adds to, before any micro-batch: SUMS (S,) and the largest gap, both 0."""
    return torch.zeros(len(SUMS), dtype=torch.float64, device=device), torch.zeros(
        (), dtype=torch.float64, device=device
    )


def batch_sums(result: LossResult, batch: MicroBatch, entropy_N: Tensor, old_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of one micro-batch of N targets.

    Args:
        result: Of the loss.
        batch: The micro-batch.
        entropy_N: (N,) entropies, nats.
        old_N: (N,) log-probabilities of the policy before the step, nats.

    Returns:
        SUMS (S,) float64, and the largest |learner - engine| log-probability, nats.
    """
    gap_N = (old_N - batch.logprobs).abs().double()
    gap_max = gap_N.max() if len(gap_N) else gap_N.new_zeros(())
    keys, key_places = batch.key_counts
    sums: dict[str, Tensor | float] = {
        "loss": result.loss,
        "clipped": result.clipped,
        "kl": result.kl,
        "truncated": result.truncated,
        "reference_kl": result.reference_kl,
        "entropy": entropy_N.sum(),
        "gap": gap_N.sum(),
        "engine_kl": k3(old_N, batch.logprobs).sum(),
        "tokens": len(old_N),
        "computed_tokens": batch.computed_tokens,
        "filled": batch.filled,
        "rows": batch.rows,
        "keys": keys,
        "key_places": key_places,
    }
    values = [torch.as_tensor(sums[name], dtype=torch.float64, device=old_N.device).detach() for name in SUMS]
    return torch.stack(values), gap_max


def update_metrics(
    sums: dict[str, float], norms: list[float], rows: TrainingRows, train: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Return the metrics of one update, NaN where a value is unknown. A collective.

    Args:
        sums: A value for each of SUMS, over all ranks.
        norms: Gradient norm of each optimizer step, before clipping.
        rows: What the update was computed on.
        train: The run's `train` section.
        device: The rank's device, whose peak memory counts.
    """
    tokens = sums["tokens"] or np.nan
    finite = [norm for norm in norms if np.isfinite(norm)]
    computed, key_places = sums["computed_tokens"], sums["key_places"]
    return {
        TRAIN_LOSS: sums["loss"] / len(norms) if norms else np.nan,
        TRAIN_GRAD_NORM: float(np.mean(finite)) if finite else np.nan,
        TRAIN_ENTROPY: sums["entropy"] / tokens,
        TRAIN_CLIP_RATIO: sums["clipped"] / tokens,
        TRAIN_KL: sums["kl"] / tokens,
        TRAIN_REFERENCE_KL: sums["reference_kl"] / tokens if train.kl else np.nan,
        TRAIN_TIS_RATIO: sums["truncated"] / tokens if train.tis else np.nan,
        TRAIN_TOKENS: sums["tokens"],
        TRAIN_ROWS: sums["rows"],
        TRAIN_PROMPTS: len(np.unique(rows.group)) * sums["rows"] / max(1, len(rows)),
        TRAIN_COMPUTED_TOKENS: computed,
        TRAIN_GROUPS_RATIO: rows.effective_groups / max(1, rows.groups),
        TRAIN_PADDING_RATIO: 1 - sums["filled"] / computed if computed else np.nan,
        TRAIN_ATTENTION_PADDING_RATIO: 1 - sums["keys"] / key_places if key_places else np.nan,
        TRAIN_LOGPROB_GAP_MEAN: sums["gap"] / tokens,
        TRAIN_LOGPROB_KL: sums["engine_kl"] / tokens,
        TRAIN_OPTIMIZER_STEPS: float(len(finite)),
        TRAIN_NONFINITE: float(len(norms) - len(finite)),
        TRAIN_SKIPPED: float(not finite),
        TRAIN_EPOCHS: len(norms) / max(1, rows.updates),
        TRAIN_KEPT_RATIO: len(rows) / rows.candidates if rows.candidates else np.nan,
        TRAIN_ADVANTAGE_MAX: rows.advantage_max,
        TRAIN_ADVANTAGE_MEAN: rows.advantage_mean,
        TRAIN_EFFECTIVE_SAMPLE_SIZE: rows.effective_size,
        TRAIN_EFFECTIVE_RATIO: rows.effective_share if rows.rollouts else np.nan,
        TRAIN_ADVANTAGE_CUT_GROUPS: float(rows.cut_groups),
        TRAIN_PEAK_MEMORY_GIB: _peak_memory_gib(device),
    }


def count_nonfinite_steps(before: int, metrics: dict[str, float], limit: int) -> int:
    """Return the number of steps in a row, this one included, without a finite gradient.

    A step without an advantage computes no gradient; it leaves the count as it was.

    Args:
        before: The count before this step.
        metrics: The step's metrics.
        limit: The count at which to raise; 0 for none.

    Raises:
        KrayError: The count has reached the limit.
    """
    if not metrics[TRAIN_SKIPPED]:
        return 0
    count = before + (metrics[TRAIN_NONFINITE] > 0)
    if limit and count >= limit and metrics[TRAIN_NONFINITE]:
        raise KrayError(
            f"learner: the gradient was not finite in {count} steps in a row (train.max_nonfinite); weights and optimizer "
            "are as before them; resume from the newest checkpoint with a lower train.lr, or another train.loss or "
            "model.dtype"
        )
    return count


def _peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the rank that needed most, GiB. A collective."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = torch.tensor(peak / 2**30, dtype=torch.float64, device=device)
    dist.all_reduce(memory, dist.ReduceOp.MAX)
    return memory.item()
