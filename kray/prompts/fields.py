"""Convert a row's fields to the parts of a Prompt: text, chat messages, and scalars as text.

Every DataError names the file, the row and the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from kray.errors import DataError
from kray.prompts.columns import Written, exact_number
from kray.prompts.json_prompts import AS_TEXT, ROLES, chat_in_text, read_json
from kray.prompts.rows import Row

Messages = tuple[Mapping[str, str], ...]

# How text in a prompt field is read. auto: chat messages as JSON are parsed, and text that may be meant as JSON is refused;
# text: the text is the prompt; json: all of it is JSON, of a string or of chat messages.
FORMATS = ("auto", "text", "json")
# Smallest decimal exponent of a 64-bit float.
_SMALLEST_EXPONENT = -324


def field(row: Row, name: str) -> Any:
    """Return the value of a field.

    Args:
        row: The row.
        name: Name of the field. A dot selects an item of a mapping, or of a list by position; a field whose own name has the
            dot takes precedence.

    Raises:
        DataError: There is no such field.
    """
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
    """Return a field that must be text, a number or true/false, as text.

    Numbers are written without an exponent and as exactly as in the data: 1e-05 in JSON is "0.00001", 72.0 is "72.0". A whole
    float of a column is written as an integer, "72": columns do not tell which was meant, and one null turns a column of
    integers into floats.

    Args:
        row: The row.
        name: Name of the field, as in `field`.

    Raises:
        DataError: The field is missing, blank or of another type, or a number cannot be written exactly.
    """
    value = field(row, name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (float, Decimal, np.floating)):
        return _number(value, f'{row.place}: field "{name}"')
    if not isinstance(value, str):
        kind = "null" if value is None else _kind(value)
        raise DataError(f'{row.place}: field "{name}" is {kind}, not text, a number or true/false')
    if not value.strip():
        raise DataError(f'{row.place}: field "{name}" is empty')
    check_text(value, row, f'field "{name}"')
    return value


def content(row: Row, name: str, form: str) -> tuple[str | None, Messages | None]:
    """Return the prompt that a field holds.

    Args:
        row: The row.
        name: Name of the field, as in `field`.
        form: One of FORMATS.

    Returns:
        (text, None) or (None, messages).

    Raises:
        DataError: The field is missing, blank, or not a prompt in this format.
    """
    value = field(row, name)
    place = f'{row.place}: field "{name}"'
    if isinstance(value, str) and form == "json":
        value = read_json(value, place)
    elif isinstance(value, str) and form == "auto":
        found = chat_in_text(value, place)
        if isinstance(found, list):
            try:
                return None, _messages(found, row, name)
            except DataError as error:
                raise DataError(f"{error}; {AS_TEXT}") from None
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{place} is empty")
        check_text(value, row, f'field "{name}"')
        return value, None
    if isinstance(value, list):
        return None, _messages(value, row, name)
    raise DataError(f"{place} is {_kind(value)}, not text or a list of messages")


def _number(value: float | Decimal | np.floating, place: str) -> str:
    """Write a number without an exponent; refuse those beyond floats, whose exponent may stand for a billion digits."""
    near = float(value)
    written = f"{value.text if isinstance(value, Written) else value!s:.60}"
    if not math.isfinite(near):
        raise DataError(f"{place} is {written}, not a finite number as a float")
    if not isinstance(value, Decimal):
        try:
            return format(exact_number(value if isinstance(value, np.floating) else np.float64(value)), "f")
        except ValueError as error:
            raise DataError(f"{place} {error}") from None
    if value and not near:
        raise DataError(f"{place} is {written}, nearer to 0 than any number that can be compared")
    # A zero would be written with as many digits as its exponent has.
    if not value and not _SMALLEST_EXPONENT <= value.adjusted() <= 0:
        return "-0" if value.is_signed() else "0"
    return format(value, "f")


def _kind(value: Any) -> str:
    """Return the type of a value, as error messages name it."""
    return "float" if isinstance(value, (Decimal, np.floating)) else type(value).__name__


def check_text(text: str, row: Row, what: str) -> None:
    """Refuse unpaired surrogates ("\\ud800"), which JSON can hold and no tokenizer accepts.

    Args:
        text: The text.
        row: Its row.
        what: Names it in the row.

    Raises:
        DataError: It holds one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{row.place}: {what} holds half a character (U+{ord(text[error.start]):04X})") from None


def _messages(found: list[Any], row: Row, name: str) -> Messages:
    """Check chat messages: at least one, each with a known role and text, the last one not the assistant's."""
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
        # Columnar files give every message every key, null or an empty list where a message has none.
        needed = ("role", "content")
        kept = {key: value for key, value in message.items() if key in needed or value not in (None, [])}
        for key, value in kept.items():
            if not isinstance(value, str):
                kind = "null" if value is None else _kind(value)
                raise DataError(f'{place}: "{key}" is {kind}, not text')
            check_text(value, row, f'field "{name}", message {index}: "{key}"')
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
