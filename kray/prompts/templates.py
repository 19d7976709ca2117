"""Families of generated tasks: each kind is a template that a seeded generator fills in.

Equal seeds give equal tasks on every machine; a hash of the text decides its split, so that training and test share none.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kray.prompts.arithmetic import SPLITS, in_test
from kray.records import derive_seed

# Repeats of a text in a row after which a kind counts as used up and starts again.
_TRIES = 400


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        text: The prompt.
        answer: The right answer, in the form that the family's verifier reads.
        reference: A response that earns full marks.
        kind: Name of its template.
    """

    text: str
    answer: str
    reference: str
    kind: str = ""


Template = Callable[[random.Random], Task]


@dataclass(frozen=True, slots=True)
class Family:
    """Tasks of one form.

    Attributes:
        name: The kind of prompt source.
        templates: Name of a kind -> its template, which makes a task from a generator of random numbers.
    """

    name: str
    templates: Mapping[str, Template]

    def make(self, kinds: Sequence[str], size: int, seed: int, split: str) -> list[Task]:
        """Make tasks.

        Args:
            kinds: Names of templates, which alternate; empty: all.
            size: Number of tasks. A smaller size gives the beginning of a larger one.
            seed: Seed of the draws.
            split: "train" or "test".

        Returns:
            `size` tasks. A kind repeats a task only after nearly all of its tasks in the split.

        Raises:
            ValueError: A kind or the split is unknown.
        """
        if unknown := [kind for kind in kinds if kind not in self.templates]:
            raise ValueError(f'kind "{unknown[0]}" is not one of {", ".join(self.templates)}')
        if split not in SPLITS:
            raise ValueError(f'split "{split}" is not one of {", ".join(SPLITS)}')
        streams = [self._stream(kind, seed, split) for kind in kinds or self.templates]
        return [next(stream) for stream in itertools.islice(itertools.cycle(streams), size)]

    def _stream(self, kind: str, seed: int, split: str) -> Iterator[Task]:
        rng = random.Random(derive_seed(self.name, seed, split, kind))
        seen, repeats = set[str](), 0
        while True:
            task = self.templates[kind](rng)
            if in_test(task.text) != (split == "test"):
                continue
            if task.text in seen:
                repeats += 1
                if repeats < _TRIES:
                    continue
                seen.clear()
            seen.add(task.text)
            repeats = 0
            yield Task(task.text, task.answer, task.reference, kind)
