"""What a run costs: rollouts, generated tokens, seconds, and FLOPs modelled at the proportions of a large language model.

A tiny policy's seconds say little about a large one: its prompts and responses are short, and its overheads are not those of
matrix products. The model counts what a run did (rollouts, prompts that were visited, rows that were trained on at each pass,
their prompts) and prices it for a policy of N parameters with prompts of P tokens and responses of T tokens. Attention, which
adds to each token by the length of its context, is left out. FLOPs:

    generation  2 N g for each generated token, T a rollout. g = 1 counts the products. They are bound by memory, so a FLOP of
                generation takes longer than one of training: g = 3 counts them at a third of training's utilisation
    prefill     2 N for each prompt token, P for each prompt that is visited, once for all its rollouts
    training    6 N for each token of a row, at each pass: T a row, and P once for all rows of a prompt (packing)
    old policy  2 N for the same tokens of one pass where train.updates > 1; with one update its log-probabilities are those
                of the first pass

Prefill, training and old policy are products of many tokens at once and count as they are. Results are in units of one step of
`uniform`, so N drops out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from kray.errors import ConfigError


@dataclass(frozen=True)
class FlopsModel:
    """The proportions of the modelled policy.

    Attributes:
        prompt_tokens: P.
        response_tokens: T.
        generation_factor: g of the second count; the first has 1.
    """

    prompt_tokens: float = 256
    response_tokens: float = 1024
    generation_factor: float = 3

    @property
    def text(self) -> str:
        """The model for people, in one sentence."""
        return (
            f"modelled FLOPs, N parameters: prompts of {self.prompt_tokens:g} tokens, responses of "
            f"{self.response_tokens:g}; 2N a generated token, 2N a prompt token for each visited prompt, 6N a token of "
            "training (a prompt once for all its rows) at each pass"
        )


@dataclass(frozen=True)
class Work:
    """What a run did until each of its T evaluations, (T,) float64 each.

    Attributes:
        rollouts: Generated.
        prompts: Visited, counted at each visit.
        rows: Rollouts trained on, counted at each pass.
        row_prompts: Prompts of these rows, counted at each pass.
        old_rows: Rows whose log-probabilities were computed before the first update.
        old_prompts: Prompts of these rows.
    """

    rollouts: np.ndarray
    prompts: np.ndarray
    rows: np.ndarray
    row_prompts: np.ndarray
    old_rows: np.ndarray
    old_prompts: np.ndarray

    def at(self, evaluations: np.ndarray) -> Work:
        """Return the same sums at other places (T,) int."""
        return replace(self, **{field.name: getattr(self, field.name)[evaluations] for field in fields(self)})


def flops(work: Work, model: FlopsModel, weighted: bool = False) -> np.ndarray:
    """Return the modelled FLOPs of a run until each evaluation.

    Args:
        work: Of the run.
        model: The proportions.
        weighted: Count generation at its lower utilisation.

    Returns:
        (T,) float64, in FLOPs for each parameter of the policy.
    """
    p, t = model.prompt_tokens, model.response_tokens
    generation = 2 * (model.generation_factor if weighted else 1.0) * t * work.rollouts + 2 * p * work.prompts
    training = 6 * (t * work.rows + p * work.row_prompts)
    return generation + training + 2 * (t * work.old_rows + p * work.old_prompts)


def parse_flops(text: str) -> FlopsModel:
    """Read P,T,g, such as 256,1024,3; what is left out keeps its default.

    Raises:
        ConfigError: Not one to three positive numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0.0]
    names = [field.name for field in fields(FlopsModel)]
    if len(numbers) > len(names) or not all(0 < number < float("inf") for number in numbers):
        raise ConfigError(f"--flops: {text!r} is not P,T,g: prompt tokens, response tokens, weight of generation")
    return FlopsModel(**dict(zip(names, numbers, strict=False)))
