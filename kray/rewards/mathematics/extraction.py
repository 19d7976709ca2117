"""Finds the final answer of a response.

What stands inside <think>...</think> never counts; neither does a response whose thinking has no end. Then, in this order:

1. The last \\boxed{...}. Boxes with nothing but "and", "or" or a comma between them are one answer of several values. A box
   that was begun after it and never finished, or is empty, means that there is no final answer.
2. What follows the last "####" (GSM8K) on its line, or on the next where it has none. A heading ("#### Final Answer") is no
   such mark.
3. What an explicit statement names: "the answer is 72", "Answer: 72".
4. The response as a whole, when it is one short line.
5. The last mathematics in dollar signs or the last number, with what belongs to it.

Where the first two, or a statement after them, name different answers, all are given: a response that commits to two
different answers has no right one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kray.rewards.mathematics.expressions import FUNCTIONS
from kray.rewards.mathematics.units import SCALES
from kray.rewards.responses import outside_thinking

# An answer without a mark is looked for at the end: long texts are slow to search.
_TAIL_CHARACTERS = 4000
# A response up to this long may be an answer as a whole.
_LINE_CHARACTERS = 200

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]")
_BOX_WITHOUT_BRACES = re.compile(r"\\boxed\s+(\w+)")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:text|mbox|mathrm)\b)[A-Za-z]{2,}")
_NO_WORDS = ("and", "or", "pi", "mod")
_BETWEEN_BOXES = re.compile(r"[\s$,;.&]*(?:\\text\s*\{)?\s*(?:and|or|,|;)?\s*\}?[\s$,;&]*")
_STATEMENT = re.compile(
    r"""(?:\b(?:final|correct|right)\s+)?\b(?:answers?|results?|solutions?)\b[*_\s]*
        (?:\((?:[^()]{0,40})\)[*_\s]*)?
        (?:(?:to\s+(?:the|this)\s+\w+|of\s+(?:the|this)\s+[\w\s]{1,30}|here|therefore|thus|then|must|should|would|will|option|choice)\s+)*
        (?:is|are|be|was|equals|becomes|=|:)[*_]*\s*:?""",
    re.I | re.VERBOSE,
)
_HEADING = re.compile(
    r"(?:step|part|case|final|answer|solution|conclusion|result|summary|verification|check|explanation|question|problem|"
    r"approach|analysis|reasoning|calculation|method|note|given|overview)\b", re.I
)  # fmt: skip
_CLAUSE_END = re.compile(
    r"\n|\.(?=\s|$|\*)|[;!?](?=\s|$)|,?\s+(?:since|because|as|so|which|where|when|while|but|if|given|after|due|for|therefore|thus|not|with)\b"
    r"|,\s+(?:we|the|it|this|he|she|they)\b|\s+[–—(\[]\s*(?=[A-Za-z]{2})",
    re.I,
)
_MATHEMATICS = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = r"(?:\\?\$\s?)?[-+−–]?\s?(?:\\?\$\s?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?(?:\s?\\?%)?"
_RUN = re.compile(rf"(?<![\w.])(?=[-+−–$.\d\\]){_NUMBER}(?:\s+\d+/\d+|\s?/\s?\d+)?")
_JOIN = re.compile(r"\s*(?:,\s*(?:and|or)?|;|\band\b|\bor\b)\s*")
_MATH_WORDS = re.compile(
    r"\\[A-Za-z]+|[\d^_{}()\[\]|+\-−*/=<>≤≥√π×·!%°.,:;'∞²³]|\b(?:sqrt|pi|sin|cos|tan|log|ln|exp|infinity|[A-Za-z])\b|\s"
)
_LEADING_QUANTITY = re.compile(rf"({_RUN.pattern}(?:\s*:\s*\d+)?)\s+(?=[A-Za-z])(?P<word>[A-Za-z]+)")
_NOT_COUNTED = {
    "or",
    "and",
    "to",
    "over",
    "times",
    "plus",
    "minus",
    "percent",
    "of",
    "mod",
    "divided",
    "squared",
    "cubed",
}


@dataclass(frozen=True, slots=True)
class Found:
    """text: a final answer; marked: a box or "####" sets it apart, so that all of it is the answer."""

    text: str
    marked: bool


def final_answers(response: str) -> list[Found]:
    """The final answers that a response commits to, the last first; usually one. No text: there is none."""
    text = outside_thinking(response)
    found = [*_boxed(text), *_hashed(text)]
    if found:
        statement = _statement(text[max(text.rfind("\\boxed"), text.rfind("####"), 0) :].partition("}")[2])
        if statement and _begins_with_value(statement):
            found.append(Found(statement, False))
        return found
    return [Found(_unmarked(text), False)]


def _boxed(text: str) -> list[Found]:
    """The last box, with those that it forms one answer with; nothing without one. Linear in the text's length."""
    boxes, unfinished = _boxes(text)
    if not boxes:
        bare = _BOX_WITHOUT_BRACES.findall(text)
        return [Found(bare[-1], True)] if bare and not unfinished else []
    last = boxes[-1]
    if any(start > last[1] for start in unfinished) or not text[slice(*last)].strip():
        return [Found("", True)]
    joined = [last]
    for box in reversed(boxes[:-1]):
        between = _BETWEEN_BOXES.fullmatch(text, box[1] + 1, text.rfind("\\", 0, joined[0][0]))
        if between is None:
            break
        joined.insert(0, box)
    contents = list(dict.fromkeys(text[slice(*box)].strip() for box in joined))
    return [Found(contents[0] if len(contents) == 1 else " , ".join(f"{{{content}}}" for content in contents), True)]


def _boxes(text: str) -> tuple[list[tuple[int, int]], list[int]]:
    """Begin and end of what each complete box holds, in order and without those inside others' braces; begins of others."""
    open_braces: list[int] = []
    boxes: list[tuple[int, int]] = []
    for mark in _BRACES.finditer(text):
        brace = mark.group()
        if brace in ("\\{", "\\}"):
            continue
        if brace != "}":
            open_braces.append(mark.end() if len(brace) > 1 else -1)
        # Of a box within a box the inner one is the answer.
        elif open_braces and (start := open_braces.pop()) >= 0 and not (boxes and boxes[-1][0] > start):
            boxes.append((start, mark.start()))
    return boxes, [start for start in open_braces if start >= 0]


def _hashed(text: str) -> list[Found]:
    """What follows the last "####" that is no heading, and those with nothing but their answers before it."""
    found: list[Found] = []
    begin = len(text)
    for mark in reversed(list(re.finditer(r"####+", text))):
        line = text[mark.end() :].strip().partition("\n")[0].strip()
        behind = text[mark.end() : begin].strip()
        if found and behind != line:
            break
        if line and _is_heading(line):
            continue
        found.append(Found(_statement(line) or _leading_quantity(line) or line, True))
        begin = mark.start()
    return found


def _is_heading(line: str) -> bool:
    bare = line.strip("*_ #")
    if bare.endswith(":") and not any(c.isdigit() for c in bare):
        return True
    if _HEADING.match(bare) is None:
        return False
    statement = _statement(bare)
    return not statement or not _begins_with_value(statement)


def _statement(text: str) -> str:
    """What the last explicit statement names as the answer; "" without one."""
    text = text[-_TAIL_CHARACTERS:]
    for found in reversed(list(_STATEMENT.finditer(text))):
        rest = text[found.end() :].lstrip(" *_:\n")
        if rest:
            return _clause(rest)
    return ""


def _clause(text: str) -> str:
    """The answer at the beginning of `text`: mathematics in dollar signs, or what stands there up to the end of the clause."""
    text = text.replace("**", "")
    mathematics = _MATHEMATICS.match(text)
    if mathematics and not re.match(r"\s*(?:and|or|,\s*\$)", text[mathematics.end() :]):
        following = re.match(r"\s*(?:\\%|%)", text[mathematics.end() :])
        return next(filter(None, mathematics.groups())) + (following.group() if following else "")
    end = _CLAUSE_END.search(text)
    clause = (text[: end.start()] if end else text).strip()
    return _leading_quantity(clause) or clause


def _leading_quantity(text: str) -> str:
    """The number and its noun at the beginning, where more words with numbers follow: "61 people in 3 cars"."""
    found = _LEADING_QUANTITY.match(text.strip())
    if (
        found is None
        or not any(c.isdigit() for c in text[found.end() :])
        or found["word"].lower() in _NOT_COUNTED | SCALES.keys()
    ):
        return ""
    following = re.match(r"\s*(?:and|or)?\s*\d", text.strip()[found.end() :])
    return "" if following else found.group()


def _begins_with_value(text: str) -> bool:
    return (
        re.match(r"[\s{(\[$]*(?:[-+−]?\s*(?:\$\s*)?[\d.]*\d|\\(?:d?frac|sqrt|pi|pm|text|left|\{|infty|begin))", text)
        is not None
    )


def _unmarked(text: str) -> str:
    stripped = text.strip()
    statement = _statement(stripped)
    if statement:
        return statement
    bare = stripped.strip("*_ ").lstrip("= ")
    if "," in bare and re.search(r"\d[\s)]*=", bare):  # steps of a calculation
        return _last_value(bare)
    if "\n" not in bare and len(bare) <= _LINE_CHARACTERS and not _is_sentence(bare):
        return bare
    return _last_value(stripped[-_TAIL_CHARACTERS:])


def _is_sentence(line: str) -> bool:
    """Whether a line with numbers has words other than those behind the last of them (72 clips)."""
    digits = [place for place, character in enumerate(line) if character.isdigit()]
    words = [
        m.start()
        for m in _WORD.finditer(line)
        if m.group().lower() not in FUNCTIONS and m.group().lower() not in _NO_WORDS
    ]
    return bool(digits) and any(word < digits[-1] for word in words)


def _last_value(text: str) -> str:
    """The last mathematics in dollar signs, or the last number with what belongs to it."""
    found = _MATHEMATICS.search(text) and list(_MATHEMATICS.finditer(text))[-1]
    runs = [run for run in _RUN.finditer(text) if any(c.isdigit() for c in run.group())]
    if found and not any(run.start() >= found.end() for run in runs):
        return next(filter(None, found.groups()))
    if not runs:
        return ""
    last = runs[-1]
    begin, end = _grown(text, last.start(), last.end())
    for run in reversed(runs[:-1]):
        if run.end() <= begin and _JOIN.fullmatch(text, run.end(), begin):
            begin = run.start()
        elif run.end() <= begin:
            break
    return text[begin:end].strip(" .,;:*_=").strip()


def _grown(text: str, begin: int, end: int) -> tuple[int, int]:
    """The place of a number, with the mathematics directly around it: 4\\sqrt{2}, not 2."""
    pieces = [(m.start(), m.end()) for m in _mathematics(text)]
    for start, stop in reversed(pieces):
        if start <= begin and stop >= end:
            piece = text[start:stop]
            last_equality = piece.rfind("=", 0, begin - start + 1)
            return (
                (start + last_equality + 1, stop)
                if last_equality >= 0 and "=" not in piece[last_equality + 1 :]
                else (start, stop)
            )
    return begin, end


def _mathematics(text: str) -> Iterator[re.Match[str]]:
    """Stretches of a text that hold no words of a language."""
    return re.finditer(rf"(?:{_MATH_WORDS.pattern})+", text)
