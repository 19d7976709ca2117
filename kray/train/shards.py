"""Which part of a sharded parameter this rank holds."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor


def own_rows(parameter: Any) -> tuple[Tensor, int]:
    """Return the rows of a parameter that this rank holds, and the number of the first of them."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), 0
    local, rows = parameter.to_local().detach(), parameter.shape[0]
    # The last dimension of the mesh is that over which parameters are sharded.
    mesh = parameter.device_mesh
    size = -(-rows // mesh.size(mesh.ndim - 1))
    start = min(rows, mesh.get_local_rank(mesh.ndim - 1) * size)
    assert len(local) == min(rows, start + size) - start, (parameter.placements, local.shape)
    return local, start


def replicas_of(parameter: Any) -> int:
    """Return how many ranks hold each shard of a parameter."""
    if not isinstance(parameter, DTensor):
        return 1
    mesh = parameter.device_mesh
    return mesh.size() // mesh.size(mesh.ndim - 1)
