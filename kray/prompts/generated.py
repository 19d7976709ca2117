"""Prompts that are made, not read: arithmetic and reasoning_gym's tasks. Equal seeds give equal prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kray.config.schema import SourceConfig
from kray.prompts.arithmetic import KINDS, SPLITS, in_test, make_problems
from kray.records import DataError, Prompt, derive_seed

_SEARCH_FACTOR = 40  # generated entries looked at for each prompt wanted; a fifth of them belong to the test split


def arithmetic_prompts(source: SourceConfig, verifier: str) -> list[Prompt]:
    """source.size problems of source.tasks (empty: all kinds) in turn, of the split named by source.split; metadata: kind."""
    _check(source)
    if unknown := [kind for kind in source.tasks if kind not in KINDS]:
        raise DataError(f"tasks.{unknown[0]}: arithmetic has no such kind; it has {', '.join(KINDS)}")
    problems = make_problems(list(source.tasks) or KINDS, _wanted(source), source.seed, source.split)
    return [
        Prompt(
            id=f"arithmetic/{source.split}/{index}",
            answer=problem.answer,
            verifier=verifier,
            source="arithmetic",
            text=problem.text,
            metadata={"kind": problem.kind},
        )
        for index, problem in enumerate(problems)
    ]


def reasoning_prompts(source: SourceConfig, verifier: str) -> list[Prompt]:
    """source.size prompts of source.tasks in turn; metadata: task, difficulty. Judged by the task's own verifier.

    The splits train and test hold different questions, as a hash of the question decides.
    """
    _check(source)
    if not source.tasks:
        raise DataError("tasks is empty: a reasoning_gym source needs at least one task")
    wanted, tasks = _wanted(source), list(source.tasks.items())
    entries = {
        task: _entries(source, task, options, wanted // len(tasks) + (index < wanted % len(tasks)))
        for index, (task, options) in enumerate(tasks)
    }
    prompts = []
    for position in range(wanted):
        task = tasks[position % len(tasks)][0]
        number, entry = position // len(tasks), next(entries[task])
        prompts.append(
            Prompt(
                id=f"{task}:{number}",
                answer=_pack(task, entry),
                verifier=source.verifier or "reasoning_gym",
                source="reasoning_gym",
                text=entry["question"],
                metadata={"task": task, "difficulty": entry.get("metadata", {}).get("difficulty", {})},
            )
        )
    return prompts


def _entries(source: SourceConfig, task: str, options: Any, count: int) -> Iterator[Mapping[str, Any]]:
    """`count` entries of a task that belong to the split. Raises DataError for a task or options that cannot be had."""
    if not count:
        return
    import reasoning_gym

    options = dict(options or {})
    if reserved := {"seed", "size"} & set(options):
        raise DataError(f"tasks.{task}.{min(reserved)}: set it on the source, not on the task")
    most = count * _SEARCH_FACTOR + 200
    # Below 2^31 with room for the index: tasks seed an entry with seed + index, some of them numpy's 32-bit generators.
    seed = derive_seed("reasoning_gym", source.seed, source.split, task) % 2**30
    try:
        reasoning_gym.get_score_answer_fn(task)
        dataset = reasoning_gym.create_dataset(task, seed=seed, size=most, **options)
        found = 0
        for index in range(most):
            entry = dataset[index]
            if in_test(entry["question"]) == (source.split == "test"):
                yield entry
                found += 1
                if found == count:
                    return
    except Exception as error:
        raise DataError(f"tasks.{task}: reasoning_gym cannot make it: {type(error).__name__}: {error}") from error
    raise DataError(f"tasks.{task}: only {found} of {count} prompts for split {source.split} in {most} tries")


def _pack(task: str, entry: Mapping[str, Any]) -> str:
    """The answer that the reasoning_gym verifier reads (see kray.rewards.reasoning)."""
    try:
        return json.dumps({"task": task, "entry": _plain(entry)}, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"tasks.{task}: its entries cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    """JSON that keeps tuples and keys that are not text."""
    if isinstance(value, tuple):
        return {"__tuple__": [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(item) for key, item in value.items()}
        return {"__items__": [[_plain(key), _plain(item)] for key, item in value.items()]}
    return value


def _check(source: SourceConfig) -> None:
    if source.size < 1:
        raise DataError(f"size must be at least 1, not {source.size}")
    if source.split not in SPLITS:
        raise DataError(f'split "{source.split}" is not one of {", ".join(SPLITS)}')


def _wanted(source: SourceConfig) -> int:
    return min(source.size, source.limit) if source.limit else source.size
