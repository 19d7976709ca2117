"""Older versions of the policy that are opponents, in checkpoints: `past-20.pt` is one that is refreshed every 20 steps.

What is read is what was written, checked by the weights' checksum. A file that is damaged is damage of its checkpoint.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.exceptions import RayError

from kray.config.players import Player
from kray.errors import StorageError
from kray.rollout.pool_state import Published
from kray.weight_sync.flat_weights import FlatWeights


@dataclass(frozen=True)
class HeldPolicy:
    """A policy that an opponent plays with.

    Attributes:
        step: After how many steps the policy was that.
        published: Its weights, as engines load and prove them, with the logprobs of the probe.
    """

    step: int
    published: Published


async def write(folder: Path, held: Mapping[Player, HeldPolicy], limit_s: float) -> None:
    """Write the policies of opponents into the folder of a checkpoint.

    Args:
        folder: Of the checkpoint that is being written.
        held: Opponent -> its policy.
        limit_s: Deadline for weights to arrive from another node, in seconds.

    Raises:
        StorageError: Weights are lost, or do not arrive in time.
        OSError: The disk is full.
    """
    for player, policy in held.items():
        try:
            weights: FlatWeights = await asyncio.wait_for(_value(policy.published.weights), limit_s)
        except (TimeoutError, RayError) as error:
            raise StorageError(f"opponent {player}: its weights cannot be had: {type(error).__name__}") from error
        await asyncio.to_thread(_write, _file(folder, player), policy, weights)


def read(checkpoint: Path, player: Player) -> HeldPolicy | None:
    """Return the policy that an opponent had at a checkpoint, its weights not yet in Ray's object store.

    Returns:
        The policy; None where the checkpoint has no such opponent.

    Raises:
        StorageError: The file cannot be read, or holds something else.
    """
    file = _file(checkpoint, player)
    if not file.is_file():
        return None
    try:
        found = torch.load(file, weights_only=True)
        weights = FlatWeights.pack(found["weights"])
        probe, logprobs = tuple(found["probe"]), found["logprobs"].numpy()
        # Checkpoints of earlier versions lack it.
        start = None if (start := found.get("start")) is None else start.numpy()
        step, expected = int(found["step"]), found["checksum"]
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise StorageError(f"{file} cannot be read: {type(error).__name__}: {error}".splitlines()[0]) from error
    if weights.checksum != expected:
        raise StorageError(f"{file}: its weights are not those that were written")
    return HeldPolicy(step, Published(0, weights, expected, probe, logprobs, start))


def settled(published: Published) -> Published:
    """Return published weights with the logprobs in place of a future of them that is done."""
    logprobs = published.logprobs
    return replace(published, logprobs=logprobs.result()) if isinstance(logprobs, asyncio.Future) else published


def _write(file: Path, policy: HeldPolicy, weights: FlatWeights) -> None:
    published, start = policy.published, policy.published.start
    content = {
        "step": policy.step,
        "checksum": published.checksum,
        "probe": list(published.probe),
        "logprobs": torch.from_numpy(np.array(published.logprobs)),
        "start": None if start is None else torch.from_numpy(np.array(start)),
        "weights": weights.tensors(),
    }
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # torch raises it when the disk is full.
        raise StorageError(f"{file} could not be written: {error}".splitlines()[0]) from error


def _file(checkpoint: Path, player: Player) -> Path:
    return checkpoint / f"{player}.pt"


async def _value(reference: Any) -> FlatWeights:
    return await reference
