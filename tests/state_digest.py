"""A digest of a model's state, to compare states bit for bit."""

from __future__ import annotations

import hashlib

import torch


def state_digest(state):
    """32 hex digits that depend on every name, shape, dtype and bit of the (name, tensor) pairs."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in state:
        digest.update(f"{name}\x1f{tuple(tensor.shape)}\x1f{tensor.dtype}\x1e".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
