"""Find the final answer of a response.

Text inside <think>...</think> never counts. The answer is, in this order:

1. The last \\boxed{...}. Boxes separated only by "and", "or" or a comma are one answer of several values. A later box that
   is unfinished or empty means that there is no final answer; so does mathematics around a box that changes its value
   ($-\\boxed{61}$), and a word that retracts it.
2. The text after the last "####" (GSM8K) on its line, or on the next if its line has none. A heading ("#### Final Answer")
   is not such a mark.
3. The text in <answer></answer>.
4. What an explicit statement names: "the answer is 72", "Answer: 72".
5. The whole response, when it is one short line.
6. The last mathematics in dollar signs or the last number, with what belongs to it, unless its sentence is a negation or a
   question.

Where marks, a statement behind them or an alternative ("\\boxed{61} or 62") name different answers, all are returned: a
response that commits to two different answers is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kray.rewards.mathematics.box_context import alternative, changed, retracted
from kray.rewards.mathematics.statements import (
    MATHEMATICS,
    begins_with_value,
    last_value,
    later_statement,
    leading_quantity,
    statement,
)
from kray.rewards.mathematics.tokens import FUNCTIONS
from kray.rewards.responses import ANSWER_TAG, outside_thinking

# An answer without a mark is searched for at the end only: long texts are slow to search.
_TAIL_CHARACTERS = 4000
# A response up to this long may be an answer as a whole.
_LINE_CHARACTERS = 200
# Characters of the shortest text that can hold a statement.
_SHORTEST_STATEMENT = 6

_TAGGED = re.compile(ANSWER_TAG, re.DOTALL | re.I)
_BLANKS, _EMPTY_LINES = re.compile(r"[ \t]{3,}"), re.compile(r"\n\s*\n\s*\n")
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>")
_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\[{}\\]|[{}]")
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)")
_BOX_WITHOUT_BRACES = re.compile(r"\\boxed\s+(\w+)")
_JOINING = {"", "and", "or", "maybe", "perhaps", "possibly", "also", "either", "alternatively", "even"}
# A variable in front of a box.
_LABEL = re.compile(r"([A-Za-z](?:_\{?\w\}?)?)\s*=\s*\$?\s*\Z")
_HASHES = re.compile(r"####+")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:text|mbox|mathrm)\b)[A-Za-z]{2,}")
_NO_WORDS = ("and", "or", "pi", "mod")
_HEADING = re.compile(
    r"(?:step|part|case|final|answer|solution|conclusion|result|summary|verification|check|explanation|question|problem|"
    r"approach|analysis|reasoning|calculation|method|note|given|overview)\b",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A final answer.

    Attributes:
        text: "" without one.
        marked: Whether a box, "####" or a tag identifies it.
        incidental: Whether it counts only if it is a value.
        parts: Contents of an answer's several boxes, which may all be the same value.
    """

    text: str
    marked: bool
    incidental: bool = False
    parts: tuple[str, ...] = ()


def final_answers(response: str) -> list[Found]:
    """Find the answers that a response commits to.

    Returns:
        At least one answer, usually one; all must be right. An empty text means that there is none.
    """
    text = outside_thinking(response)
    # Long runs of blanks are slow to search.
    if "   " in text or "\n\n\n" in text or "\t\t" in text:
        text = _BLANKS.sub("  ", _EMPTY_LINES.sub("\n\n", text))
    if "<|" in text:
        text = _SPECIAL_TOKEN.sub(" ", text)
    tags = list(_TAGGED.finditer(text)) if "</" in text else []
    if tags:
        inside, outside = tags[-1][1], text[: tags[-1].start()] + "\n" + text[tags[-1].end() :]
        boxed = _boxed(outside)[0] if "box" in outside else []
        return [*(_marked_answers(inside) or [Found(_unmarked(inside), True)]), *boxed]
    return _marked_answers(text) or [Found(_unmarked(text), False)]


def _marked_answers(text: str) -> list[Found]:
    """Return the answers in boxes and behind "####", and a later statement; nothing without a mark."""
    boxed, behind_boxes = _boxed(text) if "box" in text else ([], 0)
    hashed, behind_hashes = _hashed(text) if "####" in text else ([], 0)
    found = [*boxed, *hashed]
    behind = text[max(behind_boxes, behind_hashes) :]
    if found and len(behind) > _SHORTEST_STATEMENT and (stated := later_statement(behind[-_TAIL_CHARACTERS:])):
        found.append(Found(stated, False, incidental=True))
    return found


def _boxed(text: str) -> tuple[list[Found], int]:
    """Return the answers of the last box, with those joined to it, and where it ends. Linear in the length of the text."""
    boxes, unfinished = _boxes(text)
    if not boxes:
        bare = _BOX_WITHOUT_BRACES.findall(text)
        return ([Found(bare[-1], True)] if bare and not unfinished else []), 0
    _, inside, end = boxes[-1]
    if any(start > end for start in unfinished) or not text[inside:end].strip():
        return [Found("", True)], end
    joined = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if not _joins(text[box[2] + 1 : joined[0][0]]):
            break
        joined.insert(0, box)
    if changed(text, joined[0][0], end + 1) or retracted(text, joined[0][0], end + 1):
        return [Found("", True)], end
    labels = [_LABEL.search(text[max(0, box[0] - 20) : box[0]]) for box in joined]
    contents = [_BOX_COMMAND.sub("", text[box[1] : box[2]]).strip() for box in joined]
    if len(joined) > 1 and all(labels):
        contents = [f"{label[1]} = {content}" for label, content in zip(labels, contents, strict=True) if label]
    contents = list(dict.fromkeys(contents))
    answer = contents[0] if len(contents) == 1 else " , ".join(f"{{{content}}}" for content in contents)
    other = alternative(text[end + 1 :])
    parts = tuple(contents) if len(contents) > 1 else ()
    return [Found(answer, True, parts=parts), *([Found(other, False, incidental=True)] if other else [])], end


def _boxes(text: str) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Return the complete outermost boxes and where unfinished ones begin.

    Each box is (begin of its command, begin and end of its content).
    """
    open_braces: list[tuple[int, int]] = []
    boxes: list[tuple[int, int, int]] = []
    first = _BOX_COMMAND.search(text)
    for mark in _BRACES.finditer(text, first.start() if first else len(text)):
        brace = mark.group()
        if brace in ("\\{", "\\}", "\\\\"):
            continue
        if brace != "}":
            open_braces.append((mark.start(), mark.end() if len(brace) > 1 else -1))
        elif open_braces and (box := open_braces.pop())[1] >= 0:
            # A box within a box belongs to the outer one's content.
            while boxes and boxes[-1][0] > box[0]:
                boxes.pop()
            boxes.append((*box, mark.start()))
    return boxes, [start for start, inside in open_braces if inside >= 0]


def _joins(between: str) -> bool:
    """Return whether the text between two boxes makes one answer of them."""
    if len(between) > _LINE_CHARACTERS:
        return not between.strip()
    between = _LABEL.sub("", between)
    words = re.sub(r"\\(?:text|mbox|mathrm|quad|qquad|[,;: ])|[\s$,;.&{}()\\]", " ", between)
    return set(words.lower().split()) <= _JOINING


def _hashed(text: str) -> tuple[list[Found], int]:
    """Return the answer behind the last "####" that is not a heading, with those directly before it, and where it ends."""
    found: list[Found] = []
    begin = end = len(text)
    for mark in reversed(list(_HASHES.finditer(text))):
        rest = text[mark.end() :].lstrip()
        line = rest.partition("\n")[0].strip()
        if found and text[mark.end() : begin].strip() != line:
            break
        if line and ("\\boxed" in line or _is_heading(line)):
            continue
        if not found:
            end = len(text) - len(rest) + len(rest.partition("\n")[0])
        found.append(Found(statement(line) or leading_quantity(line) or line.strip("*_ "), True))
        begin = mark.start()
    return found, end if found else 0


def _is_heading(line: str) -> bool:
    bare = line.strip("*_ #")
    if bare.endswith(":") and not any(c.isdigit() for c in bare):
        return True
    return _HEADING.match(bare) is not None and not begins_with_value(statement(bare))


def _unmarked(text: str) -> str:
    stripped = text.strip()
    tail = stripped[-_TAIL_CHARACTERS:]
    if (stated := statement(tail)) is not None:
        return stated
    bare = stripped.strip("*_ #`").lstrip("= ")
    # Steps of a calculation.
    if "," in bare and re.search(r"\d[\s)]*=", bare):
        return last_value(bare[-_TAIL_CHARACTERS:])
    if "\n" not in bare and len(bare) <= _LINE_CHARACTERS and not _is_sentence(bare):
        return bare
    return last_value(tail)


def _is_sentence(line: str) -> bool:
    """Return whether a line has words besides its numbers, other than those behind the last number (72 clips)."""
    digits = [place for place, character in enumerate(line) if character.isdigit()]
    words = [
        m.start()
        for m in _WORD.finditer(MATHEMATICS.sub(lambda m: " " * len(m.group()), line))
        if m.group().lower() not in FUNCTIONS and m.group().lower() not in _NO_WORDS
    ]
    return (bool(digits) and any(word < digits[-1] for word in words)) or (bool(words) and "$" in line)
