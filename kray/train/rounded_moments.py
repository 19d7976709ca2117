"""AdamW whose moments are kept in bfloat16, rounded at random so that small changes are not lost.

Rounded to the nearest value, a second moment with beta2 .999 would stop moving far from what it averages: what a step adds is
less than half of the distance between two bfloat16 values. A value is therefore rounded up with the probability at which the
mean is the value itself (stochastic rounding).

Guarantees
- The random bits follow from the parameter, the element and the step alone: any number of ranks rounds alike, and a resumed run
  as one that was not interrupted.
- A stored moment is one of the two bfloat16 values next to the exact one, within 2^-7 of it, and equal to it in the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements that are updated at once: bounds the float32 and 64-bit copies to about 200 MB.
CHUNK = 2**22
# Of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), as signed 64-bit numbers.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64


def random_bits(start: int, count: int, number: int, step: int, device: torch.device) -> Tensor:
    """Return 64 random bits of each element.

    Args:
        start: Index of the first element in its whole parameter.
        count: Number of elements.
        number: Of the parameter.
        step: Of the optimizer.
        device: Where the bits are made.

    Returns:
        (count,) int64.
    """
    bits = torch.arange(start, start + count, dtype=torch.int64, device=device)
    # Parameters have fewer than 2^40 elements; the product and the sums wrap around.
    bits.bitwise_xor_(_wrapped((number << 40) ^ (step * MIX_2))).mul_(GOLDEN)
    bits.bitwise_xor_(_shifted(bits, 30)).mul_(MIX_1)
    bits.bitwise_xor_(_shifted(bits, 27)).mul_(MIX_2)
    return bits.bitwise_xor_(_shifted(bits, 31))


def _wrapped(value: int) -> int:
    """Return the signed 64-bit number with the lowest 64 bits of a number."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shift to the right and fill up with zeros; torch repeats the sign."""
    return bits.bitwise_right_shift(places).bitwise_and_((1 << (64 - places)) - 1)


def rounded(values: Tensor, bits: Tensor) -> Tensor:
    """Round float32 numbers to bfloat16, away from zero with a probability in proportion to what is cut off.

    Args:
        values: (N,) float32, finite.
        bits: (N,) int64, of which the lowest 16 bits decide.
    """
    added = values.view(torch.int32) + bits.bitwise_and(0xFFFF).to(torch.int32)
    return added.bitwise_and_(-0x10000).view(torch.float32).to(torch.bfloat16)


def step_rounded(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], options: dict[str, float], number: int, start: int
) -> None:
    """Take one step of AdamW, in float32 as torch does, with moments that are rounded afterwards.

    Args:
        parameter: Shard of a parameter, contiguous float32.
        gradient: Its gradient.
        state: AdamW's state of the shard: step (float32), exp_avg and exp_avg_sq (bfloat16).
        options: lr, beta1, beta2, eps and weight_decay.
        number: Of the parameter, the same on all ranks.
        start: Index of the shard's first element in the whole parameter.
    """
    state["step"] += 1
    step = int(state["step"])
    beta1, beta2 = options["beta1"], options["beta2"]
    scale = (1 - beta2**step) ** 0.5
    values, gradients = parameter.view(-1), gradient.reshape(-1)
    firsts, seconds = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
    for at in range(0, len(values), CHUNK):
        part = slice(at, at + CHUNK)
        value, grad = values[part], gradients[part]
        first = firsts[part].float().lerp_(grad, 1 - beta1)
        second = seconds[part].float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        value.mul_(1 - options["lr"] * options["weight_decay"])
        denominator = second.sqrt().div_(scale).add_(options["eps"])
        value.addcdiv_(first, denominator, value=-options["lr"] / (1 - beta1**step))
        bits = random_bits(start + at, len(value), number, step, value.device)
        firsts[part] = rounded(first, bits)
        seconds[part] = rounded(second, bits.bitwise_right_shift_(32))
