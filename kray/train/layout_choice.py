"""Chooses how the learner computes log-probabilities: the fastest layout that agrees with the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kray.config.train_schema import TrainConfig
from kray.errors import ConfigError
from kray.train.attention import ATTENTION
from kray.train.model import OWN, set_attention
from kray.train.process_group import first_problem, gather_objects
from kray.train.supported_models import longest_sequence
from kray.train.training_rows import TrainingRows, unscored_rows

# By compute dtype, nats: mean absolute difference of log-probabilities up to which two layouts count as equal.
MEAN_TOLERANCE_NATS = {"float32": 1e-3, "bfloat16": 0.1}
# By compute dtype, nats: largest difference of a log-probability that one layout computes twice, or computes before and
# after a later token changed.
REPEAT_TOLERANCE_NATS = {"float32": 1e-4, "bfloat16": 0.02}
# Tokens of the test prompt and of its two responses: of different lengths, so that padding and packing both matter.
PROBE_TOKENS = (9, 6, 33)
# What a model raises that does not support a layout.
FAILURES = (ConfigError, TypeError, ValueError, AttributeError, RuntimeError, LookupError, AssertionError)


@dataclass(frozen=True, slots=True)
class LearnerLayout:
    """One way to compute log-probabilities.

    Attributes:
        packed: Whether micro-batches are packed (no padding, shared prompts) or padded.
        all_logits: Whether the model's own forward pass computes the logits of all tokens; else kray applies the output
            layer to the hidden states that predict response tokens.
        attention: Name of the attention function: kray's ATTENTION or the model's OWN.
    """

    packed: bool
    all_logits: bool
    attention: str

    def __str__(self) -> str:
        own = ", its own attention" if self.attention == OWN else ""
        logits = "all logits" if self.all_logits else "logits of responses"
        return f"{'packed' if self.packed else 'padded'}, {logits}{own}"


# (rows, layout) -> log-probabilities of the rows' response tokens, (N,) float32, row after row.
ComputeLogprobs = Callable[[TrainingRows, LearnerLayout], np.ndarray]

# From the fastest to the most general, the last of which is the model's own forward pass.
LAYOUTS = (
    LearnerLayout(True, False, ATTENTION),
    LearnerLayout(True, True, ATTENTION),
    LearnerLayout(False, False, ATTENTION),
    LearnerLayout(False, True, ATTENTION),
    LearnerLayout(False, False, OWN),
    LearnerLayout(False, True, OWN),
)


def choose_layout(
    model: Any, compute: ComputeLogprobs, dtype: str, train: TrainConfig
) -> tuple[LearnerLayout, list[str]]:
    """Choose the first of LAYOUTS that agrees with the model's own forward pass, and set its attention on the model.

    A collective: all ranks choose the same layout, because it decides how they share a step's rows.

    Args:
        model: The sharded model.
        compute: Computes log-probabilities in a layout.
        dtype: Compute dtype, also of the model's own forward pass.
        train: Says whether packed layouts may be chosen (packing), or no others (context_parallel above 1).

    Returns:
        The layout, and for each faster one the reason why it was rejected.

    Raises:
        ConfigError: The model's own forward pass is not that of a causal language model, or no layout agrees with it.
            With context parallelism also a model whose tokens cannot be divided.
    """
    prompt, responses = _probe_tokens(model)
    rows = unscored_rows([(prompt, response) for response in responses])
    exact, problem = _own_logprobs(model, compute, prompt, responses, REPEAT_TOLERANCE_NATS[dtype])
    problem = first_problem(problem)
    rejected: list[str] = []
    for layout in LAYOUTS if not problem else ():
        if not (train.packing if layout.packed else train.context_parallel == 1):
            continue
        if not set_attention(model, layout.attention):
            rejected = ["its attention does not go through transformers' interface"]
            continue
        try:
            gap = float(np.abs(compute(rows, layout) - exact).mean())
            reason = f"{layout}: off by {gap:.1e} nats"
        except FAILURES as error:
            gap, reason = np.inf, f"{layout}: {_first_line(error)}"
        if all(each <= MEAN_TOLERANCE_NATS[dtype] for each in gather_objects(gap)):
            return layout, rejected
        rejected.append(reason)
    how = ""
    if train.context_parallel > 1 and not problem:
        how = f" with train.context_parallel {train.context_parallel}, which needs a model that can be packed"
    problem = problem or f"no layout gives the log-probabilities of its own forward pass ({'; '.join(rejected)})"
    raise ConfigError(f"model.path: a model of type {model.config.model_type} cannot be trained{how}: {problem}")


def _probe_tokens(model: Any) -> tuple[list[int], list[list[int]]]:
    """Draw a prompt and two responses of random tokens, as long as the model's positions allow."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    # XLNet has -1 here: any length.
    limit = limit if isinstance(limit, int) and limit > 0 else sum(PROBE_TOKENS)
    limit = min(limit, longest_sequence(config) or limit)
    prompt, *sizes = (max(2, size * min(limit, sum(PROBE_TOKENS)) // sum(PROBE_TOKENS)) for size in PROBE_TOKENS)
    random = np.random.default_rng(0)
    return (
        random.integers(int(config.vocab_size), size=prompt).tolist(),
        [random.integers(int(config.vocab_size), size=size).tolist() for size in sizes],
    )


def _own_logprobs(
    model: Any, compute: ComputeLogprobs, prompt: list[int], responses: list[list[int]], tolerance_nats: float
) -> tuple[np.ndarray, str]:
    """Log-probabilities of each response alone by the model's own forward pass, and what is wrong with them."""

    def alone(response: list[int]) -> np.ndarray:
        return compute(unscored_rows([(prompt, response)]), LAYOUTS[-1])

    set_attention(model, OWN)
    longest = responses[-1]
    middle = len(longest) // 2
    vocabulary = int(model.config.get_text_config().vocab_size)
    changed = [*longest[:middle], (longest[middle] + 1) % vocabulary, *longest[middle + 1 :]]
    try:
        exact = np.concatenate([alone(response) for response in responses])
        last = exact[-len(longest) :]
        repeat_gap = np.abs(alone(longest) - last).max()
        causal_gap = np.abs(alone(changed)[:middle] - last[:middle]).max()
    except FAILURES as error:
        return np.zeros(0), f"its forward pass cannot be computed from tokens alone ({_first_line(error)})"
    if not np.isfinite(exact).all():
        return exact, "its log-probabilities are not finite"
    if not repeat_gap <= tolerance_nats:
        return exact, f"two equal calls differ by {repeat_gap:.1e} nats"
    if not causal_gap <= tolerance_nats:
        return exact, (
            f"it is not causal: changing a later token moves earlier log-probabilities by {causal_gap:.1e} nats"
        )
    return exact, ""


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
