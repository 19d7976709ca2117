"""Where prompts come from: `load_prompts` turns a configured source into Prompts, or says what is wrong with the data.

A bad line is an error, never skipped: a run on part of its data looks like a run on all of it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from kray.config.prompts_schema import PromptsConfig, SourceConfig
from kray.errors import ConfigError, DataError
from kray.prompts.fields import FORMATS, content, scalar
from kray.prompts.generated import arithmetic_prompts, reasoning_prompts
from kray.prompts.rows import Row, huggingface_rows, jsonl_rows, parquet_rows
from kray.records import Prompt

logger = logging.getLogger(__name__)

TAKEN = ("se",)  # names of test sets whose accuracy would be recorded under the name of another metric


def load_prompts(source: SourceConfig, default_verifier: str) -> list[Prompt]:
    """Load all prompts of a source.

    Args:
        source: Where they come from.
        default_verifier: Verifier of prompts whose source names none.

    Returns:
        At least one prompt, with ids that differ, in the order of the rows. Rows that repeat the prompt and the answer of
        an earlier one are left out unless source.keep_repeats is set, whatever their ids; ids of the others stay the same.

    Raises:
        DataError: Names the file, the line and the field.
    """
    load = SOURCES.get(source.kind)
    if load is None:
        near = difflib.get_close_matches(source.kind, SOURCES, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise DataError(f'kind "{source.kind}" is not known{hint}; known: {", ".join(SOURCES)}')
    if source.limit < 0:
        raise DataError(f"limit must not be negative, not {source.limit}")
    if source.prompt_format not in FORMATS:
        raise DataError(f'prompt_format "{source.prompt_format}" is not one of {", ".join(FORMATS)}')
    prompts = load(source, source.verifier or default_verifier)
    if not prompts:
        raise DataError(f"{source.path or source.kind}: it holds no prompts")
    return prompts


def test_sources(config: PromptsConfig) -> dict[str, SourceConfig]:
    """Name -> test set: prompts.test, named "test", and those of prompts.more_tests. ConfigError names a wrong key."""
    known = {field.name for field in fields(SourceConfig)}
    found = {"test": config.test}
    for name, keys in config.more_tests.items():
        place = f"prompts.more_tests.{name}"
        if not (isinstance(keys, Mapping) and name.replace("_", "").replace("-", "").isalnum() and name != "test"):
            raise ConfigError(f"{place}: a name of letters, digits, - and _ with keys of a source is needed")
        if name in TAKEN:
            raise ConfigError(
                f"{place}: eval/accuracy_{name} is the name of another metric; call the set something else"
            )
        for key, value in keys.items():
            if key not in known or type(value) is not type(getattr(config.test, key)):
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" (did you mean {near[0]}?)" if near and key not in known else ""
                raise ConfigError(f"{place}.{key}: {value!r} is no value of a key of prompts.test{hint}")
        found[name] = replace(config.test, **keys)
    return found


def load_tests(config: PromptsConfig, default_verifier: str) -> list[tuple[SourceConfig, list[Prompt]]]:
    """Each test set with its prompts. Where there are several, ids begin with the set's name, which is metadata["set"]."""
    sources = test_sources(config)
    if len(sources) == 1:
        return [(config.test, load_prompts(config.test, default_verifier))]
    return [
        (
            source,
            [
                replace(prompt, id=f"{name}/{prompt.id}", metadata={**prompt.metadata, "set": name})
                for prompt in load_prompts(source, default_verifier)
            ],
        )
        for name, source in sources.items()
    ]


Load = Callable[[SourceConfig, str], list[Prompt]]


def _from_rows(read: Callable[[SourceConfig], Iterable[Row]]) -> Load:
    def load(source: SourceConfig, verifier: str) -> list[Prompt]:
        prompts: list[Prompt] = []
        ids: dict[str, str] = {}
        repeats = _Repeats()
        for row in read(source):
            prompt = _prompt(row, source, verifier)
            if repeats.met(prompt, row.place) and not source.keep_repeats:
                continue
            if prompt.id in ids:
                raise DataError(f'{row.place}: id "{prompt.id}" was already used at {ids[prompt.id]}')
            ids[prompt.id] = row.place
            prompts.append(prompt)
            if len(prompts) == source.limit:
                break
        cut = len(prompts) == source.limit
        repeats.report(source.path, len(prompts), source.keep_repeats, cut)
        if (source.template or source.system) and (told := [prompt for prompt in prompts if prompt.messages]):
            unused = " and ".join(key for key in ("system", "template") if getattr(source, key))
            share = f"{len(told)} of {len(prompts)}"
            logger.warning(f"{source.path}: {unused}: not applied to prompts that are chat messages ({share})")
        return prompts

    return load


def _generated(make: Callable[[SourceConfig, str], list[Prompt]]) -> Load:
    return make


@dataclass
class _Repeats:
    """Which rows repeat the prompt of an earlier one, with its answer or with another. Holds digests, not texts."""

    places: dict[bytes, str] = field(default_factory=dict)  # of a prompt with its answer -> its first row
    firsts: dict[bytes, str] = field(default_factory=dict)  # of a prompt -> its first row
    disputed: dict[bytes, tuple[str, str]] = field(default_factory=dict)  # a prompt's first row, that of another answer
    repeated: int = 0  # rows
    example: tuple[str, str] = ("", "")  # such a row, and the one that it repeats

    def met(self, prompt: Prompt, place: str) -> bool:
        """Whether an earlier row has the same prompt and answer; remembers this one."""
        text = prompt.text if prompt.messages is None else [dict(message) for message in prompt.messages]
        asked = _digest(json.dumps(text, sort_keys=True).encode())
        both = _digest(asked + prompt.answer.encode())
        if both in self.places:
            self.repeated += 1
            self.example = self.example if self.example[0] else (place, self.places[both])
            return True
        self.places[both] = place
        if self.firsts.setdefault(asked, place) != place:
            self.disputed.setdefault(asked, (self.firsts[asked], place))
        return False

    def report(self, path: str, prompts: int, kept: bool, cut: bool) -> None:
        """Log the repeats of a source.

        Args:
            path: The source's file.
            prompts: How many prompts were made of its rows.
            kept: Repeats are prompts of their own.
            cut: The source's limit ended the reading, perhaps before the last row.
        """
        if self.repeated and not kept:
            row, first = self.example
            rows = f"{'the first ' if cut else ''}{prompts + self.repeated} rows"
            logger.info(
                f"note: {path}: {rows} hold {prompts} prompt{'s' if prompts > 1 else ''}: "
                f"{self.repeated} row{'s repeat' if self.repeated > 1 else ' repeats'} the prompt and the answer of another, "
                f"the first {row} that of {first} (keep_repeats: true keeps them)"
            )
        if self.disputed:
            first, other = next(iter(self.disputed.values()))
            logger.warning(
                f"{path}: prompts that stand in several rows with different answers, each a prompt of its own: "
                f"{len(self.disputed)}; the first: {first} and {other}"
            )


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


SOURCES: dict[str, Load] = {
    "arithmetic": _generated(arithmetic_prompts),
    "jsonl": _from_rows(jsonl_rows),
    "parquet": _from_rows(parquet_rows),
    "huggingface": _from_rows(huggingface_rows),
    "reasoning_gym": _generated(reasoning_prompts),
}


def _prompt(row: Row, source: SourceConfig, verifier: str) -> Prompt:
    text, messages = content(row, source.prompt_field, source.prompt_format)
    return Prompt(
        id=scalar(row, source.id_field) if source.id_field else f"{row.source}:{row.number}",
        answer=scalar(row, source.answer_field) if source.answer_field else "",
        verifier=verifier,
        source=row.source,
        text=text,
        messages=messages,
        metadata={"kind": scalar(row, source.kind_field)} if source.kind_field else {},
    )
