"""The text directly around a box: mathematics that changes its value, words that retract the answer, an alternative."""

from __future__ import annotations

import re

from kray.rewards.mathematics.statements import clause
from kray.rewards.mathematics.units import SCALES

# Characters in which words, and the beginning of mathematics, are searched for.
_WORDS_CHARACTERS, _LINE_CHARACTERS = 120, 2000

_OPERATOR_COMMANDS = (
    "cdot|times|pm|mp|div|sqrt|d?frac|tfrac|ln|log|lg|exp|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|binom|pi|ast|over|bmod|"
    "pmod|mod|alpha|beta|gamma|theta|lambda|choose|cup|cap"
)
_BEFORE_IN_MATHEMATICS = re.compile(rf"(?:[+\-−*/^_|\d!%]|(?<![A-Za-z\\])[A-Za-z]|\\(?:{_OPERATOR_COMMANDS}))\s*\Z")
# In text, stars and underscores may be Markdown, a digit followed by a blank belongs to a sentence, a dash begins a list.
_BEFORE_IN_TEXT = re.compile(r"(?:(?<=[\w)}])\s?(?:[+−/^]|(?<=[\d)} ])(?<!\*)\*) ?|(?<=\w)_|\d|(?<!\S)-)\Z")
# An argument of a command. Commands that only change the appearance do not change the value.
_IN_BRACES = re.compile(r"(\\[A-Za-z]+)?(?:\s*\{[^{}]*\}|\[[^\[\]]*\])*\s*\{\s*\Z")
_APPEARANCE_COMMANDS = (
    "text mathbf textbf mathrm mbox textcolor color displaystyle bm boldsymbol underline emph textit Large large huge left "
    "begin tag"
)
_APPEARANCE = frozenset(f"\\{name}" for name in _APPEARANCE_COMMANDS.split())
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\?%|°)")
_BEHIND_IN_MATHEMATICS = re.compile(
    rf"\s*(?:[+\-−*/^_!\d(]|\.\d|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|\\(?:{_OPERATOR_COMMANDS})(?![A-Za-z])|\\left\()"
)
_BEHIND_IN_TEXT = re.compile(
    rf"[+/^\d]|_(?!_)[\w{{]|\*(?!\*)\s*[\d(\\]|\.\d|!\s*[+*/=]|\s?\\(?:{_OPERATOR_COMMANDS})(?![A-Za-z])|[A-Za-z](?![A-Za-z])"
)
_SCALE = re.compile(rf"[\s$~]*(?:\\[,;: ]\s*)*(?:\\(?:text|mathrm|mbox)\s*\{{\s*)?(?:{'|'.join(SCALES)})s?\b", re.I)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|cannot|never)|n't)\s*(?:be|equal(?:\s*to)?|simply|just)?\s*[:$(\[\\]*\s*\Z", re.I
)
_BEGIN = r"[\s$.,;!?*)\]\\]*"
_TAKEN_BACK = re.compile(
    rf"{_BEGIN}(?:(?:is|are|was)\s+(?:not\s+(?:(?:the|an?|my)\s+)?(?:right|correct|final|answer|solution)|wrong|incorrect|false)"
    r"|isn't\s+(?:right|correct|the\s))",
    re.I,
)
# A second thought, which retracts an answer unless it confirms it.
_SECOND_THOUGHT = re.compile(
    rf"{_BEGIN}(?:no|wait|oops|actually|correction|sorry|hold on|on second thought|hmm)\b"
    r"(?!\s+(?:further|other|more|need|matter|to a))([^\n]*\d[^\n]*)",
    re.I,
)
_CONFIRMS = re.compile(r"verif|check|\b(?:yes|good|indeed|correct|right|also)\b|✓", re.I)
_CONTRADICTS = re.compile(r"wrong|incorrect|not (?:right|correct)|mistake|misread|should be", re.I)
_ALTERNATIVE = re.compile(
    r"[\s$,;.}]*(?:\\text\s*\{\s*)?\(?\s*(?:or|alternatively)\b\s*\}?"
    r"(?:\s*,?\s*(?:maybe|perhaps|possibly|equivalently|simply|even)\b)*\s*,?\s*",
    re.I,
)
_PRICE = re.compile(r"\$(?=\d[\d,.]*(?:\s+[A-Za-z]{2,}|[.,;)]?\s*$|[.,;)]\s))")
_ROUNDED = re.compile(r"(?:about|approximately|roughly|around|nearly|≈|\$?\\approx)\s*[^\s]*[.%]", re.I)


def changed(text: str, begin: int, end: int) -> bool:
    """Return whether mathematics around a box changes the value of its content.

    Args:
        text: The response.
        begin: Where the box begins, with its command.
        end: Where it ends, after its closing brace.
    """
    before, behind = text[max(0, begin - _WORDS_CHARACTERS) : begin], text[end : end + _WORDS_CHARACTERS]
    in_mathematics = _is_mathematics(text[max(0, begin - _LINE_CHARACTERS) : begin])
    last = before.rstrip()[-1:]
    # Searches from the right end are slow, and most boxes stand behind a dollar sign or a word.
    opened = _IN_BRACES.search(before) if last == "{" else None
    if opened and opened[1] is not None and opened[1] not in _APPEARANCE:
        return True
    changes = _BEFORE_IN_MATHEMATICS if in_mathematics else _BEFORE_IN_TEXT
    if last not in "$=:.,;&{" and changes.search(before[-20:]) and not _is_bullet(before):
        return True
    if sign := _DEGREES.match(behind):
        behind = behind[sign.end() :]
    if _SCALE.match(behind):
        return True
    line = behind.partition("\n")[0]
    return (_BEHIND_IN_MATHEMATICS if in_mathematics else _BEHIND_IN_TEXT).match(line) is not None


def retracted(text: str, begin: int, end: int) -> bool:
    """Return whether words directly before or behind a box state that its content is not the answer.

    Args:
        text: The response.
        begin: Where the box begins, with its command.
        end: Where it ends, after its closing brace.
    """
    before, behind = text[max(0, begin - _WORDS_CHARACTERS) : begin], text[end : end + _WORDS_CHARACTERS]
    denied = ("not" in before or "n't" in before or "never" in before) and _DENIED_BEFORE.search(before)
    if denied or _TAKEN_BACK.match(behind):
        return True
    second = _SECOND_THOUGHT.match(behind)
    return second is not None and (bool(_CONTRADICTS.search(second[1])) or not _CONFIRMS.search(second[1]))


def alternative(behind: str) -> str:
    """Return the alternative that "or" directly behind a box adds; "" without one, or for a rounding of the same value."""
    found = _ALTERNATIVE.match(behind[:_WORDS_CHARACTERS])
    added = behind[found.end() : found.end() + _WORDS_CHARACTERS] if found else ""
    return "" if _ROUNDED.match(added) else clause(added).partition(" if ")[0]


def _is_mathematics(before: str) -> bool:
    """Return whether the end of a text is inside $$ or \\[ of its paragraph, or inside dollar signs of its line."""
    paragraph = before.rpartition("\n\n")[2]
    if paragraph.count("$$") % 2:
        return True
    line = paragraph.rpartition("\n")[2].replace("$$", "").replace("\\$", "")
    if _PRICE.sub("", line).count("$") % 2:
        return True
    displayed = paragraph.replace("\\\\[", "")
    opened = max(displayed.rfind("\\["), displayed.rfind("\\("))
    return opened > max(displayed.rfind("\\]"), displayed.rfind("\\)"))


def _is_bullet(before: str) -> bool:
    """Return whether a text ends with a list bullet: a dash or a number that begins a line."""
    return re.search(r"(?:^|\n)\s*(?:[-*+]|\d+[.)])\s+\Z|\s[-−]\s+\Z", before) is not None
