"""Names under which MLflow accepts metrics, parameters and tags. Standard library only.

A name that MLflow accepts is kept. Any other text becomes a legible name that it accepts: the same text always the same
name, different texts different names.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable

from kray.errors import KrayError

# Characters that MLflow accepts in a name.
LONGEST = 250
# Hexadecimal digits of the digest that distinguishes replaced names.
DIGITS = 8


def is_valid(text: str) -> bool:
    """Return whether MLflow accepts the text: letters, digits, _ - . : / and spaces, as a normalised relative path."""
    if not re.fullmatch(r"[/\w.\- :]+", text) or len(text) > LONGEST:
        return False
    return posixpath.normpath(text) == text and text != "." and not text.startswith(("..", "/"))


def name_of(text: str) -> str:
    """Return the text if it is valid; else with other characters as _ and a digest of the whole text."""
    if is_valid(text):
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGITS // 2).hexdigest()
    parts = re.sub(r"[^/\w.\- :]", "_", text).split("/")
    legible = "/".join(part for part in parts if part.strip(".")).lstrip(".")
    return f"{legible[: LONGEST - DIGITS - 1].rstrip('/') or '_'}-{digest}"


def named(texts: Iterable[str]) -> dict[str, str]:
    """Return text -> its name.

    Raises:
        KrayError: Two texts would have one name; names both.
    """
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for text in texts:
        name = names[text] = name_of(text)
        if taken.setdefault(name, text) != text:
            raise KrayError(f"{taken[name]!r} and {text!r} would both be recorded as {name!r}: rename one of them")
    return names
