"""How the learner computes log-probabilities: the fastest way that gives those of the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kray.errors import ConfigError
from kray.train.attention import ATTENTION
from kray.train.model import OWN, set_attention
from kray.train.supported_models import longest_sequence
from kray.train.training_rows import TrainingRows, unscored_rows

# Mean difference of log-probabilities up to which two ways to compute them are the same.
SAME_NATS = {"float32": 1e-3, "bfloat16": 0.1}
# Largest difference of a log-probability that one way computes twice, or before and after a later token changed.
EQUAL_NATS = {"float32": 1e-4, "bfloat16": 0.02}
PROBE = (9, 6, 33)  # tokens of a prompt and of two responses
# What a model raises that cannot be asked in some way.
FAILURES = (ConfigError, TypeError, ValueError, AttributeError, RuntimeError, LookupError, AssertionError)

Probe = Callable[[TrainingRows, bool, bool], np.ndarray]
Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True, slots=True)
class LearnerLayout:
    """packed, or padded; whole: all logits, by the model's own output layers, or those of responses; attention: whose."""

    packed: bool
    whole: bool
    attention: str

    def __str__(self) -> str:
        own = ", its own attention" if self.attention == OWN else ""
        return f"{'packed' if self.packed else 'padded'}, {'all logits' if self.whole else 'logits of responses'}{own}"


# From the fastest to the one that only pads.
LAYOUTS = (
    LearnerLayout(True, False, ATTENTION),
    LearnerLayout(True, True, ATTENTION),
    LearnerLayout(False, False, ATTENTION),
    LearnerLayout(False, True, ATTENTION),
    LearnerLayout(False, False, OWN),
    LearnerLayout(False, True, OWN),
)


def choose_layout(
    model: Any, probe: Probe, gather: Gather, dtype: str, packing: bool
) -> tuple[LearnerLayout, list[str]]:
    """Choose the first of LAYOUTS that computes what the model's own forward pass does, and have the model compute so.

    Args:
        probe: (rows, packed, whole) -> log-probabilities of the rows' responses, (N,) float32, one row after the other.
        gather: Every rank's value of what this rank gives. All ranks choose alike, for they share a step's rows by it.
        dtype: That of compute, also of the model's own forward pass.
        packing: Whether packed ways may be chosen.

    Returns:
        The way, and what spoke against those before it.

    Raises:
        ConfigError: The model's own forward pass is no causal language model's, or no way computes the same.
    """
    prompt, responses = _tokens(model)
    rows = unscored_rows([(prompt, response) for response in responses])
    exact, problem = _own(model, probe, prompt, responses, EQUAL_NATS[dtype])
    problem = next(filter(None, gather(problem)), "")
    rejected_layouts: list[str] = []
    for way in LAYOUTS if not problem else ():
        if way.packed and not packing:
            continue
        if not set_attention(model, way.attention):
            rejected_layouts = ["its attention does not go through transformers' interface"]
            continue
        try:
            gap = float(np.abs(probe(rows, way.packed, way.whole) - exact).mean())
            doubt = f"{way}: off by {gap:.1e} nats"
        except FAILURES as error:
            gap, doubt = np.inf, f"{way}: {_line(error)}"  # this model cannot be asked so
        if all(each <= SAME_NATS[dtype] for each in gather(gap)):
            return way, rejected_layouts
        rejected_layouts.append(doubt)
    problem = (
        problem or f"no layout gives the log-probabilities of its own forward pass ({'; '.join(rejected_layouts)})"
    )
    raise ConfigError(f"model.path: a model of type {model.config.model_type} cannot be trained: {problem}")


def _tokens(model: Any) -> tuple[list[int], list[list[int]]]:
    """A prompt and two responses of random tokens, as long as the model's positions allow."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    most = most if isinstance(most, int) and most > 0 else sum(PROBE)  # XLNet says -1: any
    most = min(most, longest_sequence(config) or most)
    prompt, *sizes = (max(2, size * min(most, sum(PROBE)) // sum(PROBE)) for size in PROBE)
    random = np.random.default_rng(0)
    return (
        random.integers(int(config.vocab_size), size=prompt).tolist(),
        [random.integers(int(config.vocab_size), size=size).tolist() for size in sizes],
    )


def _own(
    model: Any, probe: Probe, prompt: list[int], responses: list[list[int]], equal: float
) -> tuple[np.ndarray, str]:
    """Log-probabilities of the responses by the model's own forward pass, each alone; and what is wrong with them."""

    def alone(response: list[int]) -> np.ndarray:
        return probe(unscored_rows([(prompt, response)]), False, True)

    set_attention(model, OWN)
    longest = responses[-1]
    at = len(longest) // 2
    changed = [*longest[:at], (longest[at] + 1) % int(model.config.get_text_config().vocab_size), *longest[at + 1 :]]
    try:
        exact = np.concatenate([alone(response) for response in responses])
        last = exact[-len(longest) :]
        twice, moved = (np.abs(alone(r)[:n] - last[:n]).max() for r, n in ((longest, len(longest)), (changed, at)))
    except FAILURES as error:
        return np.zeros(0), f"its forward pass cannot be computed from tokens alone ({_line(error)})"
    if not np.isfinite(exact).all():
        return exact, "its log-probabilities are not finite"
    if not twice <= equal:
        return exact, f"two equal calls differ by {twice:.1e} nats"
    if not moved <= equal:
        return exact, f"it is not causal: changing a later token moves earlier log-probabilities by {moved:.1e} nats"
    return exact, ""


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
