r"""Text of foreign origin, in forms that every table, log, terminal, tag and HTTP answer takes.

What a policy, a verifier, an environment, a judge or an engine writes may be any Python str: with halves of characters
(unpaired surrogates, which no file and no tokenizer takes), NULs, control characters, line ends, or of any length. Tokens are
never touched by this; what is read by people or sent elsewhere is. None of these functions raises on a str. Standard library
only.
"""

from __future__ import annotations

import contextlib
import json
import re
import reprlib
from typing import Any

# Characters of a detail or a reason.
LINE_CHARACTERS = 2000
_VALUE_CHARACTERS = 80
_HALVES = re.compile("[\ud800-\udfff]")
# Control characters but line end and tab, characters that reverse the order of others, and halves of characters.
_ILLEGIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)",
)
# In JSON: a backslash, both halves of a character, or one half alone (group 1).
_JSON_ESCAPES = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_JSON_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def well_formed(text: str) -> str:
    """Return the text with U+FFFD in place of each half of a character; else as it is."""
    # A subclass may override anything.
    text = str.__str__(text)
    return text if text.isascii() else _HALVES.sub("\ufffd", text)


def legible(text: str) -> str:
    r"""Return text of one or more lines with control characters and halves of characters as escapes such as \x00."""
    return _ILLEGIBLE.sub(lambda found: _escaped(found[0]), str.__str__(text))


def one_line(text: str, longest: int = LINE_CHARACTERS) -> str:
    r"""Return text in one line: line ends and all that is not printable as escapes such as \n, cut to `longest` characters."""
    text = str.__str__(text)
    if len(text) <= longest and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else _escaped(c) for c in text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def brief(value: Any) -> str:
    """Return any object as a short text for a message: its repr, or its type where it has none."""
    try:
        return one_line(reprlib.repr(value), _VALUE_CHARACTERS)
    # The repr of a class that a verifier defines may raise anything.
    except Exception:
        return f"an object of type {one_line(type(value).__name__, _VALUE_CHARACTERS)}"


def describe(error: BaseException, longest: int = LINE_CHARACTERS) -> str:
    """Return an exception's type and message in one line, also where its message cannot be had."""
    try:
        message = str(error)
    except Exception:
        message = "its message cannot be read"
    return one_line(f"{type(error).__name__}: {message}", longest)


def make_legible(error: BaseException) -> None:
    """Make the messages of an error and of those that led to it legible, so that it can be sent to another process."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.args = tuple(legible(part) if isinstance(part, str) else part for part in error.args)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def is_well_formed_json(body: bytes) -> bool:
    """Return whether JSON is in UTF-8 and writes no half of a character as an escape, by a quick look; False may be wrong."""
    if b"\0" in body[:4] or _JSON_HALF.search(body):
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def well_formed_json(body: bytes) -> bytes:
    """Return JSON in UTF-8 with U+FFFD in place of each half of a character, and of bytes that are no text.

    Python's reader of JSON takes such bytes and escapes, which nothing else does. What is no JSON is none afterwards.
    """
    encoding = json.detect_encoding(body)
    try:
        text = body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        text = body.decode(encoding, "replace")
    return _JSON_ESCAPES.sub(lambda found: r"\ufffd" if found[1] else found[0], well_formed(text)).encode()


def take_any_text(*streams: Any) -> None:
    """Have streams write what their encoding lacks as escapes, so that no line that is printed can fail."""
    for stream in streams:
        # Streams that replace the standard ones may have no encoding, or be closed.
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
