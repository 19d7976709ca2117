"""Tells words of a language from names and products of variables."""

from __future__ import annotations

import re

from kray.rewards.mathematics.expressions import FUNCTIONS
from kray.rewards.mathematics.kinds import Words
from kray.rewards.mathematics.notation import WORDS_CLOSE, WORDS_OPEN, squeezed

# With one of these before it a value is not what the words name.
NO_LABEL = re.compile(r"\b(?:not|never|no|wrong|incorrect|false|if|unless|anything|but|less|more|greater|at)\b", re.I)
_SHORT_WORDS = {
    "yes",
    "no",
    "odd",
    "even",
    "true",
    "dne",
    "red",
    "blue",
    "one",
    "two",
    "six",
    "ten",
    "none",
    "both",
    "all",
}


def is_words(text: str, is_text: bool = False) -> bool:
    """Whether text is words rather than a product of variables or a name (ABCD); is_text: it stands in a text command."""
    if not re.fullmatch(rf"[A-Za-z{WORDS_OPEN}{WORDS_CLOSE}'\-.\s]+", text):
        return False
    found = re.findall(r"[A-Za-z]+", text)
    if all(word.lower() in FUNCTIONS or word.lower() in ("pi", "infinity") or len(word) == 1 for word in found):
        return False
    if (
        not is_text
        and WORDS_OPEN not in text
        and all(word.isupper() for word in found)
        and text.lower() not in _SHORT_WORDS
    ):
        return False
    return WORDS_OPEN in text or any(len(word) > 3 or word.lower() in _SHORT_WORDS for word in found)


def as_words(text: str) -> Words:
    if "\\begin{cases}" in text:  # with and without commas, "if" and full stops
        text = re.sub(rf"[,.]|{WORDS_OPEN}\s*(?:if|for|when|otherwise)?\s*{WORDS_CLOSE}", "", text)
    plain = text.replace(WORDS_OPEN, "").replace(WORDS_CLOSE, "")
    if re.fullmatch(r"[A-Za-z'\-.,()\s]+", plain):
        return Words(
            " ".join(word for word in re.findall(r"[a-z'\-]+", plain.lower()) if word not in ("the", "a", "an"))
        )
    return Words(squeezed(text))
