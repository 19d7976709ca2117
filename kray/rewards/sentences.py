"""The final answer of a response that states it in a sentence, as chat models do.

Where it is looked for, the first that is there:
1. a mark: \\boxed{...} or ####, as the math verifier reads them;
2. what follows the last "answer is", "answer:" or a heading "Answer" (also result, solution), up to an empty line;
3. what stands before "is the answer" in the last line;
4. the last paragraph.
From there it is taken as it stands, then line, sentence, clause and value alone, without Markdown, quotes, dollar signs and
a full stop at the end. One place is read in these ways; an answer that is stated elsewhere, or two of which one is right, are
not found.
"""

from __future__ import annotations

import re

from kray.rewards.mathematics import final_answer

_NOUN = r"(?:answer|result|solution)s?\b"
_CUE = re.compile(
    rf"\b{_NOUN}[*_`]*(?:[^\S\n]*[:=]|[^\n.:=?!]{{0,60}}?\b(?:is|are|be)\b[*_`]*:?|[^\S\n]*(?=\n))", re.IGNORECASE
)
_SO = re.compile(r"(?:so|thus|then|hence|therefore)\b[,:]?\s*", re.IGNORECASE)
_IS_THE_ANSWER = re.compile(rf"\b(?:is|are)\s+(?:the|my|our)\s+(?:\w+\s+)?{_NOUN}", re.IGNORECASE)
_FENCED = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_EMPTY_LINE = re.compile(r"\n\r?\n")  # a line of spaces may be a row of a grid
_BOLD_ENDS = re.compile(r"\A(?:[\s:]|[*]+(?=\s|\Z))+")  # after a cue in bold: "**Answer:** 42"
_SENTENCE_END = re.compile(r"(?<=[.!?])[*_`]*\s")
_CLAUSE_END = re.compile(
    r"(?<!\s)(?:[,;]?\s+(?:because|since|as|so|which|for|where|with)\b|\s+\((?=[a-z]{2}))", re.IGNORECASE
)
_VALUE = re.compile(r".*(?:[=:]|\b(?:is|are|equals)\b)(?=\s)", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"[-+]?[0-9][0-9.,/%]*")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}|\\\((.*)\\\)|\\\[(.*)\\\]|(__?)([^_]+)\4", re.DOTALL)
_WRAPPINGS = 8  # at most are taken off; each gives one more reading to judge
_PAIRS = {a: b for a, b in zip("*`$\"'\u201c\u2018", "*`$\"'\u201d\u2019", strict=True)}
_AROUND = " \t\r\n" + "".join({*_PAIRS, *_PAIRS.values()})


def readings(text: str) -> list[str]:
    """The final answer of a text in the ways that it can be read, each once and at least one.

    The last is the one that a wrong answer is judged by: the barest of one line, all lines of several. The whole text is
    among them where nothing says which part of it is the answer.
    """
    whole = text.strip()
    marked, is_marked = final_answer(text)
    if is_marked:
        found = [f"{marked}.", *_barer(marked)] if marked else []  # final_answer takes a full stop off
    elif (stated := _after_cue(whole)) is not None:
        found = _narrowed(stated)
    elif is_answer := _IS_THE_ANSWER.search(line := _last_line(whole)):
        found = _barer(_SO.sub("", line[: is_answer.start()], count=1))
    else:
        found = [whole, *_last_paragraph(whole)]
    found = [reading for reading in found if reading] or [""]
    return [*dict.fromkeys(reading for reading in found if reading != found[-1]), found[-1]]


def _after_cue(text: str) -> str | None:
    """What follows the last cue that something follows; None without one."""
    for cue in reversed(list(_CUE.finditer(text))):
        if after := _BOLD_ENDS.sub("", text[cue.end() :]):
            return after
    return None


def _narrowed(stated: str) -> list[str]:
    if fenced := _FENCED.match(stated):
        return [fenced[1].removesuffix("\n")]
    paragraph = _EMPTY_LINE.split(stated, maxsplit=1)[0]
    line = paragraph.partition("\n")[0]
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    clause = _CLAUSE_END.split(sentence, maxsplit=1)[0]
    return _in_order([stated, paragraph, line, sentence, clause], paragraph)


def _last_paragraph(text: str) -> list[str]:
    fenced = _FENCED.findall(text)
    paragraph = (fenced[-1] if fenced else _EMPTY_LINE.split(text)[-1]).strip()
    line = _last_line(paragraph)
    before = _VALUE.match(line)
    value = line[before.end() :] if before else ""
    # A line without a number at its end may be the answer as it stands: "There is fog".
    is_number = _NUMBER.fullmatch(_barer(value)[-1])
    return _in_order([paragraph, line, value] if is_number else [value, paragraph, line], paragraph)


def _in_order(found: list[str], paragraph: str) -> list[str]:
    """From the most to the least, but a paragraph of several lines at the end: wrong rows of a grid are judged together."""
    barer = [reading for text in found for reading in _barer(text)]
    return [*barer, _barer(paragraph)[-1]] if "\n" in paragraph.strip() else barer


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2].strip()


def _barer(text: str) -> list[str]:
    """A text, and then with less and less of what is wrapped around an answer."""
    found = [text]
    for _ in range(_WRAPPINGS):
        if wrapped := _WRAPPED.fullmatch(text):
            text = next(part for part in (*wrapped.group(1, 2, 3), wrapped[5]) if part is not None)
        elif text != text.strip():
            text = text.strip()
        elif len(text) > 1 and _PAIRS.get(text[0]) == text[-1]:
            text = text[1:-1]
        elif text.endswith((".", "!")):
            text = text[:-1]
        elif text != text.strip(_AROUND):
            text = text.strip(_AROUND)
        else:
            break
        found.append(text)
    return found
