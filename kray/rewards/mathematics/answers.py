"""Reads a final answer into what it says: a quantity, several values, a tuple, an interval, an equation, a word.

`read_answer` takes what `notation.normalize` gave. Nothing is read in part: an answer of which something is not understood
is `Words`, which are equal to the same words only.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from kray.rewards.mathematics import units
from kray.rewards.mathematics.evaluation import constant, less
from kray.rewards.mathematics.expressions import FUNCTIONS, Node, Unreadable, read, symbols
from kray.rewards.mathematics.kinds import (
    INFINITY,
    MINUS_INFINITY,
    REALS,
    Answer,
    Clock,
    Equation,
    Grid,
    Inequality,
    Intervals,
    Named,
    Quantity,
    Ratio,
    Several,
    Words,
)
from kray.rewards.mathematics.notation import WORDS_CLOSE, WORDS_OPEN, bracketed, mark_connectives, split, squeezed
from kray.rewards.mathematics.numbers import same_value
from kray.rewards.mathematics.quantities import compound, read_quantity

# Of answers within each other.
_DEPTH = 12


_PHRASES: dict[str, Answer] = {
    **dict.fromkeys(
        ("no solution", "no solutions", "no real solution", "no real solutions", "none", "\\emptyset", "empty set", "\\{\\}",
         "the empty set", "no answer", "no such number"), Words("none")),
    **dict.fromkeys(("dne", "does not exist", "undefined", "not defined", "the limit does not exist", "doesn't exist"),
                    Words("undefined")),
    **dict.fromkeys(("\\mathbb{R}", "all real numbers", "all reals", "\\mathbbR"), REALS),
}  # fmt: skip
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
_LEADING = re.compile(
    r"(?:(?:the|so|thus|therefore|hence|final|correct|our|my)\s+)*(?:answer|result|solution|value)s?\s*(?:is|are|=|:)\s*",
    re.I,
)
_APPROXIMATE = re.compile(r"(?:approximately|approx\.?|about|roughly|exactly|only)\s+(?=[-+.\d\\(])", re.I)
_LABEL = re.compile(
    r"""(?:\\?[A-Za-z]+\s*)?(?:
      (?:\\[a-zA-Z]+|[A-Za-z])(?:_(?:\{[^{}]*\}|\w))?'*                       # x, x_1, f', \alpha
      (?:\((?:[\w\s,=<>|+\-]|\\[a-zA-Z]+)*\))?                                # f(x), P(X = 1)
      |(?:m\s*)?\\(?:angle|triangle|measuredangle)\s*[A-Z]{1,4}
      |\|?[A-Z]{2,4}\|?|\[[A-Z]{3,4}\]|\\overline\s*\{[A-Z]{2}\}|\|[A-Za-z]\|
      |\\frac\s*\{d\w?\}\s*\{d\w\}
      |\(\s*[a-z](?:_\w)?(?:\s*,\s*[a-z](?:_\w)?)+\s*\)
    )""",
    re.VERBOSE,
)
_RELATIONS = frozenset(("=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in", "\\equiv"))
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_CLOCK = re.compile(r"(\d{1,2})\s*:\s*([0-5]\d)\s*((?:[ap]\.?\s*m\.?)?)", re.I)
_MATRIX = re.compile(
    r"(.*?)\\begin\s*\{((?:[pbBvV]|small)?matrix|array)\}(?:\s*\{[lcr|\s]*\})?(.*)\\end\s*\{\2\}", re.DOTALL
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def read_answer(text: str, depth: int = 0, commas_separate: bool = False) -> Answer:
    """Read normalized text.

    Args:
        text: what `notation.normalize` gave.
        depth: of this answer within others.
        commas_separate: 1,000 are two numbers, not a thousand.
    """
    text = _bare(text)
    words = text.replace(WORDS_OPEN, "").replace(WORDS_CLOSE, "").strip(" .")
    if (phrase := _PHRASES.get(words.lower())) or (phrase := _PHRASES.get(words)):
        return phrase
    if depth > _DEPTH:
        return _as_words(text)
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
            found = reading(text, depth, commas_separate)
        except (Unreadable, ArithmeticError):
            continue
        if found is not None:
            return found
    if _is_words(text):
        return _as_words(text)
    try:
        return read_quantity(text)
    except Unreadable:
        return _as_words(text)


def _bare(text: str) -> str:
    """Without what only wraps an answer: outer braces, one text command around all, "The answer is", a full stop."""
    while True:
        before = text
        text = text.strip().rstrip(".,;:").lstrip(":,;").strip()
        if (inside := bracketed(text)) and inside[0] == "{":
            text = inside[1]
        if text[:1] == WORDS_OPEN and WORDS_CLOSE not in text[:-1] and text[-1:] == WORDS_CLOSE:
            text = mark_connectives(text[1:-1])
        plain = text.replace(WORDS_OPEN, " ", 1).replace(WORDS_CLOSE, " ", 1) if text[:1] == WORDS_OPEN else text
        for leading in (_LEADING, _APPROXIMATE):
            if (found := leading.match(plain.lstrip())) and plain.lstrip()[found.end() :].strip():
                text = plain.lstrip()[found.end() :]
        if text == before:
            return text


def _is_words(text: str) -> bool:
    """Whether text is words rather than a product of variables."""
    if not re.fullmatch(rf"[A-Za-z{WORDS_OPEN}{WORDS_CLOSE}'\-.\s]+", text):
        return False
    found = re.findall(r"[A-Za-z]+", text)
    if all(word.lower() in FUNCTIONS or word.lower() in ("pi", "infinity") or len(word) == 1 for word in found):
        return False
    return WORDS_OPEN in text or any(len(word) > 3 or word.lower() in _SHORT_WORDS for word in found)


def _as_words(text: str) -> Words:
    plain = text.replace(WORDS_OPEN, "").replace(WORDS_CLOSE, "")
    if re.fullmatch(r"[A-Za-z'\-.,()\s]+", plain):
        return Words(
            " ".join(word for word in re.findall(r"[a-z'\-]+", plain.lower()) if word not in ("the", "a", "an"))
        )
    return Words(squeezed(text))


def _read_several(text: str, depth: int, commas_separate: bool) -> Answer | None:
    if not commas_separate:
        text = _THOUSANDS.sub(lambda m: m.group().replace(",", ""), text)
    parts, separators = split(text, {",", ";", "or", "and"})
    parts = [part for part in parts if part]
    if not separators or not parts:
        return None
    items = [read_answer(part, depth + 1, commas_separate) for part in parts]
    if len(items) == 1:
        return items[0]
    connectives = {separator for separator in separators if separator in ("or", "and")}
    if all(isinstance(item, Intervals) and item.label for item in items) and len({item.label for item in items}) == 1:  # type: ignore[union-attr]
        if connectives == {"or"} and "," not in separators:
            return Intervals(tuple(piece for item in items for piece in item.pieces), items[0].label)  # type: ignore[union-attr]
        if connectives == {"and"} and len(items) == 2:
            return _intersection(*items)  # type: ignore[arg-type]
    if all(isinstance(item, Quantity) and item.unit for item in items) and connectives <= {"and"} and len(items) == 2:
        first, second = items
        if first.unit.measures(second.unit) and first.unit.scale > second.unit.scale:  # type: ignore[union-attr]
            return compound(items)  # type: ignore[arg-type]
    if isinstance(items[0], Named) and all(isinstance(item, Quantity) for item in items[1:]):
        return Several("list", (items[0].value, *items[1:]))  # x = 3, 4, 5
    if isinstance(items[0], Named) and all(isinstance(item, Named) and item.label == items[0].label for item in items):
        return Several("list", tuple(item.value for item in items))  # type: ignore[union-attr]
    return Several("list", tuple(items))


def _intersection(a: Intervals, b: Intervals) -> Answer | None:
    """Of two intervals of which one is open to the right and one to the left: x > 1 and x < 3."""
    if len(a.pieces) != 1 or len(b.pieces) != 1:
        return None
    low = next((piece for piece in (*a.pieces, *b.pieces) if piece[2] == INFINITY), None)
    high = next((piece for piece in (*a.pieces, *b.pieces) if piece[0] == MINUS_INFINITY), None)
    if low is None or high is None or not less(low[0], high[2]):
        return None
    return Intervals(((low[0], low[1], high[2], high[3]),), a.label)


def _read_relation(text: str, depth: int, commas_separate: bool) -> Answer | None:
    sides, relations = split(text, _RELATIONS)
    if not relations or not all(sides):
        return None
    if set(relations) <= {"=", "\\approx", "\\equiv", "\\in"}:
        return _read_equality(sides, relations, depth, commas_separate)
    if set(relations) <= {"<", ">", "\\le", "\\ge"} and len(sides) <= 3:
        return _read_inequality(sides, relations)
    if relations == ["\\ne"] and is_label(sides[0]):
        point = read(sides[1])
        constant(point)
        return Intervals(((MINUS_INFINITY, False, point, False), (point, False, INFINITY, False)), sides[0])
    return None


def is_label(text: str) -> bool:
    """Whether text names a thing whose value may follow: x, f(x), \\angle ABC, words."""
    if text[:1] == WORDS_OPEN and WORDS_CLOSE not in text[:-1] and text[-1:] == WORDS_CLOSE:
        return True
    return _LABEL.fullmatch(text.strip()) is not None or _is_words(text)


def _read_equality(sides: list[str], relations: list[str], depth: int, commas_separate: bool) -> Answer | None:
    """label = value, steps that end in a value, an equation. Steps that are not equal say nothing."""
    if is_label(sides[0]):
        rest = sides[1:]
        value = (
            read_answer(rest[0], depth + 1, commas_separate)
            if len(rest) == 1
            else _read_equality(rest, relations[1:], depth, commas_separate)
        )
        return None if value is None else Named(re.sub(r"\s", "", sides[0]), value)
    if "\\in" in relations or "\\equiv" in relations:
        return None
    steps = [read_quantity(side) for side in sides]
    if all(_agree(first, second) for first, second in pairwise(steps)):
        # The value before a rounding is the answer; the steps of a calculation end in it.
        exact = [step for step in steps if not step.decimal]
        return (
            Several("steps", (steps[-1], *exact))
            if "\\approx" in relations or any(s.decimal for s in steps)
            else steps[-1]
        )
    if len(steps) == 2 and relations == ["="] and symbols(steps[0].node) | symbols(steps[1].node):
        return Equation(("add", steps[0].node, ("neg", steps[1].node)))
    return Words(f"contradiction:{'='.join(sides)}")


def _agree(a: Quantity, b: Quantity) -> bool:
    """Whether two steps of a calculation are equal, or one is the other rounded to at least three digits."""
    if same_value(_scaled(a), _scaled(b)):
        return True
    if symbols(a.node) | symbols(b.node):
        return False
    for rounded, other in ((a, b), (b, a)):
        if len(rounded.decimal.replace(".", "").lstrip("0")) >= 3:
            places = len(rounded.decimal.partition(".")[2])
            half = ("num", Fraction(1, 2 * 10**places))
            gap = ("fn", "abs", ("add", rounded.node, ("neg", other.node)))
            if not less(half, gap):
                return True
    return False


def _scaled(quantity: Quantity) -> Node:
    percent = Fraction(1, 100) if quantity.unit.measures(units.PERCENT) else Fraction(1)
    return ("mul", quantity.node, ("num", quantity.unit.scale * percent))


def _read_inequality(sides: list[str], relations: list[str]) -> Answer | None:
    if any(relation[-1] in ">e" and relation != "\\le" for relation in relations):  # from right to left
        if not all(relation in (">", "\\ge") for relation in relations):
            return None
        sides, relations = sides[::-1], relations[::-1]
    closed = [relation in ("\\le", "\\ge") for relation in relations]
    nodes = [read(side) for side in sides]
    variable = [number for number, node in enumerate(nodes) if node[0] == "sym"]
    constants = [number for number, node in enumerate(nodes) if not symbols(node)]
    if len(nodes) == 3:
        if variable != [1] or constants != [0, 2] or not less(nodes[0], nodes[2]):
            return None
        return Intervals(((nodes[0], closed[0], nodes[2], closed[1]),), nodes[1][1])
    if len(constants) == 2:
        return Words(f"inequality:{'<'.join(sides)}")
    positive = ("add", nodes[1], ("neg", nodes[0]))
    if variable == [0] and constants:
        return Intervals(((MINUS_INFINITY, False, nodes[1], closed[0]),), nodes[0][1], positive)
    if variable == [1] and constants:
        return Intervals(((nodes[0], closed[0], INFINITY, False),), nodes[1][1], positive)
    return Inequality(positive, not closed[0])


def _read_union(text: str, depth: int, commas_separate: bool) -> Answer | None:
    parts, unions = split(text, {"\\cup", "\\setminus"})
    if not unions:
        return None
    if unions == ["\\setminus"] and as_intervals(read_answer(parts[0], depth + 1)) == REALS:
        hole = read_answer(parts[1], depth + 1)
        points = [item.node for item in hole.items if isinstance(item, Quantity)] if isinstance(hole, Several) else []
        if isinstance(hole, Quantity):
            points = [hole.node]
        ends = [MINUS_INFINITY, *_sorted(points), INFINITY]
        return Intervals(tuple((a, False, b, False) for a, b in pairwise(ends))) if points else None
    pieces: list[tuple[Node, bool, Node, bool]] = []
    for part in parts:
        item = as_intervals(read_answer(part, depth + 1, commas_separate))
        if item is None or "\\setminus" in unions:
            return None
        pieces += item.pieces
    return Intervals(tuple(pieces))


def _sorted(nodes: list[Node]) -> list[Node]:
    ordered: list[Node] = []
    for node in nodes:
        ordered.insert(next((i for i, other in enumerate(ordered) if less(node, other)), len(ordered)), node)
    return ordered


def as_intervals(answer: Answer) -> Intervals | None:
    """An answer as a union of intervals: (1, 2) may be one; {1} is a point."""
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
    found = bracketed(text)
    if found is None or found[0] in ("\\lfloor", "\\lceil", "{"):
        return None
    opening, inside, closing = found
    if opening == "\\{":
        parts, _ = split(inside, {"|", ":"})
        if len(parts) == 2:
            return read_answer(parts[1], depth + 1)
        kind = "set"
    else:
        kind = "bracket" if (opening, closing) == ("[", "]") else "tuple"
    spaced = re.search(r",\s", inside) is not None
    read_inside = inside if not spaced else _THOUSANDS.sub(lambda m: m.group().replace(",", ""), inside)
    parts, separators = split(read_inside, {",", ";"})
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
    if not _PLUS_MINUS.search(text):
        return None
    upper = _PLUS_MINUS.sub(lambda m: "+" if m[1] == "pm" else "-", text)
    lower = _PLUS_MINUS.sub(lambda m: "-" if m[1] == "pm" else "+", text)
    return Several("list", (read_quantity(upper), read_quantity(lower)))


def _read_ratio(text: str, depth: int, commas_separate: bool) -> Answer | None:
    plain = text.replace(WORDS_OPEN, " ").replace(WORDS_CLOSE, " ").strip()
    if found := _CLOCK.fullmatch(plain):
        return Clock(int(found[1]), found[2], re.sub(r"[.\s]", "", found[3].lower()))
    parts, colons = split(text, {":", "to"})
    return Ratio(tuple(read(part) for part in parts)) if colons else None
