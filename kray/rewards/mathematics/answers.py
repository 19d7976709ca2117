"""Parse a final answer: a quantity, several values, a tuple, an interval, an equation, words.

`read_answer` takes text normalized by `notation.normalize`. Nothing is parsed in part: an answer of which something is not
understood becomes `Words`, which equal only the same words.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from kray.rewards.mathematics.answer_types import (
    INFINITY,
    MINUS_INFINITY,
    REALS,
    Answer,
    Clock,
    Grid,
    Intervals,
    Named,
    Quantity,
    Ratio,
    Several,
    Words,
)
from kray.rewards.mathematics.evaluation import in_order, less
from kray.rewards.mathematics.expressions import Node, read, symbols
from kray.rewards.mathematics.notation import WORDS_CLOSE, WORDS_OPEN, bracketed, mark_connectives, split
from kray.rewards.mathematics.quantities import compound, read_quantity
from kray.rewards.mathematics.relations import intersection, read_relation
from kray.rewards.mathematics.tokens import Unreadable
from kray.rewards.mathematics.words import NO_LABEL, as_words, is_words

# Levels of nesting of answers.
_DEPTH = 12

_NONE = "no solution|no solutions|no real solution|no real solutions|none|\\emptyset|empty set|\\{\\}|the empty set|no answer"
_UNDEFINED = "dne|does not exist|undefined|not defined|the limit does not exist|doesn't exist"
_PHRASES: dict[str, Answer] = {
    **dict.fromkeys((*_NONE.split("|"), "no such number"), Words("none")),
    **dict.fromkeys(_UNDEFINED.split("|"), Words("undefined")),
    **dict.fromkeys(("\\mathbb{R}", "all real numbers", "all reals", "\\mathbbR"), REALS),
}
_NO_SOLUTION = re.compile(
    r"(?:there (?:is|are) )?no (?:such )?(?:real |integer |positive |valid )*(?:solution|answer|value|number)s?(?: exists?)?"
)
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
_NUMBERS = {word: number for number, word in enumerate(_NUMBER_WORDS.split())} | {"twenty": 20, "hundred": 100}
_REVERSED_BRACKETS = re.compile(r"([\[\](])([^\[\]()]+)([\[\])])")
_LEADING = re.compile(
    r"(?:(?:the|so|thus|therefore|hence|final|correct|our|my)\s+)*(?:answer|result|solution|value)s?\s*(?:is|are|=|:)\s*",
    re.I,
)
_NAMED_IN_WORDS = re.compile(rf"{WORDS_OPEN}([A-Za-z ,']*(?:\bis|\bare|\bequals|:|=))\s*{WORDS_CLOSE}\s*(?=\S)")
_APPROXIMATE = re.compile(r"(?:\\approx|approximately|approx\.?|about|roughly|exactly|only)\s+(?=[-+.\d\\(])", re.I)
_INTEGER_PARAMETER = re.compile(r"\s*,?\s*\(?\s*[kmn]\s*\\in\s*\\mathbb\s*\{?[ZN]\}?\s*\)?$")
_FOR_ALL = re.compile(
    rf"(?<=[\w)}}])[\s,(]*(?:{WORDS_OPEN}?\s*\bfor (?:all|every|any)\b|\\forall(?![A-Za-z])).*$", re.DOTALL
)
_ARROW = re.compile(r"^\s*(?:\\(?:therefore|implies|Rightarrow|to|iff|quad)(?![A-Za-z])|=>|∴|⇒)\s*")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_CLOCK = re.compile(r"(\d{1,2})\s*:\s*([0-5]\d)\s*((?:[ap]\.?\s*m\.?)?)|(\d{1,2})\s*([ap]\.?\s?m\.?)", re.I)
_MATRIX = re.compile(
    r"(.*?)\\begin\s*\{((?:[pbBvV]|small)?matrix|array)\}(?:\s*\{[lcr|\s]*\})?(.*)\\end\s*\{\2\}", re.DOTALL
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def read_answer(text: str, depth: int = 0, commas_separate: bool = False) -> Answer:
    """Parse an answer.

    Args:
        text: Text normalized by `notation.normalize`.
        depth: Level of this answer within others.
        commas_separate: Whether 1,000 is two numbers rather than a thousand.
    """
    is_text = text[:1] == WORDS_OPEN and text[-1:] == WORDS_CLOSE
    text = _bare(text)
    words = text.replace(WORDS_OPEN, "").replace(WORDS_CLOSE, "").strip(" .")
    if (phrase := _PHRASES.get(words.lower())) or (phrase := _PHRASES.get(words)):
        return phrase
    if _NO_SOLUTION.fullmatch(words.lower()):
        return _PHRASES["none"]
    if words.lower() in _NUMBERS:
        return Quantity(("num", Fraction(_NUMBERS[words.lower()])))
    if (found := _REVERSED_BRACKETS.fullmatch(text)) and (found[1] == "]" or found[3] == "["):
        # Some countries write (a, b) as ]a, b[.
        text = f"{found[1].replace(']', '(')}{found[2]}{found[3].replace('[', ')')}"
    if depth > _DEPTH:
        return as_words(text)
    for reading in (
        _read_several,
        _read_relation,
        _read_union,
        _read_brackets,
        _read_matrix,
        _read_plus_minus,
        _read_ratio,
    ):
        try:
            answer = reading(text, depth, commas_separate)
        except (Unreadable, ArithmeticError):
            continue
        if answer is not None:
            return answer
    if is_words(text, is_text):
        return as_words(text)
    try:
        return read_quantity(text)
    except Unreadable:
        return as_words(text)


def _bare(text: str) -> str:
    """Remove what only wraps an answer: outer braces, one text command around all, "The answer is", a full stop."""
    while True:
        before = text
        text = text.strip().rstrip(".,;:").lstrip(":,;").strip()
        if (inside := bracketed(text)) and inside[0] == "{":
            text = inside[1]
        if text[:1] == WORDS_OPEN and WORDS_CLOSE not in text[:-1] and text[-1:] == WORDS_CLOSE:
            text = mark_connectives(text[1:-1])
        text = _FOR_ALL.sub("", _ARROW.sub("", _INTEGER_PARAMETER.sub("", text)))
        if (found := _NAMED_IN_WORDS.match(text)) and not NO_LABEL.search(found[1]):
            text = text[found.end() :]
        for leading in (_LEADING, _APPROXIMATE):
            # "The answer is" may stand in a text command of its own.
            plain = text.replace(WORDS_OPEN, "", 1).replace(WORDS_CLOSE, "", 1) if text[:1] == WORDS_OPEN else text
            if (found := leading.match(plain.lstrip())) and (rest := plain.lstrip()[found.end() :]).strip():
                text = rest
        if text == before:
            return text


def _read_several(text: str, depth: int, commas_separate: bool) -> Answer | None:
    if not commas_separate:
        text = _THOUSANDS.sub(lambda m: m.group().replace(",", ""), text)
    parts, separators = split(text, {",", ";", "or", "and"})
    parts = [signed for part in parts if part for signed in _both_signs(part)]
    if not separators or not parts:
        return None
    items = [read_answer(part, depth + 1, commas_separate) for part in parts]
    if len(items) == 1:
        return items[0]
    connectives = {separator for separator in separators if separator in ("or", "and")}
    if all(isinstance(item, Intervals) and item.label for item in items) and len({item.label for item in items}) == 1:  # type: ignore[union-attr]
        if connectives == {"or"} and "," not in separators:
            return Intervals(tuple(piece for item in items for piece in item.pieces), items[0].label)  # type: ignore[union-attr]
        if connectives <= {"and"} and len(items) == 2 and (both := intersection(*items)):  # type: ignore[arg-type]
            return both
    if all(isinstance(item, Quantity) and item.unit for item in items) and connectives <= {"and"} and len(items) == 2:
        first, second = items
        if first.unit.measures(second.unit) and first.unit.scale > second.unit.scale:  # type: ignore[union-attr]
            return compound(items)  # type: ignore[arg-type]
    # x = 3, 4, 5
    if isinstance(items[0], Named) and all(isinstance(item, Quantity) for item in items[1:]):
        return Several("list", (items[0], *(Named(items[0].label, item) for item in items[1:])))
    return Several("list", tuple(items))


def _read_relation(text: str, depth: int, commas_separate: bool) -> Answer | None:
    return read_relation(text, lambda side: read_answer(side, depth + 1, commas_separate))


def _read_union(text: str, depth: int, commas_separate: bool) -> Answer | None:
    parts, unions = split(text, {"\\cup", "\\setminus"})
    if not unions:
        return None
    if unions == ["\\setminus"] and as_intervals(read_answer(parts[0], depth + 1)) == REALS:
        hole = read_answer(parts[1], depth + 1)
        points = [item.node for item in hole.items if isinstance(item, Quantity)] if isinstance(hole, Several) else []
        if isinstance(hole, Quantity):
            points = [hole.node]
        ends = [MINUS_INFINITY, *in_order(points), INFINITY]
        return Intervals(tuple((a, False, b, False) for a, b in pairwise(ends))) if points else None
    pieces: list[tuple[Node, bool, Node, bool]] = []
    for part in parts:
        item = as_intervals(read_answer(part, depth + 1, commas_separate))
        if item is None or "\\setminus" in unions:
            return None
        pieces += item.pieces
    return Intervals(tuple(pieces))


def as_intervals(answer: Answer) -> Intervals | None:
    """Interpret an answer as a union of intervals: (1, 2) may be an interval; {1} is a point.

    Returns:
        The union; None where the answer is not one.
    """
    if isinstance(answer, Named):
        return as_intervals(answer.value)
    if isinstance(answer, Intervals):
        return answer
    if isinstance(answer, Several) and all(
        isinstance(item, Quantity) and not symbols(item.node) for item in answer.items
    ):
        nodes = [item.node for item in answer.items]  # type: ignore[union-attr]
        try:
            if answer.kind == "tuple" and len(nodes) == 2 and less(nodes[0], nodes[1]):
                return Intervals(((nodes[0], False, nodes[1], False),))
        except (ArithmeticError, Unreadable):
            return None
        if answer.kind == "set":
            return Intervals(tuple((node, True, node, True) for node in nodes))
    return None


def _read_brackets(text: str, depth: int, commas_separate: bool) -> Answer | None:
    # P(3, 2) is the point (3, 2).
    found = bracketed(re.sub(r"^[A-Z]\s*(?=\(.*,)", "", text))
    if found is None or found[0] in ("\\lfloor", "\\lceil", "{"):
        return None
    opening, inside, closing = found
    if (opening in "[(") != (closing in "])"):
        return None
    if opening == "\\{":
        parts, _ = split(inside, {"|", ":"})
        if len(parts) == 2:
            return _read_condition(parts[0], read_answer(parts[1], depth + 1))
        kind = "set"
    else:
        kind = "bracket" if (opening, closing) == ("[", "]") else "tuple"
    spaced = re.search(r",\s", inside) is not None
    read_inside = inside if not spaced else _THOUSANDS.sub(lambda m: m.group().replace(",", ""), inside)
    parts, separators = split(read_inside, {",", ";"})
    if kind == "set":
        parts = [signed for part in parts for signed in _both_signs(part)]
    if kind != "set" and not separators:
        return None
    items = tuple(read_answer(part, depth + 1, True) for part in parts if part)
    if len(items) != len(parts) and kind != "set":
        return None
    mixed = {opening, closing} & {"[", "]"}
    if mixed and len(items) == 2 and all(isinstance(item, Quantity) and not item.unit for item in items):
        low, high = (item.node for item in items)  # type: ignore[union-attr]
        return Intervals(((low, opening == "[", high, closing == "]"),))
    return Several(kind, items)


def _read_condition(variable: str, condition: Answer) -> Answer | None:
    """Read {x | condition}, where the condition is about x."""
    name = re.sub(r"\\in.*", "", variable, flags=re.DOTALL).strip()
    return condition if isinstance(condition, Intervals) and condition.label == name else None


def _read_matrix(text: str, depth: int, commas_separate: bool) -> Answer | None:
    if (wrapped := bracketed(text)) and wrapped[0] in ("(", "["):
        text = wrapped[1]
    found = _MATRIX.fullmatch(text)
    if found is None or found[2][0] in "vV":
        return None
    factor = read(found[1]) if found[1].strip(" [(") else None
    body = re.sub(r"\\\\\s*$", "", found[3].strip())
    rows = []
    for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", body.replace("\\hline", "")):
        nodes = [read(cell) for cell in row.split("&")]
        rows.append(tuple(node if factor is None else ("mul", factor, node) for node in nodes))
    return Grid(tuple(rows)) if len({len(row) for row in rows}) == 1 else None


def _read_plus_minus(text: str, depth: int, commas_separate: bool) -> Answer | None:
    signs = _both_signs(text)
    return Several("list", tuple(read_answer(signed, depth + 1) for signed in signs)) if len(signs) > 1 else None


def _both_signs(text: str) -> list[str]:
    """Expand \\pm and \\mp into two texts; a text without them stays as it is."""
    if not _PLUS_MINUS.search(text):
        return [text]
    upper = _PLUS_MINUS.sub(lambda m: "+" if m[1] == "pm" else "-", text)
    return [upper, _PLUS_MINUS.sub(lambda m: "-" if m[1] == "pm" else "+", text)]


def _read_ratio(text: str, depth: int, commas_separate: bool) -> Answer | None:
    plain = text.replace(WORDS_OPEN, " ").replace(WORDS_CLOSE, " ").strip()
    if found := _CLOCK.fullmatch(plain):
        return Clock(
            int(found[1] or found[4]), found[2] or "00", re.sub(r"[.\s]", "", (found[3] or found[5] or "").lower())
        )
    parts, colons = split(text, {":", "to"})
    return Ratio(tuple(read(part) for part in parts)) if colons else None
