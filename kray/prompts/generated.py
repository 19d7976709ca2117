"""Generate prompts: arithmetic, tasks from templates, and the tasks of reasoning_gym. Equal seeds give equal prompts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts.arithmetic import KINDS, SPLITS, in_test, make_problems
from kray.prompts.passages import PASSAGES
from kray.prompts.programs import PROGRAMS
from kray.prompts.questions import QUESTIONS
from kray.records import Prompt, derive_seed

# Entries that are generated at most per prompt, of which a fifth belong to the test split.
_SEARCH_FACTOR = 40
# Verifiers that compare texts; any other gets the whole entry.
_BY_TEXT = ("exact", "math")
# Name of a kind of source -> its tasks.
_FAMILIES = {family.name: family for family in (QUESTIONS, PROGRAMS, PASSAGES)}


def arithmetic_prompts(source: SourceConfig, verifier: str) -> list[Prompt]:
    """Generate arithmetic problems as prompts.

    Args:
        source: size, seed, split, limit and tasks (kinds, which alternate; empty: all).
        verifier: Verifier of the prompts.

    Returns:
        The prompts, with "kind" in their metadata.

    Raises:
        DataError: An option of the source is invalid.
    """
    check_generated(source)
    if unknown := [kind for kind in source.tasks if kind not in KINDS]:
        raise DataError(f"tasks.{unknown[0]}: arithmetic has no such kind; it has {', '.join(KINDS)}")
    problems = make_problems(list(source.tasks) or KINDS, wanted(source), source.seed, source.split)
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


def template_prompts(source: SourceConfig, verifier: str) -> list[Prompt]:
    """Generate tasks from templates: questions, programs or passages.

    Args:
        source: kind, size, seed, split, limit, tasks (kinds, which alternate; empty: all), and system and template.
        verifier: Verifier of the prompts.

    Returns:
        The prompts, with "kind" in their metadata.

    Raises:
        DataError: An option of the source is invalid.
    """
    check_generated(source)
    family = _FAMILIES[source.kind]
    if unknown := [kind for kind in source.tasks if kind not in family.templates]:
        raise DataError(f"tasks.{unknown[0]}: {family.name} have no such kind; they have {', '.join(family.templates)}")
    return [
        Prompt(
            id=f"{family.name}/{source.split}/{index}",
            answer=task.answer,
            verifier=verifier,
            source=family.name,
            text=task.text,
            metadata={"kind": task.kind},
        )
        for index, task in enumerate(family.make(list(source.tasks), wanted(source), source.seed, source.split))
    ]


def reasoning_prompts(source: SourceConfig, verifier: str) -> list[Prompt]:
    """Generate prompts of reasoning_gym tasks, which alternate.

    Args:
        source: size, seed, split, limit and tasks. Answers are scored by the task's own rule unless its verifier is exact or
            math, which compare with the answer's text. A hash of the question decides its split.
        verifier: Not used: the default is the verifier reasoning_gym.

    Returns:
        The prompts, with "kind" (the task's label) and "difficulty" in their metadata.

    Raises:
        DataError: An option of the source is invalid, or a task cannot be generated.
    """
    check_generated(source)
    if not source.tasks:
        raise DataError("tasks is empty: a reasoning_gym source needs at least one task")
    count, labels = wanted(source), list(source.tasks)
    entries = {
        label: entries_of(source, label, count // len(labels) + (index < count % len(labels)))
        for index, label in enumerate(labels)
    }
    by_text = source.verifier in _BY_TEXT
    prompts = []
    for position in range(count):
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
    """Return the task's own score of an answer, in [0, 1].

    Args:
        task: reasoning_gym's name of the task.
        given: The answer.
        entry: The task's entry.
    """
    return float(_scoring(task)(answer=given, entry=entry))


@functools.cache
def _scoring(task: str) -> Callable[..., float]:
    """Return the task's scoring function; creating one reads the task's data, which takes 50 ms."""
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


def entries_of(source: SourceConfig, label: str, count: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield entries of one task that belong to the source's split.

    Args:
        source: The source.
        label: Key of the task in source.tasks: its name, unless its options name the task.
        count: Number of entries.

    Yields:
        (reasoning_gym's name of the task, entry), `count` times.

    Raises:
        DataError: reasoning_gym cannot make the task, or has too few entries of the split.
    """
    if not count:
        return
    import reasoning_gym

    options = dict(source.tasks[label] or {})
    task = str(options.pop("task", label))
    if reserved := {"seed", "size"} & set(options):
        raise DataError(f"tasks.{label}.{min(reserved)}: set it on the source, not on the task")
    most = count * _SEARCH_FACTOR + 200
    # seed + index must stay below 2^31: tasks seed each entry with it, some of them numpy's 32-bit generators.
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
    """Return the right answer in the form that the reasoning_gym verifier reads (kray.rewards.reasoning)."""
    try:
        return json.dumps({"task": task, "entry": _plain(entry)}, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"tasks.{task}: its entries cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    """Return JSON values that preserve tuples and keys that are not text."""
    if isinstance(value, tuple):
        return {"__tuple__": [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(item) for key, item in value.items()}
        return {"__items__": [[_plain(key), _plain(item)] for key, item in value.items()]}
    return value


def check_generated(source: SourceConfig) -> None:
    """Raise DataError for a size or split that no generated source has."""
    if source.size < 1:
        raise DataError(f"size must be at least 1, not {source.size}")
    if source.split not in SPLITS:
        raise DataError(f'split "{source.split}" is not one of {", ".join(SPLITS)}')


def wanted(source: SourceConfig) -> int:
    """Return how many prompts of a generated source are used."""
    return min(source.size, source.limit) if source.limit else source.size
