"""AdamW (arXiv 1711.05101) over the shards that this rank holds.

Guarantees: together the ranks compute one AdamW over the whole parameters, clipped by the norm of the whole gradient. A
gradient that is not finite changes nothing, on any rank. States are sharded as the parameters are.

The shards are plain tensors: the same values as with DTensors, without their dispatch, which took 0.5 s in a rank's first
step and most of the time of a small model's later ones.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kray.config.train_schema import TrainConfig
from kray.train.offload import moments_like, step_in_parts
from kray.train.rounded_moments import step_rounded
from kray.train.shards import own_rows, replicas_of


def _shard(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class ShardedAdamW:
    """AdamW for a sharded model; matrices decay, norms and biases do not."""

    def __init__(self, model: nn.Module, train: TrainConfig):
        self.grad_clip, self.offload = train.grad_clip, train.offload
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.shards = [nn.Parameter(_shard(p.detach())) for _, p in self.named]
        pairs = [(p.ndim > 1, shard) for (_, p), shard in zip(self.named, self.shards, strict=True)]
        groups = [
            {"params": [shard for matrix, shard in pairs if matrix], "weight_decay": train.weight_decay},
            {"params": [shard for matrix, shard in pairs if not matrix], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.adamw = torch.optim.AdamW(
            groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps, fused=bool(self.shards)
        )
        self.moments: torch.dtype = getattr(torch, train.moments)
        # As AdamW's first step would make them, so that a checkpoint can be loaded before it.
        for shard in self.shards:
            self.adamw.state[shard] = {
                "step": torch.zeros((), dtype=torch.float32, device=shard.device),
                **moments_like(shard, self.offload, self.moments),
            }

    def step(self, lr: float) -> float:
        """Take one step with the parameters' gradients, unless they are not finite, and clear them. A collective.

        Args:
            lr: Learning rate.

        Returns:
            Norm of the whole gradient before clipping, the same on all ranks.
        """
        gradients = [None if p.grad is None else _shard(p.grad) for _, p in self.named]
        present = [gradient for gradient in gradients if gradient is not None]
        squares = [gradient.double().square().sum() for gradient in torch._foreach_norm(present)] if present else []
        device = self.shards[0].device if self.shards else torch.device("cpu")
        total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=device)
        dist.all_reduce(total)
        # Each shard was counted by every rank that holds it.
        total /= next((replicas_of(p) for _, p in self.named), 1)
        norm = total.sqrt().item()
        if total.isfinite():
            if 0 < self.grad_clip < norm:
                torch._foreach_mul_(present, self.grad_clip / norm)
            for shard, gradient in zip(self.shards, gradients, strict=True):
                shard.grad = gradient
            for group in self.adamw.param_groups:
                group["lr"] = lr
            if self.offload == "optimizer":
                step_in_parts(self.adamw, self._step)
            else:
                self._step()
        self.clear()
        return norm

    @torch.no_grad()
    def _step(self) -> None:
        """Take one step of the shards that have gradients."""
        if self.moments == torch.float32:
            self.adamw.step()
            return
        number_of = {id(shard): number for number, shard in enumerate(self.shards)}
        for group in self.adamw.param_groups:
            beta1, beta2 = group["betas"]
            options = {name: float(group[name]) for name in ("lr", "eps", "weight_decay")}
            options |= {"beta1": beta1, "beta2": beta2}
            for shard in group["params"]:
                if shard.grad is not None:
                    number = number_of[id(shard)]
                    start = own_rows(self.named[number][1])[1] * (shard[:1].numel())
                    step_rounded(shard, shard.grad, self.adamw.state[shard], options, number, start)

    def clear(self) -> None:
        """Forget the gradients."""
        self.adamw.zero_grad(set_to_none=True)
        for _, parameter in self.named:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the live states as `<parameter>.<state>`, sharded as their parameters."""
        tensors: dict[str, Tensor] = {}
        for (name, parameter), shard in zip(self.named, self.shards, strict=True):
            for key, value in self.adamw.state[shard].items():
                if isinstance(parameter, DTensor) and value.shape == shard.shape and key != "step":
                    # Not from_local, which would copy moments in main memory to the mesh's device.
                    value = DTensor(value, parameter._spec, requires_grad=False)
                tensors[f"{name}.{key}"] = value
        return tensors
