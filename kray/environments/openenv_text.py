"""What a policy's text means to an OpenEnv server, and what the server's answer reads like: pure conversions."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

# Fields that every action and observation has; they are not for the policy.
_COMMON = ("metadata", "reward", "done")
# A field of an observation and its items, and a number's format, of at most 99 characters.
_FIELD = re.compile(r"\w+(?:\[[^\[\]{}]+\])*")
_FORMAT = re.compile(r"[-+ ]?0?\d{0,2},?(?:\.\d{1,2})?[defgs%]?")
_NUMBERS: dict[str, Callable[[str], Any]] = {"integer": int, "number": float}


class ActionError(ValueError):
    """The policy's turn is no action of the environment."""


class ActionReader:
    """Reads typed actions from turns of the policy."""

    def __init__(self, action: str, fields: Mapping[str, Any], pattern: str):
        """Create a reader.

        Args:
            action: "auto", "json" or the name of the field that the text goes to.
            fields: Further fields of every action.
            pattern: Regular expression whose group 1 is the action's text, at its last match; "": the whole turn.

        Raises:
            ValueError: The pattern is none, or has no group.
        """
        self.action, self.fields = action, dict(fields)
        try:
            self.pattern = re.compile(pattern, re.DOTALL) if pattern else None
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
        if self.pattern is not None and not self.pattern.groups:
            raise ValueError(f"pattern {pattern!r} needs a group in parentheses, which is the action's text")

    def resolve(self, schema: Mapping[str, Any]) -> tuple[str, str]:
        """Return the field that a turn's text goes to, with its JSON type.

        Args:
            schema: The JSON schema of the server's actions.

        Returns:
            (field, type); ("", "") where turns hold whole actions as JSON.

        Raises:
            ValueError: The actions have no such field.
        """
        known: Mapping[str, Any] = schema.get("properties", {})
        if self.action == "json":
            return "", ""
        if self.action != "auto":
            if self.action not in known:
                raise ValueError(f"action {self.action!r} is no field of the server's actions, which are {list(known)}")
            return self.action, _type_of(known[self.action])
        given = (*_COMMON, *self.fields)
        required = [name for name in schema.get("required", ()) if name not in given]
        own = [name for name in known if name not in given]
        chosen = required if required else own
        return (chosen[0], _type_of(known[chosen[0]])) if len(chosen) == 1 else ("", "")

    def read(self, turn: str, field: str, kind: str) -> dict[str, Any]:
        """Return the action of a turn.

        Args:
            turn: The policy's text.
            field: See `resolve`.
            kind: See `resolve`.

        Raises:
            ActionError: The turn holds none.
        """
        text = turn
        if self.pattern is not None:
            matches = list(self.pattern.finditer(turn))
            if not matches or matches[-1][1] is None:
                raise ActionError("no action was found")
            text = matches[-1][1]
        text = text.strip()
        if field:
            return {**self.fields, field: _value(text, kind)}
        try:
            action = json.loads(_without_fence(text))
        except ValueError:
            raise ActionError("the action is not JSON") from None
        if not isinstance(action, dict):
            raise ActionError("the action is not a JSON object")
        return {**self.fields, **action}


def _type_of(schema: Mapping[str, Any]) -> str:
    """Return the JSON type of a field, without null where it is optional."""
    options = [option.get("type") for option in schema.get("anyOf", ())] or [schema.get("type")]
    kinds = [kind for kind in options if kind != "null"]
    return str(kinds[0]) if len(kinds) == 1 else "string"


def _value(text: str, kind: str) -> Any:
    if kind in _NUMBERS:
        try:
            number = _NUMBERS[kind](text)
        except ValueError:
            number = math.nan
        # JSON has no other numbers.
        if not math.isfinite(number):
            raise ActionError(f"the action is not a number of type {kind}")
        return number
    if kind in ("boolean", "array", "object"):
        try:
            return json.loads(_without_fence(text))
        except ValueError:
            raise ActionError(f"the action is not JSON of type {kind}") from None
    return text


def _without_fence(text: str) -> str:
    """Return the content of a fenced code block, else the text."""
    found = re.fullmatch(r"```\w*\n(.*?)\n?```", text, re.DOTALL)
    return found[1] if found else text


def check_shown(shown: str) -> None:
    """Check the text in which observations are shown, or the name of their field.

    Raises:
        ValueError: A brace holds something else than a field, or an item of one: formats may ask for any width.
    """
    try:
        parts = list(string.Formatter().parse(shown)) if "{" in shown else []
    except ValueError as error:
        raise ValueError(f"observation {shown!r:.200}: {error}; double braces that are text") from None
    for _, field, form, conversion in parts:
        if field is not None and (not _FIELD.fullmatch(field) or not _FORMAT.fullmatch(form or "") or conversion):
            raise ValueError(f"observation {shown!r:.200}: {{{field:.60}}} is no field; double braces that are text")


def _shown(shown: str, fields: Mapping[str, Any]) -> str:
    check_shown(shown)
    return shown.format_map(fields)


def observation_text(observation: Mapping[str, Any], shown: str) -> str:
    """Return an observation as the policy reads it.

    Args:
        observation: The fields of the server's observation.
        shown: The name of a field, a text with {field} in it, or "": the only field if that is text, else all as JSON.

    Raises:
        ValueError: The observation has no such field.
    """
    own = {name: value for name, value in observation.items() if name not in _COMMON}
    if not shown:
        texts = list(own.values())
        return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else json.dumps(own, ensure_ascii=False)
    try:
        return _shown(shown, own) if "{" in shown else str(own[shown])
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"observation {shown!r}: {error} is no field of the observation, which has {list(own)}"
        ) from None
