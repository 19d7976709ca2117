"""Keeps a rank's state in main memory: its moments, all of it, or all of it while an engine has the device.

Guarantees
- What is computed is the same, bit for bit on CPU, wherever the state is kept.
- Parameters keep their identity when they leave the device and come back: FSDP2 and the optimizer hold views of them.
- While parameters are away, their values are read from main memory (`stored`); anything else would read freed memory.

train.offload `optimizer` keeps the moments of AdamW in main memory and brings them to the device a part at a time. `all` is
FSDP2's CPUOffloadPolicy: a layer is copied to the device while it is used, and AdamW runs on the CPU.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from kray.config.train_schema import OFFLOAD_PART_BYTES

# Storages up to so many bytes stay: AdamW's step counts.
SMALL_BYTES = 8
# Seconds until a GPU has got back the memory of a process that was killed, such as an engine's.
FREED_S = 20.0


def fsdp_options(offload: str, mesh: DeviceMesh) -> dict[str, Any]:
    """Return the options of `fully_shard` for train.offload."""
    if offload != "all":
        return {}
    return {"offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")}


def move_buffers(model: nn.Module, device: str) -> None:
    """Move the buffers alone: parameters stay where train.offload keeps them."""
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def moments_like(shard: Tensor, offload: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return zero moments of a shard, in main memory with train.offload optimizer."""
    if offload != "optimizer":
        return {name: torch.zeros_like(shard, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")}
    pinned = shard.device.type == "cuda"
    return {name: torch.zeros(shard.shape, dtype=dtype, pin_memory=pinned) for name in ("exp_avg", "exp_avg_sq")}


def step_in_parts(adamw: torch.optim.AdamW, step: Callable[[], None], part_bytes: int = 0) -> None:
    """Take one step with the gradients of the optimizer's shards, whose moments are in main memory.

    Args:
        adamw: The optimizer.
        step: Takes the step of the shards that have gradients, each by itself, so that parts give what the whole gives.
        part_bytes: Bytes of moments that are on the device at once; 0: OFFLOAD_PART_BYTES.
    """
    found = [shard for group in adamw.param_groups for shard in group["params"] if shard.grad is not None]
    gradients = {shard: shard.grad for shard in found}
    for shard in found:
        shard.grad = None
    sizes = [2 * adamw.state[shard]["exp_avg"].nbytes for shard in found]
    for part in _parts(found, sizes, part_bytes or OFFLOAD_PART_BYTES):
        kept = [dict(adamw.state[shard]) for shard in part]
        for shard, home in zip(part, kept, strict=True):
            shard.grad = gradients[shard]
            moved = {
                name: home[name].to(shard.device, copy=True, non_blocking=True) for name in ("exp_avg", "exp_avg_sq")
            }
            adamw.state[shard].update(moved)
        step()
        for shard, home in zip(part, kept, strict=True):
            shard.grad = None
            for name in ("exp_avg", "exp_avg_sq"):
                home[name].copy_(adamw.state[shard][name])
                adamw.state[shard][name] = home[name]
    for shard in found:
        shard.grad = gradients[shard]


def _parts(shards: Sequence[Any], sizes: Sequence[int], part_bytes: int) -> Iterator[list[Any]]:
    """Divide shards into runs whose moments, of `sizes` bytes, take at most `part_bytes`, or that are single shards."""
    part: list[Any] = []
    held = 0
    for shard, needed in zip(shards, sizes, strict=True):
        if part and held + needed > part_bytes:
            yield part
            part, held = [], 0
        part.append(shard)
        held += needed
    if part:
        yield part


class DeviceState:
    """The tensors that a rank keeps on its device between two steps, which can leave it for main memory.

    Attributes:
        present: Whether they are on the device.
    """

    def __init__(self, tensors: Iterable[Tensor], device: torch.device):
        """Take over tensors; nothing is moved.

        Args:
            tensors: Parameters and moments; those that are in main memory by train.offload stay as they are.
            device: Of the rank.
        """
        self.device, self.present = device, True
        storages: dict[int, torch.UntypedStorage] = {}
        for tensor in tensors:
            storage = local(tensor).untyped_storage()
            if storage.device.type == device.type and storage.nbytes() > SMALL_BYTES:
                storages[storage._cdata] = storage
        self._storages = list(storages.values())
        self._sizes = [storage.nbytes() for storage in self._storages]
        # Pinned memory takes long to get, so on a GPU it is kept; on CPU it would be a second copy of everything.
        self._keep = device.type == "cuda"
        self._copies: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Bytes that leave the device."""
        return sum(self._sizes)

    def leave(self) -> None:
        """Copy everything to main memory and free the device; does nothing when it is away."""
        if not self.present:
            return
        if not self._copies:
            self._copies = [torch.empty(size, dtype=torch.uint8, pin_memory=self._keep) for size in self._sizes]
        for storage, copy in zip(self._storages, self._copies, strict=True):
            copy.copy_(_bytes(storage))
            # Not so on CPU where NumPy has seen it, as when weights are gathered; such memory stays.
            if storage.resizable():
                storage.resize_(0)
        self.present = False
        release_memory(self.device)

    def enter(self) -> None:
        """Bring everything back to the device; does nothing when it is there."""
        if self.present:
            return
        if self.device.type == "cuda":
            wait_for_memory(self.nbytes, lambda: torch.cuda.mem_get_info(self.device)[0])
        for i, storage in enumerate(self._storages):
            if storage.resizable():
                storage.resize_(self._sizes[i])
            _bytes(storage).copy_(self._copies[i])
            if not self._keep:
                # One at a time, so that both copies are never held whole.
                self._copies[i] = torch.empty(0, dtype=torch.uint8)
        self._copies = self._copies if self._keep else []
        self.present = True

    def stored(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the same names with tensors that can be read and written now: those that are away, in main memory.

        What is written while they are away is on the device after `enter`.
        """
        if self.present:
            return tensors
        copies = {storage._cdata: copy for storage, copy in zip(self._storages, self._copies, strict=True)}
        found = {}
        for name, tensor in tensors.items():
            own = local(tensor)
            copy = copies.get(own.untyped_storage()._cdata)
            found[name] = tensor
            if copy is not None:
                view = torch.empty(0, dtype=own.dtype)
                view.set_(copy.untyped_storage(), own.storage_offset(), own.shape, own.stride())
                # Not from_local, which would move it to the mesh's device.
                found[name] = DTensor(view, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else view
        return found


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device)
    whole.set_(storage, 0, (storage.nbytes(),), (1,))
    return whole


def wait_for_memory(nbytes: int, free: Callable[[], int], limit_s: float = FREED_S) -> None:
    """Wait until so many bytes of a device are free, or for the limit: allocating them then fails with the reason.

    Args:
        nbytes: Needed bytes.
        free: Returns the free bytes.
        limit_s: Longest wait in seconds.
    """
    deadline = time.monotonic() + limit_s
    while free() < nbytes and time.monotonic() < deadline:
        time.sleep(0.1)


def release_memory(device: torch.device) -> None:
    """Return freed memory that this process keeps for later: of the GPU, or on CPU main memory."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
