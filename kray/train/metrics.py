"""What one update tells: every train/* metric but logprob_gap_max, lr and update_s, which the learner adds.

train/loss (mean over optimizer steps), grad_norm (before clipping, mean), entropy (nats a token), clip_ratio (share of
tokens where the clip was active), kl (nats a token, old to new), reference_kl (nats a token, new to the start model; with
train.kl), tis_ratio (share of tokens whose importance weight was cut; with train.tis), tokens (response tokens trained
on), rows (rollouts trained on), computed_tokens (tokens the layers computed, padding included), groups_ratio (share of
groups that carry a gradient), padding_ratio (share of computed places without a token), attention_padding_ratio (share of
the key places that attention reads), logprob_gap_mean (nats, engine to learner), logprob_kl (nats a token, engine to
learner), optimizer_steps, nonfinite (optimizer steps left out), skipped (1: no optimizer step), advantage_max (largest
magnitude before the clip), advantage_cut_groups (groups in which train.advantage_clip cut a rollout), peak_memory_gib.
"""

from __future__ import annotations

import resource

import numpy as np
import torch
import torch.distributed as dist

from kray.config.train_schema import TrainConfig
from kray.errors import KrayError
from kray.metrics import (
    TRAIN_ADVANTAGE_CUT_GROUPS,
    TRAIN_ADVANTAGE_MAX,
    TRAIN_ATTENTION_PADDING_RATIO,
    TRAIN_CLIP_RATIO,
    TRAIN_COMPUTED_TOKENS,
    TRAIN_ENTROPY,
    TRAIN_GRAD_NORM,
    TRAIN_GROUPS_RATIO,
    TRAIN_KL,
    TRAIN_LOGPROB_GAP_MEAN,
    TRAIN_LOGPROB_KL,
    TRAIN_LOSS,
    TRAIN_NONFINITE,
    TRAIN_OPTIMIZER_STEPS,
    TRAIN_PADDING_RATIO,
    TRAIN_PEAK_MEMORY_GIB,
    TRAIN_REFERENCE_KL,
    TRAIN_ROWS,
    TRAIN_SKIPPED,
    TRAIN_TIS_RATIO,
    TRAIN_TOKENS,
)
from kray.train.training_rows import TrainingRows

# What one update adds up over its tokens, micro-batches and ranks.
SUMS = (
    *("loss", "clipped", "kl", "truncated", "reference_kl", "entropy", "gap", "engine_kl"),
    *("tokens", "padded", "filled", "rows", "keys", "key_places"),
)


def update_metrics(
    sums: dict[str, float], norms: list[float], rows: TrainingRows, train: TrainConfig, device: torch.device
) -> dict[str, float]:
    """The metrics of one update; NaN where nothing is known. norms: of each optimizer step. A collective."""
    tokens = sums["tokens"] or np.nan
    finite = [norm for norm in norms if np.isfinite(norm)]
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
        TRAIN_COMPUTED_TOKENS: sums["padded"],
        TRAIN_GROUPS_RATIO: rows.effective_groups / max(1, rows.groups),
        TRAIN_PADDING_RATIO: 1 - sums["filled"] / sums["padded"] if sums["padded"] else np.nan,
        TRAIN_ATTENTION_PADDING_RATIO: 1 - sums["keys"] / sums["key_places"] if sums["key_places"] else np.nan,
        TRAIN_LOGPROB_GAP_MEAN: sums["gap"] / tokens,
        TRAIN_LOGPROB_KL: sums["engine_kl"] / tokens,
        TRAIN_OPTIMIZER_STEPS: float(len(finite)),
        TRAIN_NONFINITE: float(len(norms) - len(finite)),
        TRAIN_SKIPPED: float(not finite),
        TRAIN_ADVANTAGE_MAX: rows.advantage_max,
        TRAIN_ADVANTAGE_CUT_GROUPS: float(rows.cut_groups),
        TRAIN_PEAK_MEMORY_GIB: _peak_memory_gib(device),
    }


def count_nonfinite_steps(before: int, metrics: dict[str, float], limit: int) -> int:
    """How many steps in a row, this one included, found no finite gradient. Raises KrayError at the limit (0: none).

    A step without a mixed group says nothing of the gradient: the count stays.
    """
    if not metrics[TRAIN_SKIPPED]:
        return 0
    count = before + (metrics[TRAIN_NONFINITE] > 0)
    if limit and count >= limit and metrics[TRAIN_NONFINITE]:
        raise KrayError(
            f"learner: the gradient was not finite in {count} steps in a row (train.max_nonfinite); weights and optimizer are "
            "as before them: go on from the newest checkpoint with a lower train.lr, or another train.loss or model.dtype"
        )
    return count


def _peak_memory_gib(device: torch.device) -> float:
    """Of the rank that needed most. A collective."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = torch.tensor(peak / 2**30, dtype=torch.float64, device=device)
    dist.all_reduce(memory, dist.ReduceOp.MAX)
    return memory.item()
