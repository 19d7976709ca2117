"""Text of a prompt field that may be meant as JSON: chat messages are read, prose stays text, the rest is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from kray.errors import DataError
from kray.prompts.columns import parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")
AS_TEXT = "set prompt_format: text where it is the prompt itself"
# Usual names, in an object, of a prompt or of what holds one.
_PROMPT_KEYS = frozenset(
    {
        "role",
        "content",
        "messages",
        "conversation",
        "conversations",
        "prompt",
        "question",
        "query",
        "instruction",
        "text",
    }
)
_BOM = "\ufeff"
# The first key of an object, perhaps in a list, in JSON or in what Python and numpy print.
_OBJECT_START = re.compile(r"""(?:array\()?[\[(\s]*\{\s*(?:"[^"\n]*"|'[^'\n]*')\s*:""")
_PROMPT_KEY = re.compile(rf"""["'](?:from|{"|".join(sorted(_PROMPT_KEYS))})["']\s*:""", re.IGNORECASE)
# A string, closed or not, or a bracket, or a word.
_TOKEN = re.compile(r""""(?:[^"\\]|\\.)*+"?|'(?:[^'\\]|\\.)*+'?|[\[({]|[\])}]|\w+""", re.DOTALL)


def read_json(text: str, place: str) -> Any:
    """The value of text that must be JSON, for prompt_format: json. Raises DataError."""
    try:
        return parse_json(text.removeprefix(_BOM))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({_why(error)}), and prompt_format is json") from None


def chat_in_text(text: str, place: str) -> str | list[Any]:
    """Text as it is, or the list of chat messages that it is the JSON of, for prompt_format: auto.

    Raises DataError for other text that is JSON, or was before it was cut or printed by Python, and may hold a prompt.
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
    """Whether it looks like a chat message, in OpenAI's form or in ShareGPT's."""
    if not isinstance(value, Mapping):
        return False
    keys = {key.lower() for key in value}
    role = value.get("role")
    return {"role", "content"} <= keys or {"from", "value"} <= keys or (isinstance(role, str) and role.lower() in ROLES)


def _may_be_message(value: Any) -> bool:
    return _is_message(value) or (isinstance(value, Mapping) and "content" in value)


def _holds_message(value: Any) -> bool:
    """Whether a chat message is anywhere in it."""
    left = [value]
    while left:
        item = left.pop()
        if _is_message(item):
            return True
        left.extend(item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ())
    return False


def _may_hold_prompt(value: Any) -> bool:
    """Whether a prompt may be in it: a list of nothing but texts, or an object with the usual names of prompts."""
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
    """Whether text goes on in words before or after its brackets: it is prose that shows something."""
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
    """Whether text that is not JSON has nothing but quoted texts in its brackets, as Python prints a list of them."""
    tokens = _TOKEN.findall(text)
    texts = [token for token in tokens if token not in ("[", "]")]
    return bool(texts) and tokens[0] == "[" and all(len(t) > 1 and t[0] in "\"'" and t[-1] == t[0] for t in texts)


def _why(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return str(error) if isinstance(error, ValueError) else "it is nested too deeply"
