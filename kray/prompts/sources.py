"""Where prompts come from: `load_prompts` turns a configured source into Prompts, or says what is wrong with the data.

A bad line is an error, never skipped: a run on part of its data looks like a run on all of it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

from kray.config.schema import PromptsConfig, SourceConfig
from kray.prompts.files import Row, huggingface_rows, jsonl_rows, parquet_rows
from kray.prompts.generated import arithmetic_prompts, reasoning_prompts
from kray.records import ConfigError, DataError, Prompt

_ROLES = ("system", "developer", "user", "assistant", "tool")


def load_prompts(source: SourceConfig, default_verifier: str) -> list[Prompt]:
    """All prompts of a source, at least one, with ids that differ.

    default_verifier: of prompts whose source names none. Raises DataError that names the file, the line and the field.
    """
    load = SOURCES.get(source.kind)
    if load is None:
        near = difflib.get_close_matches(source.kind, SOURCES, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise DataError(f'kind "{source.kind}" is not known{hint}; known: {", ".join(SOURCES)}')
    if source.limit < 0:
        raise DataError(f"limit must not be negative, not {source.limit}")
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


def _from_rows(read: Callable[[SourceConfig], Iterable[Row]]) -> Callable[[SourceConfig, str], list[Prompt]]:
    def load(source: SourceConfig, verifier: str) -> list[Prompt]:
        prompts: list[Prompt] = []
        seen: dict[str, str] = {}
        for row in read(source):
            prompt = _prompt(row, source, verifier)
            if prompt.id in seen:
                raise DataError(f'{row.place}: id "{prompt.id}" was already used at {seen[prompt.id]}')
            seen[prompt.id] = row.place
            prompts.append(prompt)
            if len(prompts) == source.limit:
                break
        return prompts

    return load


SOURCES: dict[str, Callable[[SourceConfig, str], list[Prompt]]] = {
    "arithmetic": arithmetic_prompts,
    "jsonl": _from_rows(jsonl_rows),
    "parquet": _from_rows(parquet_rows),
    "huggingface": _from_rows(huggingface_rows),
    "reasoning_gym": reasoning_prompts,
}


def _prompt(row: Row, source: SourceConfig, verifier: str) -> Prompt:
    content = _field(row, source.prompt_field)
    text, messages = None, None
    if isinstance(content, str):
        if not content.strip():
            raise DataError(f'{row.place}: field "{source.prompt_field}" is empty')
        text = content
        _check_text(content, row, f'field "{source.prompt_field}"')
    elif isinstance(content, list):
        messages = _messages(content, row, source.prompt_field)
    else:
        kind = type(content).__name__
        raise DataError(f'{row.place}: field "{source.prompt_field}" is {kind}, not text or a list of messages')
    return Prompt(
        id=_scalar(row, source.id_field) if source.id_field else f"{row.source}:{row.number}",
        answer=_scalar(row, source.answer_field) if source.answer_field else "",
        verifier=verifier,
        source=row.source,
        text=text,
        messages=messages,
        metadata={"kind": _scalar(row, source.kind_field)} if source.kind_field else {},
    )


def _field(row: Row, name: str) -> Any:
    """The value of a field. A dot reaches into a mapping, or a list by position; a field with a dot in its name comes first."""
    if name in row.fields:
        return row.fields[name]
    value: Any = row.fields
    for depth, part in enumerate(name.split(".")):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            inside = f' of "{".".join(name.split(".")[:depth])}"' if depth else ""
            known = f"fields{inside}: {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
            known = known or f"{inside.strip() or 'the row'} is {type(value).__name__}"
            raise DataError(f'{row.place}: field "{name}" is missing ({known})')
    return value


def _scalar(row: Row, name: str) -> str:
    """A field that must be text, a number or true/false, as text."""
    value = _field(row, name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal)):
        if not isinstance(value, int) and not math.isfinite(value):
            raise DataError(f'{row.place}: field "{name}" is {value}, not a finite number')
        return str(value)
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise DataError(f'{row.place}: field "{name}" is {kind}, not text, a number or true/false')
    if not value.strip():
        raise DataError(f'{row.place}: field "{name}" is empty')
    _check_text(value, row, f'field "{name}"')
    return value


def _check_text(text: str, row: Row, what: str) -> None:
    """JSON can spell what no text is: half of a character ("\\ud800"), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{row.place}: {what} holds half a character (U+{ord(text[error.start]):04X})") from None


def _messages(content: list[Any], row: Row, name: str) -> tuple[Mapping[str, str], ...]:
    """Chat messages, checked: at least one, each with a known role and text, the last one not the assistant's."""
    if not content:
        raise DataError(f'{row.place}: field "{name}" is an empty list of messages')
    messages = []
    for index, message in enumerate(content):
        place = f'{row.place}: field "{name}", message {index}'
        if not isinstance(message, Mapping):
            raise DataError(f"{place} is {type(message).__name__}, not an object with role and content")
        for key in ("role", "content"):
            if key not in message:
                raise DataError(f'{place}: "{key}" is missing (keys: {", ".join(map(str, message))})')
        # Columnar files give every message every key, null where a message has none.
        kept = {key: value for key, value in message.items() if value is not None or key in ("role", "content")}
        for key, value in kept.items():
            if not isinstance(value, str):
                kind = "null" if value is None else type(value).__name__
                raise DataError(f'{place}: "{key}" is {kind}, not text')
            _check_text(value, row, f'field "{name}", message {index}: "{key}"')
        if kept["role"] not in _ROLES:
            raise DataError(f'{place}: role "{kept["role"]}" is not one of {", ".join(_ROLES)}')
        messages.append(kept)
    if messages[-1]["role"] == "assistant":
        raise DataError(f'{row.place}: field "{name}" ends with an assistant message: there is nothing to answer')
    if not any(message["content"].strip() for message in messages):
        raise DataError(f'{row.place}: field "{name}" is empty')
    return tuple(messages)
