"""The learning rate of an optimizer step, by its place in the run, and the order of the optimizer steps of one step. Pure."""

from __future__ import annotations

import math

import numpy as np

from kray.config.train_schema import TrainConfig

# Exponent of the share of mixed groups in the learning rate, by train.lr_scaling.
LR_EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


def schedule_share(train: TrainConfig, start: float, end: float, total_steps: int) -> float:
    """Return the learning rate of an optimizer step as a share of train.lr.

    The warm-up rises to 1 at the end of its last optimizer step; the schedule then falls from 1 to train.lr_final at the end
    of the run, and an optimizer step has the rate at which it begins.

    Args:
        train: The run's `train` section.
        start: Steps of the run before the optimizer step; fractions count optimizer steps within a step.
        end: Steps of the run after it.
        total_steps: Steps of the run.
    """
    warmup = min(train.lr_warmup_steps, total_steps)
    rising = min(1.0, end / warmup) if warmup else 1.0
    progress = min(1.0, max(0.0, (start - warmup) / max(1, total_steps - warmup)))
    if train.lr_schedule == "linear":
        falling = 1 - progress
    elif train.lr_schedule == "cosine":
        falling = (1 + math.cos(math.pi * progress)) / 2
    else:
        return rising
    return rising * (train.lr_final + (1 - train.lr_final) * falling)


def learning_rate(train: TrainConfig, position: float, total_steps: int, mixed_share: float) -> float:
    """Return the learning rate of an optimizer step.

    Args:
        train: The run's `train` section.
        position: Steps of the run before it, a fraction for optimizer steps of the same step.
        total_steps: Steps of the run.
        mixed_share: Share of the step's groups that carry a gradient; scales the rate as train.lr_scaling says.
    """
    share = schedule_share(train, position, position + 1 / (train.updates * train.epochs), total_steps)
    return train.lr * share * mixed_share ** LR_EXPONENTS[train.lr_scaling]


def update_order(updates: int, epochs: int, seed: int) -> list[int]:
    """Return the optimizer steps of one step in their order: pass after pass, from the second on in a drawn order.

    Args:
        updates: Optimizer steps of a pass.
        epochs: Passes.
        seed: Of the step; a pass's order depends on it and on the number of the pass.
    """
    order = list(range(updates))
    for epoch in range(1, epochs):
        order += np.random.default_rng([seed, epoch]).permutation(updates).tolist()
    return order
