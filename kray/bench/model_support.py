"""Finds how the learner computes every type of model, for a test and for the page docs/models.md.

Each model is made tiny, saved, and loaded by a Learner as a run's model is; its log-probabilities must be those of
transformers' own eager forward pass in eval mode and float32, one rollout at a time.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from kray.bench.model_families import Case, cases, default_config, tiny_config, tiny_model
from kray.config.train_schema import TrainConfig
from kray.errors import ConfigError
from kray.metrics import TRAIN_GRAD_NORM
from kray.train.learner import Learner
from kray.train.supported_models import check_supported
from kray.train.training_rows import unscored_rows

TokenRows = list[tuple[tuple[int, ...], tuple[int, ...]]]
# Index of the token in which the last row differs from the row before.
CHANGED = 9


@dataclass(frozen=True, slots=True)
class Examination:
    """How the learner computes one model.

    Attributes:
        case: The model.
        layout: The learner's layout where it may pack; "" for a refused model.
        reason: Why the model is refused.
        early: Whether it is refused by its configuration alone.
        gap: Largest difference to the model's own log-probabilities, nats, packed and padded.
        moved: Largest change of log-probabilities before a token that was changed, nats.
        norms: Gradient norm by the model itself, packed, and padded with recomputed activations.
    """

    case: Case
    layout: str = ""
    reason: str = ""
    early: bool = False
    gap: float = 0.0
    moved: float = 0.0
    norms: tuple[float, ...] = ()


def refused_early(case: Case) -> str | None:
    """Return the reason for which the case is refused by its configuration alone, None for a supported one."""
    try:
        if not case.changes:
            check_supported(default_config(case.model_type))
        check_supported(tiny_config(case))
    except ConfigError as error:
        return _reason(error)
    return None


def examine(case: Case, folder: Path) -> Examination:
    """Examine one case; its model is written to `folder`."""
    reason = refused_early(case)
    if reason is not None:
        return Examination(case, reason=reason, early=True)
    config = tiny_config(case)
    tiny_model(config).save_pretrained(folder)
    rows = _rows()
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    exact, norm = _exact(own, rows)
    layouts, gaps, moves, norms = [], [], [], [norm]
    for packing in (True, False):
        train = TrainConfig(packing=packing, activation_checkpointing=not packing, timeout_s=60)
        try:
            learner = Learner(0, 1, "", 0, str(folder), train, "float32", 1, 0)
        except ConfigError as error:
            return Examination(case, reason=_reason(error))
        try:
            found = learner.logprobs(rows)
            learned = unscored_rows(rows)
            weight = 1 / len(learned.sampled)
            learned = replace(learned, advantages=learned.advantages + 1, weights=learned.weights + weight)
            norms.append(learner.update(replace(learned, groups=1, effective_groups=1))[TRAIN_GRAD_NORM])
        finally:
            learner.shutdown()
        layouts.append(str(learner.layout))
        gaps.append(max(float(np.abs(f - e).max()) for f, e in zip(found, exact, strict=True)))
        moves.append(float(np.abs(found[-1] - found[-2])[:CHANGED].max()))
    return Examination(case, layouts[0], gap=max(gaps), moved=max(moves), norms=tuple(norms))


def _rows() -> TokenRows:
    """Draw rollouts of two prompts, of many lengths; the last two differ in one token."""
    random = np.random.default_rng(1)

    def some(size: int) -> tuple[int, ...]:
        return tuple(random.integers(0, 64, size).tolist())

    prompt, long = some(11), some(17)
    changed = (*long[:CHANGED], (long[CHANGED] + 1) % 64, *long[CHANGED + 1 :])
    return [(some(1), some(3)), *((prompt, some(n)) for n in (3, 30, 1)), (prompt, long), (prompt, changed)]


def _exact(model: Any, rows: TokenRows) -> tuple[list[np.ndarray], float]:
    """Compute (T,) log-probabilities of each response by the model's own forward pass, and the gradient norm of their mean."""
    found, count = [], sum(len(response) for _, response in rows)
    for prompt, response in rows:
        tokens = torch.tensor([[*prompt, *response]])
        scores = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        logprobs = scores.gather(-1, tokens[0, len(prompt) :, None])[:, 0]
        (logprobs.sum() / count).backward()
        found.append(logprobs.detach().numpy())
    squares = [float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None]
    return found, float(np.sqrt(sum(squares)))


def _reason(error: ConfigError) -> str:
    return str(error).split("cannot be trained: ", 1)[-1]


def examine_all(folder: Path) -> list[Examination]:
    """Examine all cases, in folders of their own below `folder`."""
    return [examine(case, folder / str(number)) for number, case in enumerate(cases())]


INTRODUCTION = """\
# Models

How kray computes each type of causal language model in transformers, by its `model_type`. `python jobs/model_table.py` writes
this page; a test builds a tiny model of each type and compares its log-probabilities, packed and padded, and their gradient,
with those of the model's own eager forward pass in eval mode. Settings of the configuration that matter are in brackets.

Models with rotary positions of the kinds `dynamic` and `longrope` are trained on sequences of up to
`original_max_position_embeddings` tokens. Whether vLLM can generate with a model has to be checked separately.
"""


def page(examinations: Iterable[Examination]) -> str:
    """Return the text of docs/models.md."""
    groups: dict[str, list[str]] = {}
    for examination in examinations:
        groups.setdefault(_heading(examination), []).append(str(examination.case))
    parts = [INTRODUCTION]
    for key in sorted(key for key in groups if key.startswith("##")):
        parts.append(f"{key}\n\n{_listed(groups.pop(key))}\n")
    parts.append("## Refused, before anything starts\n")
    parts += [f"- {_listed(groups[reason], reason + ': ', '  ')}" for reason in sorted(groups)]
    return "\n".join(parts) + "\n"


def _listed(names: list[str], before: str = "", indent: str = "") -> str:
    """Format the names as code, on lines that break only between names."""
    kept = ", ".join(f"`{name}`".replace(" ", "\0") for name in sorted(names))
    lines = textwrap.fill(before + kept, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def _heading(examination: Examination) -> str:
    if not examination.layout:
        return short(examination.reason)
    if examination.layout.startswith("packed"):
        return "## Packed: no padding, and a group's prompt is computed once"
    if examination.layout.endswith("attention"):
        return "## Padded, with the model's own eager attention"
    return "## Padded, with torch's fused attention"


def short(reason: str) -> str:
    """Return the reason without the details in brackets that differ between models."""
    return re.sub(r" \([^)]*\)", "", reason)
