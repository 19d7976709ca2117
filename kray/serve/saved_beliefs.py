"""Beliefs of a planner run as JSON: what clients send, and the files that outlive the service."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from kray.plan_modes import PlanConfig
from kray.planner import Beliefs
from kray.serve.gate import Refusal

# Version of the JSON; others are refused.
VERSION = 1


@dataclass(frozen=True, slots=True)
class BeliefSettings:
    """How the beliefs of a run start; the attributes are the keys of `plan` with the same names."""

    discount: float = PlanConfig.discount
    prior_alpha: float = PlanConfig.prior_alpha
    prior_beta: float = PlanConfig.prior_beta
    fit_prior: bool = PlanConfig.fit_prior


def read_settings(data: Any) -> BeliefSettings | None:
    """Read the settings of a saved run.

    Args:
        data: A mapping, or None where a run was saved without settings.

    Raises:
        Refusal: The settings are not valid.
    """
    if data is None:
        return None
    try:
        settings = BeliefSettings(**data)
        Beliefs(*astuple(settings))  # raises on invalid settings
    except (TypeError, ValueError) as error:
        raise Refusal(422, f"settings: {error}", "invalid", "settings") from None
    return settings


def read_beliefs(state: Mapping[str, Any], max_prompts: int) -> tuple[Beliefs, int]:
    """Read the beliefs of a saved run from JSON that anyone may have written.

    Args:
        state: What `PlanStore.saved` returned.
        max_prompts: Most prompts that are accepted.

    Returns:
        The beliefs and the number of steps that made them.

    Raises:
        Refusal: The state is not valid; the message names what is wrong.
    """
    try:
        if state.get("version") != VERSION:
            raise ValueError(f"version {state.get('version')!r} cannot be read; this is version {VERSION}")
        data, steps = state["beliefs"], state.get("steps", 0)
        if not (isinstance(steps, int) and 0 <= steps < 2**53):
            raise ValueError(f"steps must be a number of steps, not {steps!r}")
        _check_ids(data, max_prompts)
        return Beliefs.from_dict(data), steps
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Refusal(422, f"beliefs: {text}", "invalid", "beliefs") from error


def _check_ids(data: Mapping[str, Any], max_prompts: int) -> None:
    """Raise an error that names what is wrong with the ids, labels or priors, which `Beliefs.from_dict` does not check."""
    ids, labels = data["prompt_ids"], data.get("labels", [""])
    if not (isinstance(ids, list) and all(isinstance(name, str) for name in ids) and len(ids) <= max_prompts):
        raise ValueError(f"prompt_ids must be a list of at most {max_prompts} texts")
    if not (isinstance(labels, list) and labels[:1] == [""] and all(isinstance(name, str) for name in labels)):
        raise ValueError("labels must be a list of texts that begins with the empty one")
    if any(number not in range(len(labels)) for number in data.get("label_of", [])):
        raise ValueError("label_of must hold positions in labels")
    for number, alpha, beta in data.get("priors", []):
        Beliefs(0.5, alpha, beta)  # raises on invalid priors
        if number not in range(1, len(labels)):
            raise ValueError("priors must be of labels that there are")


def to_json(value: Any) -> str:
    """Return JSON, encoded in parts: one long call would keep all other threads of the process waiting."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(name))}: {to_json(part)}" for name, part in value.items()) + "}"
    return json.dumps(value, allow_nan=False)


def write_file(file: Path, state: Mapping[str, Any]) -> None:
    """Write a saved run to a file, completely or not at all.

    Raises:
        Refusal: The file cannot be written.
    """
    unfinished = file.with_name(f".tmp-{file.name}")
    try:
        unfinished.write_text(to_json(state))
        os.replace(unfinished, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        text = f"the beliefs cannot be kept in {file.name} ({error.strerror or error}); nothing has changed, try again later"
        raise Refusal(503, text, "state", "run") from error


def read_file(file: Path) -> dict[str, Any] | None:
    """Read what `write_file` wrote; None where there is nothing.

    Raises:
        Refusal: The file cannot be read.
    """
    try:
        if not file.exists():
            return None
        if not file.is_file():
            raise OSError("it is no file")
        kept = json.loads(file.read_text())
        if not isinstance(kept, dict):
            raise ValueError("it holds no object")
        return kept
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(
            file.name, "it is nested too deeply" if isinstance(error, RecursionError) else error
        ) from error


def unreadable(name: str, what: object) -> Refusal:
    """Return the response where the beliefs in a file of this name cannot be read; `what` is wrong with it."""
    text = f"the beliefs kept in {name} cannot be read ({what}); move the file away to start the run anew"
    return Refusal(500, text, "state", "run")
