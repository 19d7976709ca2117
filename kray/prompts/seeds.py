"""Prompts for environments that make their own tasks: numbered seeds. Equal settings give equal prompts."""

from __future__ import annotations

from collections.abc import Mapping

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts.generated import check_generated, wanted
from kray.records import Prompt, derive_seed


def seed_prompts(source: SourceConfig, verifier: str) -> list[Prompt]:
    """Make one prompt per seed; the labels of source.tasks alternate.

    Args:
        source: size, seed, split, limit and tasks (label -> keyword arguments of the environment in place of
            environment.options; empty: one label, "start").
        verifier: Verifier of the prompts, for environments that give no reward.

    Returns:
        The prompts. Their text is the label and a line end, which the environment continues; metadata holds "kind" (the
        label), "seed", and "environment" (the label's keyword arguments).

    Raises:
        DataError: An option of the source is invalid.
    """
    check_generated(source)
    tasks = source.tasks or {"start": {}}
    for label, options in tasks.items():
        if not isinstance(options or {}, Mapping):
            raise DataError(f"tasks.{label}: keyword arguments of the environment are needed, not {options!r:.60}")
    labels = list(tasks)
    prompts = []
    for position in range(wanted(source)):
        label, number = labels[position % len(labels)], position // len(labels)
        metadata = {
            "kind": label,
            "seed": derive_seed("seeds", source.seed, source.split, label, number),
            "environment": dict(tasks[label] or {}),
        }
        prompts.append(
            Prompt(f"{label}:{source.split}:{number}", "", verifier, "seeds", text=f"{label}\n", metadata=metadata)
        )
    return prompts
