"""Loads the policy sharded over the learner's ranks (FSDP2).

Guarantees
- Each rank reads the rows of its own shard from the model's safetensors files: beside its shards it holds one tensor's rows.
- Where that is not possible, rank 0 reads the whole model and sends it layer by layer; the values are the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from kray.config.schema import LoraConfig
from kray.config.train_schema import TrainConfig
from kray.errors import ConfigError
from kray.train.activations import recompute
from kray.train.logprobs import add_score_method
from kray.train.model import DTYPES, decoder_layers, load_policy
from kray.train.offload import fsdp_options, move_buffers
from kray.train.process_group import first_problem
from kray.train.shards import own_rows
from kray.train.weight_files import WeightFiles, find_weights

logger = logging.getLogger(__name__)


def rank_mesh(device: str, ranks: int, replicas: int) -> DeviceMesh:
    """Return the mesh of all ranks, by which parameters are sharded. A collective.

    Args:
        device: "cpu" or "cuda".
        ranks: Number of ranks.
        replicas: Copies of the sharded model; above 1 the mesh has a first dimension over which they are replicated.
    """
    if replicas == 1:
        return init_device_mesh(device, (ranks,))
    return init_device_mesh(device, (replicas, ranks // replicas), mesh_dim_names=("replicate", "shard"))


def load_sharded(
    path: str,
    dtype: str,
    mesh: DeviceMesh,
    train: TrainConfig,
    lora: LoraConfig | None = None,
    frozen: bool = False,
) -> Any:
    """Load a model, shard it over the ranks of `mesh` and give it the method `score` of logprobs.py. A collective.

    Args:
        path: A Hugging Face folder or a hub id.
        dtype: Compute dtype.
        mesh: See `rank_mesh`.
        train: The run's `train` section.
        lora: See `load_policy`.
        frozen: Whether the model is never trained; its parameters are then kept in the compute dtype.

    Raises:
        ConfigError: On all ranks, when one of them cannot load the model.
    """
    random_state = torch.get_rng_state()
    model = _load(path, dtype, lora, True)
    files = _agreed_files(model, path)
    if files is None:
        # Adapters start with the same values either way.
        torch.set_rng_state(random_state)
        model = _load(path, dtype, lora, dist.get_rank() > 0)
    if train.activation_checkpointing and not frozen:
        recompute(decoder_layers(model), train.activation_offload)
    if frozen:
        model.requires_grad_(False)
        # Not the buffers: rotary frequencies stay float32, as the policy's do.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(DTYPES[dtype])
    model = shard(model, mesh, dtype, train.offload, send=files is None)
    if files is not None:
        _read_shards(model, files, torch.device("cpu" if train.offload == "all" else mesh.device_type))
    # FSDP does not move the buffers.
    move_buffers(model, mesh.device_type)
    add_score_method(model)
    return model


def _load(path: str, dtype: str, lora: LoraConfig | None, empty: bool) -> Any:
    """Load a model on this rank alone. A collective, which fails on all ranks where it fails on one."""
    model: Any = None
    problem = ""
    try:
        model = load_policy(path, dtype, lora, empty)
    except ConfigError as error:
        problem = str(error)
    problem = first_problem(problem)
    if problem:
        raise ConfigError(problem)
    return model


def _agreed_files(model: Any, path: str) -> WeightFiles | None:
    """Return the files from which every rank reads its rows; None where one rank cannot. A collective."""
    files, why = find_weights(model, path)
    why = first_problem(why)
    if not why and files is not None:
        why = first_problem(files.check_tied(dist.get_rank(), dist.get_world_size()))
    if why and dist.get_rank() == 0 and dist.get_world_size() > 1:
        logger.info(f"model.path {path}: rank 0 reads the whole model into main memory, because {why}")
    return None if why else files


@torch.no_grad()
def _read_shards(model: Any, files: WeightFiles, device: torch.device) -> None:
    """Give parameters memory on the device and read this rank's rows into them. A collective.

    Raises:
        ConfigError: On all ranks, when one of them cannot read.
    """
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    problem = ""
    try:
        for name, parameter in model.named_parameters():
            local, start = own_rows(parameter)
            if name in files.place_of and len(local):
                local.copy_(files.rows(name, start, start + len(local)))
        for name, buffer in model.named_buffers():
            if name in files.place_of:
                buffer.copy_(files.whole(name))
    except Exception as error:
        problem = f"model.path: rank {dist.get_rank()} cannot read its weights: {type(error).__name__}: {error}"
    problem = first_problem(problem)
    if problem:
        raise ConfigError(problem)


def _fill_from_rank_0(module: nn.Module, done: dict[int, Any], allocate: bool) -> None:
    """Copy rank 0's values into the module's parameters and buffers, of those on the meta device if `allocate`. A collective.

    `done` maps the id of what was filled to its replacement, so that tied parameters stay tied.
    """
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is None or isinstance(parameter, DTensor) or (parameter.is_meta and not allocate):
                continue
            if id(parameter) not in done:
                filled: nn.Parameter = parameter
                if parameter.is_meta:
                    filled = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
                _broadcast(filled.detach())
                done[id(parameter)], done[id(filled)] = filled, filled
            setattr(part, name, done[id(parameter)])
        for buffer in part._buffers.values():
            if buffer is not None and id(buffer) not in done:
                _broadcast(buffer)
                done[id(buffer)] = buffer


def _broadcast(tensor: Tensor) -> None:
    """Copy rank 0's tensor to all ranks, as bytes: gloo does not know every dtype."""
    if tensor.numel():
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)


def shard(
    model: nn.Module, mesh: DeviceMesh, dtype: str = "float32", offload: str = "none", send: bool = True
) -> nn.Module:
    """Shard each decoder layer, then the rest, over the ranks, in place (FSDP2).

    Parameters are gathered in `dtype` and stay float32 in the shards; gradients are reduced in float32.

    Args:
        model: The model; parameters of ranks other than 0 may be on the meta device.
        mesh: See `rank_mesh`.
        dtype: Compute dtype.
        offload: train.offload.
        send: Whether parameters on the meta device get rank 0's values, one layer at a time, so that a rank holds at most
            its shards and one whole layer (rank 0 holds the model that it has read). Else they stay there. What has
            memory gets rank 0's values anyway.

    Returns:
        The model.
    """
    policy = MixedPrecisionPolicy()
    if DTYPES[dtype] != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=DTYPES[dtype], reduce_dtype=torch.float32)
    done: dict[int, Any] = {}
    # Keeps the originals alive: their ids, the keys of `done`, must not be reused.
    originals = [*model.parameters(), *model.buffers()]
    layers = list(decoder_layers(model))
    # FSDP cannot shard a parameter in two groups: layers that share parameters (Zamba) are sharded with the rest.
    owners = Counter(id(parameter) for layer in layers for parameter in layer.parameters())
    layers = [layer for layer in layers if all(owners[id(parameter)] == 1 for parameter in layer.parameters())]
    for part in [*layers, model]:
        if mesh.size() > 1:
            _fill_from_rank_0(part, done, send)
        fully_shard(part, mesh=mesh, mp_policy=policy, **fsdp_options(offload, mesh))
    del originals
    return model
