"""Interpret text in a prompt field that may be JSON: chat messages are parsed, prose stays text, the rest is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from kray.errors import DataError
from kray.prompts.columns import parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")
AS_TEXT = "set prompt_format: text where it is the prompt itself"
# Usual keys, in an object, of a prompt or of what holds one.
_PROMPT_WORDS = "role content messages conversation conversations prompt question query instruction text"
_PROMPT_KEYS = frozenset(_PROMPT_WORDS.split())
_BOM = "\ufeff"
# The first key of an object, possibly in a list, in JSON or as Python and numpy print it.
_OBJECT_START = re.compile(r"""(?:array\()?[\[(\s]*\{\s*(?:"[^"\n]*"|'[^'\n]*')\s*:""")
_PROMPT_KEY = re.compile(rf"""["'](?:from|{"|".join(sorted(_PROMPT_KEYS))})["']\s*:""", re.IGNORECASE)
# A string, closed or not, or a bracket, or a word.
_TOKEN = re.compile(r""""(?:[^"\\]|\\.)*+"?|'(?:[^'\\]|\\.)*+'?|[\[({]|[\])}]|\w+""", re.DOTALL)


def read_json(text: str, place: str) -> Any:
    """Parse text that must be JSON, for prompt_format: json.

    Args:
        text: The field's text.
        place: File, row and field, for messages.

    Raises:
        DataError: The text is not JSON.
    """
    try:
        return parse_json(text.removeprefix(_BOM))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({_why(error)}), and prompt_format is json") from None


def chat_in_text(text: str, place: str) -> str | list[Any]:
    """Interpret text that may be JSON, for prompt_format: auto.

    Args:
        text: The field's text.
        place: File, row and field, for messages.

    Returns:
        The chat messages where the text is their JSON, else the text itself.

    Raises:
        DataError: The text is other JSON, or JSON that was truncated or printed by Python, and may hold a prompt.
    """
    bare = text.lstrip().removeprefix(_BOM).lstrip()
    if bare[:1] not in ("[", "{", "(", '"', "a"):
        return text
    try:
        value = parse_json(bare)
    except (ValueError, RecursionError) as error:
        if not _has_words_outside(bare):
            if _OBJECT_START.match(bare) and _PROMPT_KEY.search(bare):
                raise DataError(
                    f"{place} begins like chat messages and is not JSON; {AS_TEXT} ({_why(error)})"
                ) from None
            if _is_list_of_texts(bare):
                raise DataError(
                    f"{place} begins like a list of texts and is not JSON; {AS_TEXT} ({_why(error)})"
                ) from None
        return text
    if isinstance(value, str):
        raise DataError(f"{place} is a text in JSON's quotes; set prompt_format: json to read it, or {AS_TEXT[4:]}")
    if isinstance(value, list) and any(_may_be_message(item) for item in value):
        return value
    if not isinstance(value, (list, Mapping)):
        return text
    kind = "list" if isinstance(value, list) else "object"
    if _holds_message(value):
        raise DataError(f"{place} is a JSON {kind} with chat messages, not a list of them; {AS_TEXT}")
    if _may_hold_prompt(value):
        raise DataError(f"{place} is a JSON {kind} that may hold the prompt; make the field the prompt, or {AS_TEXT}")
    return text


def _is_message(value: Any) -> bool:
    """Return whether a value looks like a chat message, in the form of OpenAI or ShareGPT."""
    if not isinstance(value, Mapping):
        return False
    keys = {key.lower() for key in value}
    role = value.get("role")
    return {"role", "content"} <= keys or {"from", "value"} <= keys or (isinstance(role, str) and role.lower() in ROLES)


def _may_be_message(value: Any) -> bool:
    return _is_message(value) or (isinstance(value, Mapping) and "content" in value)


def _holds_message(value: Any) -> bool:
    """Return whether a value contains a chat message at any depth."""
    left = [value]
    while left:
        item = left.pop()
        if _is_message(item):
            return True
        left.extend(item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ())
    return False


def _may_hold_prompt(value: Any) -> bool:
    """Return whether a value may hold a prompt: a list of strings, or an object with usual keys of prompts."""
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, str):
        return True
    if isinstance(value, list):
        return bool(value) and (
            all(isinstance(item, str) for item in value)
            or any(isinstance(item, Mapping) and _names(item) for item in value)
        )
    return isinstance(value, Mapping) and _names(value)


def _names(value: Mapping[str, Any]) -> bool:
    return any(
        key.lower() in _PROMPT_KEYS and isinstance(inside, (str, list, Mapping)) for key, inside in value.items()
    )


def _has_words_outside(text: str) -> bool:
    """Return whether there are words before or after a text's brackets: then it is prose with an example."""
    depth = 0
    for token in _TOKEN.findall(text.removeprefix("array")):
        if token in ("[", "(", "{"):
            depth += 1
        elif token in ("]", ")", "}"):
            depth = max(depth - 1, 0)
        elif not depth:
            return True
    return False


def _is_list_of_texts(text: str) -> bool:
    """Return whether text that is not JSON has only quoted strings in its brackets, as Python prints a list of them."""
    tokens = _TOKEN.findall(text)
    texts = [token for token in tokens if token not in ("[", "]")]
    return bool(texts) and tokens[0] == "[" and all(len(t) > 1 and t[0] in "\"'" and t[-1] == t[0] for t in texts)


def _why(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return str(error) if isinstance(error, ValueError) else "it is nested too deeply"
