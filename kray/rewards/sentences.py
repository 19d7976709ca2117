"""Extract the final answer of a response that states it in a sentence, as chat models do.

The answer is taken from the first of these that is present:

1. a mark: \\boxed{...} or ####, as the math verifier reads them;
2. the text behind the last "answer is", "answer:" or a heading "Answer" (also result, solution), up to an empty line;
3. the text before "is the answer" in the last line;
4. the last paragraph.

That text is a candidate as it stands, and so are its first line, sentence, clause and value, without Markdown, quotes, dollar
signs and a final full stop; and the yes, no, true or false with which it, or a response without 1 to 3, begins. Only these
places are read: an answer stated elsewhere, or two answers of which one is right, are not found.
"""

from __future__ import annotations

import re

from kray.rewards.mathematics import final_answer
from kray.rewards.responses import FENCED, is_answer_pattern, last_line, texts_behind

_NOUN = r"(?:answer|result|solution)s?\b"
_CUE = re.compile(
    rf"\b{_NOUN}[*_`]*(?:[^\S\n]*[:=]|[^\n.:=?!]{{0,60}}?\b(?:is|are|be)\b[*_`]*:?|[^\S\n]*(?=\n))", re.IGNORECASE
)
_SO = re.compile(r"(?:so|thus|then|hence|therefore)\b[,:]?\s*", re.IGNORECASE)
_IS_THE_ANSWER = re.compile(rf"\b(?:is|are){is_answer_pattern(_NOUN)}", re.IGNORECASE)
# A line of spaces does not count: it may be a row of a grid.
_EMPTY_LINE = re.compile(r"\n\r?\n")
# After a cue in bold: "**Answer:** 42".
_BOLD_ENDS = re.compile(r"\A(?:[\s:]|[*]+(?=\s|\Z))+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[*_`]*\s")
_CLAUSE_END = re.compile(
    r"(?<!\s)(?:[,;]?\s+(?:because|since|as|so|which|for|where|with)\b|\s+\((?=[a-z]{2}))", re.IGNORECASE
)
# "No, it does not": the word that a sentence opens with is its answer.
_VERDICT = re.compile(r"\b(yes|no|true|false)\b[*_`]*\s*(?=[,.;:!?\u2013\u2014]|-\s|\Z)", re.IGNORECASE)
_VALUE = re.compile(r".*(?:[=:]|\b(?:is|are|equals)\b)(?=\s)", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"[-+]?[0-9][0-9.,/%]*")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}|\\\((.*)\\\)|\\\[(.*)\\\]|(__?)([^_]+)\4", re.DOTALL)
# Most wrappings that are removed; each removal adds a candidate to score.
_MAX_WRAPPINGS = 8
_PAIRS = {a: b for a, b in zip("*`$\"'\u201c\u2018", "*`$\"'\u201d\u2019", strict=True)}
_AROUND = " \t\r\n" + "".join({*_PAIRS, *_PAIRS.values()})


def answer_candidates(text: str) -> list[str]:
    """Return the texts that the final answer of a response may be.

    Args:
        text: The response, without thinking.

    Returns:
        At least one candidate, all different. The last is the one that earns a wrong answer its partial credit: the
        shortest form of a single line, all lines of a block. The whole text is among them where nothing tells which part of
        it is the answer.
    """
    whole = text.strip()
    marked, is_marked = final_answer(text)
    if is_marked:
        # final_answer removes a full stop, which may belong to the answer.
        found = [f"{marked}.", *_unwrapped(marked)] if marked else []
    elif (stated := _after_cue(whole)) is not None:
        found = _narrowed(stated)
    elif is_answer := _IS_THE_ANSWER.search(line := last_line(whole)):
        found = _unwrapped(_SO.sub("", line[: is_answer.start()], count=1))
    else:
        found = [*_verdict(whole), whole, *_last_paragraph(whole)]
    found = [candidate for candidate in found if candidate] or [""]
    return [*dict.fromkeys(candidate for candidate in found if candidate != found[-1]), found[-1]]


def _after_cue(text: str) -> str | None:
    """Return the text behind the last cue that is followed by any; None without one."""
    texts = (_BOLD_ENDS.sub("", behind) for _, behind in texts_behind(_CUE, text))
    return next(filter(None, texts), None)


def _narrowed(stated: str) -> list[str]:
    """Return a stated answer as it stands, then its first paragraph, line, sentence and clause."""
    if fenced := FENCED.match(stated):
        return [fenced[2].removesuffix("\n")]
    paragraph = _EMPTY_LINE.split(stated, maxsplit=1)[0]
    line = paragraph.partition("\n")[0]
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    clause = _CLAUSE_END.split(sentence, maxsplit=1)[0]
    return _in_order([*_verdict(line), stated, paragraph, line, sentence, clause], paragraph)


def _last_paragraph(text: str) -> list[str]:
    fenced = FENCED.findall(text)
    paragraph = (fenced[-1][1] if fenced else _EMPTY_LINE.split(text)[-1]).strip()
    line = last_line(paragraph)
    before = _VALUE.match(line)
    value = line[before.end() :] if before else ""
    # A line without a number at its end may be the answer as it stands: "There is fog".
    is_number = _NUMBER.fullmatch(_unwrapped(value)[-1])
    found = [paragraph, line, value] if is_number else [value, paragraph, line]
    return _in_order([*_verdict(paragraph), *found], paragraph)


def _verdict(text: str) -> list[str]:
    """Return the yes, no, true or false with which a text begins; nothing where it also gives another ("Yes. No.")."""
    begins = _VERDICT.match(text.lstrip(_AROUND))
    others = {found[1].lower() for found in _VERDICT.finditer(text)}
    return [begins[1]] if begins and others == {begins[1].lower()} else []


def _in_order(found: list[str], paragraph: str) -> list[str]:
    """Unwrap each text in turn; a paragraph of several lines comes last, so that wrong rows of a grid are scored together."""
    unwrapped = [candidate for text in found for candidate in _unwrapped(text)]
    return [*unwrapped, _unwrapped(paragraph)[-1]] if "\n" in paragraph.strip() else unwrapped


def _unwrapped(text: str) -> list[str]:
    """Return a text, followed by what is left after each removal of a wrapping such as quotes or Markdown."""
    found = [text]
    for _ in range(_MAX_WRAPPINGS):
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
