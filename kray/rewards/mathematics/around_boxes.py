"""What stands directly around a box: mathematics that changes the value, words that take the answer back, an alternative."""

from __future__ import annotations

import re

from kray.rewards.mathematics.statements import clause
from kray.rewards.mathematics.units import SCALES

# How far words, and where mathematics begins, are looked for.
_WORDS_CHARACTERS, _LINE_CHARACTERS = 120, 2000

_OPERATOR_COMMANDS = (
    "cdot|times|pm|mp|div|sqrt|d?frac|tfrac|ln|log|lg|exp|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|binom|pi|ast|over|bmod|"
    "pmod|mod|alpha|beta|gamma|theta|lambda|choose|cup|cap"
)
_BEFORE_IN_MATHEMATICS = re.compile(rf"(?:[+\-−*/^_|\d!%]|(?<![A-Za-z\\])[A-Za-z]|\\(?:{_OPERATOR_COMMANDS}))\s*\Z")
_BEFORE_IN_TEXT = re.compile(r"(?:[+−*/^_\d] ?|-)\Z")
# An argument of a command; those that only change the look are no change.
_IN_BRACES = re.compile(r"(\\[A-Za-z]+)?(?:\s*\{[^{}]*\}|\[[^\[\]]*\])*\s*\{\s*\Z")
_LOOK = {
    "\\text", "\\mathbf", "\\textbf", "\\mathrm", "\\mbox", "\\textcolor", "\\color", "\\displaystyle", "\\bm", "\\boldsymbol",
    "\\underline", "\\emph", "\\textit", "\\Large", "\\large", "\\huge", "\\left", "\\begin", "\\tag",
}  # fmt: skip
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\?%|°)")
_BEHIND_IN_MATHEMATICS = re.compile(
    rf"\s*(?:[+\-−*/^_!\d(]|\.\d|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|\\(?:{_OPERATOR_COMMANDS})(?![A-Za-z])|\\left\()"
)
_BEHIND_IN_TEXT = re.compile(r"[+*/^_\d]|\.\d|!\s*[+*/=]")
_SCALE = re.compile(rf"[\s$~]*(?:\\[,;: ]\s*)*(?:\\(?:text|mathrm|mbox)\s*\{{\s*)?(?:{'|'.join(SCALES)})s?\b", re.I)
_DENIED_BEFORE = re.compile(
    r"\b(?:not|cannot|never|isn't|can't|n't)\s*(?:be|equal(?:\s*to)?|simply|just)?\s*[:$(\[\\]*\s*$", re.I
)
_TAKEN_BACK = re.compile(
    r"[\s$.,;!?*)\]\\]*(?:(?:is|are|was)\s+(?:not|wrong|incorrect|false)|isn't|"
    r"(?:no|wait|oops|actually|correction|sorry)\b[^\n]*?\d)",
    re.I,
)
_ALTERNATIVE = re.compile(
    r"[\s$,;.}]*(?:\\text\s*\{\s*)?\(?\s*(?:or|alternatively)\b\s*\}?"
    r"\s*(?:maybe|perhaps|possibly|equivalently|,|simply|even)*\s*",
    re.I,
)


def changed(text: str, begin: int, end: int) -> bool:
    """Whether mathematics around a box makes another value of what it holds.

    Args:
        text: the response.
        begin, end: of the box, with its command and brace.
    """
    before, behind = text[max(0, begin - _WORDS_CHARACTERS) : begin], text[end : end + _WORDS_CHARACTERS]
    in_mathematics = _is_mathematics(text[max(0, begin - _LINE_CHARACTERS) : begin])
    last = before.rstrip()[-1:]
    # Searches from the right end are slow, and most boxes stand behind a dollar sign or a word.
    opened = _IN_BRACES.search(before) if last == "{" else None
    if opened and opened[1] is not None and opened[1] not in _LOOK:
        return True
    changes = _BEFORE_IN_MATHEMATICS if in_mathematics else _BEFORE_IN_TEXT
    if last not in "$=:.,;&{" and changes.search(before[-20:]) and not _is_bullet(before):
        return True
    if sign := _DEGREES.match(behind):
        behind = behind[sign.end() :]
    if _SCALE.match(behind):
        return True
    return (_BEHIND_IN_MATHEMATICS if in_mathematics else _BEHIND_IN_TEXT).match(behind) is not None


def taken_back(text: str, begin: int, end: int) -> bool:
    """Whether words directly before or behind a box say that what it holds is not the answer."""
    before, behind = text[max(0, begin - _WORDS_CHARACTERS) : begin], text[end : end + _WORDS_CHARACTERS]
    denied = ("not" in before or "n't" in before or "never" in before) and _DENIED_BEFORE.search(before)
    return bool(denied) or _TAKEN_BACK.match(behind) is not None


def alternative(behind: str) -> str:
    """What "or" directly behind a box adds to the answer; "" without one."""
    found = _ALTERNATIVE.match(behind[:_WORDS_CHARACTERS])
    return clause(behind[found.end() : found.end() + _WORDS_CHARACTERS]) if found else ""


def _is_mathematics(before: str) -> bool:
    """Whether the end of `before` is inside dollar signs or \\[ \\]."""
    if (before.count("$") - before.count("\\$") - before.count("$$")) % 2:
        return True
    return max(before.rfind("\\["), before.rfind("\\(")) > max(before.rfind("\\]"), before.rfind("\\)"))


def _is_bullet(before: str) -> bool:
    """A dash or a number that begins a line is a list's."""
    return re.search(r"(?:^|\n)\s*(?:[-*+]|\d+[.)])\s*$|\s[-−]\s$", before) is not None
