"""Distinguish words of a language from names and products of variables."""

from __future__ import annotations

import re

from kray.rewards.mathematics.answer_types import Words
from kray.rewards.mathematics.notation import WORDS_CLOSE, WORDS_OPEN, squeezed
from kray.rewards.mathematics.tokens import FUNCTIONS

# With one of these before it a value is not what the words name.
NO_LABEL = re.compile(r"\b(?:not|never|no|wrong|incorrect|false|if|unless|anything|but|less|more|greater|at)\b", re.I)
_WORDS = "yes no odd even true dne red blue one two six ten none both all"
_SHORT_WORDS = frozenset(_WORDS.split())


def is_words(text: str, is_text: bool = False) -> bool:
    """Return whether a text is words rather than a product of variables or a name (ABCD).

    Args:
        text: Normalized text.
        is_text: Whether it stands in a text command.
    """
    if not re.fullmatch(rf"[A-Za-z{WORDS_OPEN}{WORDS_CLOSE}'\-.\s]+", text):
        return False
    found = re.findall(r"[A-Za-z]+", text)
    if all(word.lower() in FUNCTIONS or word.lower() in ("pi", "infinity") or len(word) == 1 for word in found):
        return False
    marked = is_text or WORDS_OPEN in text
    if not marked and all(word.isupper() for word in found) and text.lower() not in _SHORT_WORDS:
        return False
    return WORDS_OPEN in text or any(len(word) > 3 or word.lower() in _SHORT_WORDS for word in found)


def as_words(text: str) -> Words:
    """Turn normalized text that is not otherwise understood into Words."""
    # Cases are compared without commas, full stops and words such as "if".
    if "\\begin{cases}" in text:
        text = re.sub(rf"[,.]|{WORDS_OPEN}\s*(?:if|for|when|otherwise)?\s*{WORDS_CLOSE}", "", text)
    plain = text.replace(WORDS_OPEN, "").replace(WORDS_CLOSE, "")
    if re.fullmatch(r"[A-Za-z'\-.,()\s]+", plain):
        return Words(
            " ".join(word for word in re.findall(r"[a-z'\-]+", plain.lower()) if word not in ("the", "a", "an"))
        )
    return Words(squeezed(text))
