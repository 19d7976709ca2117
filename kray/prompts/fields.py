"""From a row's fields to what a Prompt holds: text, chat messages, and scalars as text. What fits nowhere is a DataError."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from kray.prompts.columns import parse_json
from kray.prompts.files import Row
from kray.records import DataError

Messages = tuple[Mapping[str, str], ...]

ROLES = ("system", "developer", "user", "assistant", "tool")
# How text in a prompt field is read. auto: JSON of chat messages is read, and text that may or may not be meant as JSON is
# refused; text: it is the prompt, as it stands; json: all of it is JSON, of a text or of chat messages.
FORMATS = ("auto", "text", "json")
# Beginnings of chat messages in JSON, in what Python prints, and with the names of ShareGPT.
_CHAT_START = re.compile(r"""\s*(?:array\()?\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
_AS_TEXT = "set prompt_format: text where it is the prompt itself"


def field(row: Row, name: str) -> Any:
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
            known = known or f"{inside.strip() or 'the row'} is {_kind(value)}"
            raise DataError(f'{row.place}: field "{name}" is missing ({known})')
    return value


def scalar(row: Row, name: str) -> str:
    """A field that must be text, a number or true/false, as text.

    Numbers are written without an exponent and as exactly as the data has them: 1e-05 is "0.00001", 72.0 is "72.0".
    """
    value = field(row, name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (float, Decimal)):
        return _number(value, f'{row.place}: field "{name}"')
    if not isinstance(value, str):
        kind = "null" if value is None else _kind(value)
        raise DataError(f'{row.place}: field "{name}" is {kind}, not text, a number or true/false')
    if not value.strip():
        raise DataError(f'{row.place}: field "{name}" is empty')
    _check_text(value, row, f'field "{name}"')
    return value


def content(row: Row, name: str, form: str) -> tuple[str | None, Messages | None]:
    """What the policy is asked, (text, None) or (None, messages). form: one of FORMATS."""
    value = field(row, name)
    place = f'{row.place}: field "{name}"'
    if isinstance(value, str) and form == "json":
        value = _json(value, place)
    elif isinstance(value, str) and form == "auto":
        value = _chat_in_text(value, place)
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{place} is empty")
        _check_text(value, row, f'field "{name}"')
        return value, None
    if isinstance(value, list):
        return None, _messages(value, row, name)
    raise DataError(f"{place} is {_kind(value)}, not text or a list of messages")


def _number(value: float | Decimal, place: str) -> str:
    """A number without an exponent. Refuses what no float can hold: its exponent may stand for a billion digits."""
    if not math.isfinite(near := float(value)):
        raise DataError(f"{place} is {near}, not a finite number")
    exact = value if isinstance(value, Decimal) else Decimal(repr(near))
    if exact and not near:
        raise DataError(f"{place} is {exact}, nearer to 0 than any number that can be compared")
    return format(exact, "f")


def _json(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error) or "it is nested too deeply"
        raise DataError(f"{place} is not JSON ({why}), and prompt_format is json") from None


def _chat_in_text(text: str, place: str) -> str | list[Any]:
    """Text as it is, or the list of chat messages that it is the JSON of. Raises DataError where it cannot be told."""
    start = text.lstrip()[:1]
    if start not in ("[", "{", '"', "a"):
        return text
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        # Text after a complete value: the value is part of a prompt in words.
        in_words = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        if _CHAT_START.match(text) and not in_words:
            raise DataError(f"{place} begins like chat messages and is not JSON; {_AS_TEXT}") from None
        return text
    if isinstance(value, str):
        raise DataError(f"{place} is a text in JSON's quotes; set prompt_format: json to read it, or {_AS_TEXT[4:]}")
    if isinstance(value, list) and any(_is_message(item) for item in value):
        return value
    inside = list(value.values()) if isinstance(value, Mapping) else []
    if _is_message(value) or any(isinstance(item, list) and any(map(_is_message, item)) for item in inside):
        raise DataError(f"{place} is a JSON object with chat messages, not a list of them; {_AS_TEXT}")
    return text


def _is_message(value: Any) -> bool:
    """Whether it looks like a chat message, in OpenAI's form or in ShareGPT's."""
    return isinstance(value, Mapping) and (value.get("role") in ROLES or {"from", "value"} <= value.keys())


def _kind(value: Any) -> str:
    """The type of a value that is there, as error messages name it."""
    return "float" if isinstance(value, Decimal) else type(value).__name__


def _check_text(text: str, row: Row, what: str) -> None:
    """JSON can spell what no text is: half of a character ("\\ud800"), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{row.place}: {what} holds half a character (U+{ord(text[error.start]):04X})") from None


def _messages(found: list[Any], row: Row, name: str) -> Messages:
    """Chat messages, checked: at least one, each with a known role and text, the last one not the assistant's."""
    if not found:
        raise DataError(f'{row.place}: field "{name}" is an empty list of messages')
    messages = []
    for index, message in enumerate(found):
        place = f'{row.place}: field "{name}", message {index}'
        if not isinstance(message, Mapping):
            raise DataError(f"{place} is {_kind(message)}, not an object with role and content")
        for key in ("role", "content"):
            if key not in message:
                raise DataError(f'{place}: "{key}" is missing (keys: {", ".join(map(str, message))})')
        # Columnar files give every message every key, null where a message has none.
        kept = {key: value for key, value in message.items() if value is not None or key in ("role", "content")}
        for key, value in kept.items():
            if not isinstance(value, str):
                kind = "null" if value is None else _kind(value)
                raise DataError(f'{place}: "{key}" is {kind}, not text')
            _check_text(value, row, f'field "{name}", message {index}: "{key}"')
        if kept["role"] not in ROLES:
            raise DataError(f'{place}: role "{kept["role"]}" is not one of {", ".join(ROLES)}')
        messages.append(kept)
    if messages[-1]["role"] == "assistant":
        raise DataError(f'{row.place}: field "{name}" ends with an assistant message: there is nothing to answer')
    if not any(message["content"].strip() for message in messages):
        raise DataError(f'{row.place}: field "{name}" is empty')
    if messages[-1]["role"] == "user" and not messages[-1]["content"].strip():
        raise DataError(f'{row.place}: field "{name}", message {len(messages) - 1}: the last message asks nothing')
    return tuple(messages)
