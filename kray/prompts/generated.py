"""Prompts that are made, not read: arithmetic and reasoning_gym's tasks. Equal seeds give equal prompts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts.arithmetic import KINDS, SPLITS, in_test, make_problems
from kray.records import Prompt, derive_seed

_SEARCH_FACTOR = 40  # generated entries looked at for each prompt wanted; a fifth of them belong to the test split
_BY_TEXT = ("exact", "math")  # verifiers that compare texts; any other gets the whole entry


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
    """source.size prompts of source.tasks in turn; metadata: kind (the task's label), difficulty.

    Judged by the task's own verifier; source.verifier exact or math takes the answer's text instead.
    The splits train and test hold different questions, as a hash of the question decides.
    """
    _check(source)
    if not source.tasks:
        raise DataError("tasks is empty: a reasoning_gym source needs at least one task")
    wanted, labels = _wanted(source), list(source.tasks)
    entries = {
        label: entries_of(source, label, wanted // len(labels) + (index < wanted % len(labels)))
        for index, label in enumerate(labels)
    }
    by_text = source.verifier in _BY_TEXT
    prompts = []
    for position in range(wanted):
        label = labels[position % len(labels)]
        number, (task, entry) = position // len(labels), next(entries[label])
        answer = entry["answer"]
        if by_text and not (isinstance(answer, str) and answer.strip()):
            why = f"has no answer that verifier {source.verifier} could compare with ({answer!r})"
            raise DataError(f"tasks.{label}: entry {number} {why}; leave the source's verifier empty")
        prompts.append(
            Prompt(
                id=f"{label}:{number}",
                answer=answer if by_text else _pack(task, entry),
                verifier=source.verifier or "reasoning_gym",
                source="reasoning_gym",
                text=entry["question"],
                metadata={"kind": label, "difficulty": entry.get("metadata", {}).get("difficulty", {})},
            )
        )
    return prompts


def judge(task: str, given: str, entry: Mapping[str, Any]) -> float:
    """The task's own score of an answer, in [0, 1]."""
    return float(_scoring(task)(answer=given, entry=entry))


@functools.cache
def _scoring(task: str) -> Callable[..., float]:
    """Making one reads the task's data: 50 ms."""
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


def entries_of(source: SourceConfig, label: str, count: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """`count` times (reasoning_gym's name of the task, an entry of the split).

    A label is the task's name unless its options name the task. Raises DataError for what cannot be had.
    """
    if not count:
        return
    import reasoning_gym

    options = dict(source.tasks[label] or {})
    task = str(options.pop("task", label))
    if reserved := {"seed", "size"} & set(options):
        raise DataError(f"tasks.{label}.{min(reserved)}: set it on the source, not on the task")
    most = count * _SEARCH_FACTOR + 200
    # Below 2^31 with room for the index: tasks seed an entry with seed + index, some of them numpy's 32-bit generators.
    seed = derive_seed("reasoning_gym", source.seed, source.split, label) % 2**30
    try:
        reasoning_gym.get_score_answer_fn(task)
        dataset = reasoning_gym.create_dataset(task, seed=seed, size=most, **options)
        found = 0
        for index in range(most):
            entry = dataset[index]
            if in_test(entry["question"]) == (source.split == "test"):
                yield task, entry
                found += 1
                if found == count:
                    return
    except Exception as error:
        raise DataError(f"tasks.{label}: reasoning_gym cannot make it: {type(error).__name__}: {error}") from error
    raise DataError(f"tasks.{label}: only {found} of {count} prompts for split {source.split} in {most} tries")


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
