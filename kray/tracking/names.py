"""Names under which MLflow takes metrics, parameters and tags. Standard library only.

Promises: a name that MLflow takes stays as it is; any other becomes one that it takes, always the same, legible as far as it
can be, and another one for every text.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable

from kray.errors import KrayError

LONGEST = 250  # characters
DIGITS = 8  # hexadecimal, of the digest that tells replaced names apart


def ordinary(text: str) -> bool:
    """Whether MLflow takes it: letters, digits, _ - . : / and spaces, and a relative path in its shortest form."""
    if not re.fullmatch(r"[/\w.\- :]+", text) or len(text) > LONGEST:
        return False
    return posixpath.normpath(text) == text and text != "." and not text.startswith(("..", "/"))


def name_of(text: str) -> str:
    """The text where it is ordinary; else what of it is, other characters as _, and a digest of the whole text."""
    if ordinary(text):
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGITS // 2).hexdigest()
    parts = re.sub(r"[^/\w.\- :]", "_", text).split("/")
    legible = "/".join(part for part in parts if part.strip(".")).lstrip(".")
    return f"{legible[: LONGEST - DIGITS - 1].rstrip('/') or '_'}-{digest}"


def named(texts: Iterable[str]) -> dict[str, str]:
    """text -> its name. Raises KrayError that names both where two have the same."""
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for text in texts:
        name = names[text] = name_of(text)
        if taken.setdefault(name, text) != text:
            raise KrayError(f"{taken[name]!r} and {text!r} would both be recorded as {name!r}: rename one of them")
    return names
