"""Load the prompts of a configured source.

An invalid line is an error and is never skipped: a run on part of its data would look like a run on all of it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from kray.config.prompts_schema import PromptsConfig, SourceConfig
from kray.config.ranges import RANGES, number_problem
from kray.errors import ConfigError, DataError
from kray.metrics import EVAL_ACCURACY_OF_SET
from kray.prompts.fields import FORMATS, content, scalar
from kray.prompts.generated import arithmetic_prompts, question_prompts, reasoning_prompts
from kray.prompts.positions import nim_prompts
from kray.prompts.row_columns import answer_text, columns_of
from kray.prompts.rows import Row, huggingface_rows, jsonl_rows, parquet_rows
from kray.prompts.seeds import seed_prompts
from kray.prompts.verifiers_tasks import verifiers_prompts
from kray.records import Prompt

logger = logging.getLogger(__name__)

# Names of test sets whose accuracy would have the name of another metric.
TAKEN = ("se",)


def load_prompts(source: SourceConfig, default_verifier: str) -> list[Prompt]:
    """Load all prompts of a source.

    Args:
        source: The source.
        default_verifier: Verifier of prompts whose source names none.

    Returns:
        At least one prompt, with different ids, in the order of the rows. Rows that repeat the prompt and the answer of an
        earlier one are left out unless source.keep_repeats is set, whatever their ids; the ids of others do not change.

    Raises:
        DataError: The source or its data is invalid; the message names the file, the line and the field.
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
    """Return the configured test sets by name.

    Args:
        config: The section prompts of the configuration.

    Returns:
        Name -> source: prompts.test, named "test", and those of prompts.more_tests.

    Raises:
        ConfigError: A name or key of prompts.more_tests is invalid.
    """
    known = {field.name for field in fields(SourceConfig)}
    found = {"test": config.test}
    for name, keys in config.more_tests.items():
        place = f"prompts.more_tests.{name}"
        if not (isinstance(keys, Mapping) and name.replace("_", "").replace("-", "").isalnum() and name != "test"):
            raise ConfigError(f"{place}: a name of letters, digits, - and _ with keys of a source is needed")
        if name in TAKEN:
            raise ConfigError(
                f"{place}: {EVAL_ACCURACY_OF_SET.of(name)} is the name of another metric; call the set something else"
            )
        for key, value in keys.items():
            if key not in known or type(value) is not type(getattr(config.test, key)):
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" (did you mean {near[0]}?)" if near and key not in known else ""
                raise ConfigError(f"{place}.{key}: {value!r:.80} is no value of a key of prompts.test{hint}")
            if (of := f"prompts.test.{key}") in RANGES and (wrong := number_problem(of, value, f"{place}.{key}")):
                raise ConfigError(wrong)
        found[name] = replace(config.test, **keys)
    return found


def load_tests(config: PromptsConfig, default_verifier: str) -> list[tuple[SourceConfig, list[Prompt]]]:
    """Load the prompts of all test sets.

    Args:
        config: The section prompts of the configuration.
        default_verifier: Verifier of prompts whose source names none.

    Returns:
        (source, prompts) of each. With several sets, ids begin with the set's name, which is metadata["set"].

    Raises:
        ConfigError: A test set is configured wrongly.
        DataError: A source or its data is invalid.
    """
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
            if repeats.add(prompt, row.place) and not source.keep_repeats:
                continue
            if prompt.id in ids:
                raise DataError(f'{row.place}: id "{prompt.id}" was already used at {ids[prompt.id]}')
            ids[prompt.id] = row.place
            prompts.append(prompt)
            if len(prompts) == source.limit:
                break
        cut = len(prompts) == source.limit
        repeats.report(source.path, len(prompts), source.keep_repeats, cut)
        if (source.template or source.system) and (chats := [prompt for prompt in prompts if prompt.messages]):
            unused = " and ".join(key for key in ("system", "template") if getattr(source, key))
            share = f"{len(chats)} of {len(prompts)}"
            logger.warning(f"{source.path}: {unused}: not applied to prompts that are chat messages ({share})")
        return prompts

    return load


@dataclass
class _Repeats:
    """Rows that repeat the prompt of an earlier one, with the same answer or another. Holds digests, not texts.

    Attributes:
        places: Digest of a prompt with its answer -> its first row.
        firsts: Digest of a prompt -> its first row.
        conflicting: Digest of a prompt -> its first row, and the first row with another answer.
        repeated: Number of rows that repeat a prompt and its answer.
        example: The first such row, and the one that it repeats.
    """

    places: dict[bytes, str] = field(default_factory=dict)
    firsts: dict[bytes, str] = field(default_factory=dict)
    conflicting: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    repeated: int = 0
    example: tuple[str, str] = ("", "")

    def add(self, prompt: Prompt, place: str) -> bool:
        """Record a row and return whether an earlier row has the same prompt and answer."""
        text = prompt.text if prompt.messages is None else [dict(message) for message in prompt.messages]
        question = _digest(json.dumps(text, sort_keys=True).encode())
        # Without an answer, the columns are what a response is compared with.
        right = prompt.answer or json.dumps(prompt.columns, sort_keys=True, default=str)
        both = _digest(question + right.encode())
        if both in self.places:
            self.repeated += 1
            self.example = self.example if self.example[0] else (place, self.places[both])
            return True
        self.places[both] = place
        if self.firsts.setdefault(question, place) != place:
            self.conflicting.setdefault(question, (self.firsts[question], place))
        return False

    def report(self, path: str, prompts: int, kept: bool, cut: bool) -> None:
        """Log the repeats of a source.

        Args:
            path: The source's file.
            prompts: Number of prompts made of its rows.
            kept: Whether repeats are prompts of their own.
            cut: Whether the source's limit ended the reading, possibly before the last row.
        """
        if self.repeated and not kept:
            row, first = self.example
            rows = f"{'the first ' if cut else ''}{prompts + self.repeated} rows"
            logger.info(
                f"note: {path}: {rows} hold {prompts} prompt{'s' if prompts > 1 else ''}: "
                f"{self.repeated} row{'s repeat' if self.repeated > 1 else ' repeats'} the prompt and the answer of another, "
                f"the first {row} that of {first} (keep_repeats: true keeps them)"
            )
        if self.conflicting:
            first, other = next(iter(self.conflicting.values()))
            logger.warning(
                f"{path}: prompts that occur in several rows with different answers, each a prompt of its own: "
                f"{len(self.conflicting)}; the first: {first} and {other}"
            )


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


SOURCES: dict[str, Load] = {
    "arithmetic": arithmetic_prompts,
    "jsonl": _from_rows(jsonl_rows),
    "parquet": _from_rows(parquet_rows),
    "huggingface": _from_rows(huggingface_rows),
    "questions": question_prompts,
    "reasoning_gym": reasoning_prompts,
    "nim": nim_prompts,
    "seeds": seed_prompts,
    "verifiers": verifiers_prompts,
}


def _prompt(row: Row, source: SourceConfig, verifier: str) -> Prompt:
    text, messages = content(row, source.prompt_field, source.prompt_format)
    return Prompt(
        id=scalar(row, source.id_field) if source.id_field else f"{row.source}:{row.number}",
        answer=answer_text(row, source) if source.answer_field else "",
        verifier=verifier,
        source=row.source,
        text=text,
        messages=messages,
        metadata={"kind": scalar(row, source.kind_field)} if source.kind_field else {},
        columns=columns_of(row, source) if source.columns else {},
    )
