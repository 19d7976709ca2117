"""Find answers in sentences: what an explicit statement names, and the last value of a text without one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kray.rewards.mathematics.units import NO_UNIT, SCALES
from kray.rewards.responses import is_answer_pattern, texts_behind

MATHEMATICS = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\.|[^$\n\\])+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)

_NOUN = r"(?:\b(?:answer|result|solution|option|choice|respuesta|réponse|antwort)s?\b|答案|故选|ответ|정답)"
_STATEMENT = re.compile(
    rf"""{_NOUN}[*_"'\s]{{0,3}}
        (?:[:=：]|是|为|(?<=故选)|[^\n.:=?!$]{{0,60}}?\b(?:is|are|be|was|equals|becomes)\b|[^\S\n]*\**(?=\n))
        [*_]*\s*,?\s*(?:\b(?:therefore|thus|then|hence|now|simply|just|equal\s+to|indeed|still|clearly|of\s+course|exactly|again|also
        |given\s+by|found\s+to\s+be)\b\s*,?\s*)?[:：]?""",
    re.I | re.VERBOSE,
)
_DENIAL = re.compile(r"\b(?:not|cannot|never|isn't|can't|neither|nor)\b|n't\b", re.I)
_CLAUSE_END = re.compile(
    r"\n|\.(?=\s|$|\*|\"|<)|。|[!?](?=\s|$)|,?\s+(?:since|because|as|which|where|so|therefore|thus|with|after|given|due)\b"
    r"|,\s+(?:we|the|it|this|he|she|they|not)\b|,?\s+and\s+(?:we|this|it|that)\b|,?\s+(?:if\s+we\s+round|when\s+rounded|rounded)\b"
    r"|;\s+(?!or\b)(?=[A-Za-z]{2})|\s+[-–—]\s+(?!or\b|maybe\b)(?=[A-Za-z]{2})|:\s+(?=\$)|\s+[–—(\[]\s*(?!or\b|maybe\b)(?=[A-Za-z]{2})",
    re.I,
)
_RETRACTED = re.compile(r"[\s.?!*]*(?:or|no|wait|actually|alternatively|correction|sorry|oops)\b[^\n]*\d", re.I)
_NUMBER = r"(?:\\?\$\s?)?[-+−–]?\s?(?:\\?\$\s?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?(?:\s?\\?%)?"
_RUN = re.compile(rf"(?<![\w.])(?=[-+−–$.\d\\]){_NUMBER}(?:\s+\d+/\d+|\s?/\s?\d+)?")
_JOIN = re.compile(r"\s*(?:,\s*(?:and|or)?|;|\band\b|\bor\b)\s*")
_STRETCH = re.compile(
    r"(?:\\[A-Za-z]+|[\d^_{}()\[\]|+\-−*/=<>≤≥√π×·!%°.,:;'∞²³]|\b(?:sqrt|pi|sin|cos|tan|log|ln|exp|infinity|[A-Za-z])\b|\s)+"
)
_LEADING_QUANTITY = re.compile(rf"({_RUN.pattern}(?:\s*:\s*\d+)?)\s+(?=[A-Za-z])(?P<word>[A-Za-z]+)")
_HEDGE = re.compile(
    r"\b(?:or|and|if|when|but|not|perhaps|maybe|possibly|alternatively|otherwise|also|although|unless|versus|plus|minus|times)\b",
    re.I,
)
# A sentence with one of these does not claim that its value is the answer.
_NO_CLAIM = re.compile(
    r"\b(?:not|cannot|never|maybe|perhaps|possibly|tried|try|guess|wrong|incorrect)\b|n't\b|\?", re.I
)
_NUMBERED = re.compile(
    r"\b(?:problem|page|step|question|part|case|exercise|section|figure|equation|example)\s*#?\s*$", re.I
)
# Words of sentences about another case, or about a mistake.
_ANOTHER_CASE = re.compile(
    r"\b(?:if|would|wrong|incorrect|mistake|might|may|without|were|part|question|common|alternative)\b", re.I
)
_IS_ANSWER = re.compile(
    rf"(?:^|[.:,;]\s|\b(?:so|thus|therefore|hence)\b)[\s,]*([^.,;:\n]{{1,60}}?)\s+is{is_answer_pattern(_NOUN)}", re.I
)
_IS_CORRECT = re.compile(r"(?:option|choice|answer)?\s*\(?\b([A-J])\b\)?\s+is\s+(?:the\s+)?(?:correct|right)\b", re.I)
_ROUNDING = re.compile(
    r",?\s+(?:or\s+)?(?:about|approximately|roughly)\s+\S*[.%]\S*|\s*\((?:≈|\\approx|approximately|about)[^()]*\)", re.I
)
_NOT_BUT = re.compile(r"\bnot\s+[^,;.\n]{1,30}?\s+but\b", re.I)
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
# Text behind one of these only explains the value in front of it.
_EXPLANATION = re.compile(
    r",?\s+(?:since|when|which(?!\s+(?:is|are|equals?|gives|makes|becomes)\s+[$-]*\d)|attained|because|after|where|if|as|for|at|with|satisf\w+|is\s+the\s+only)\b|\s\((?!\d)|;\s",
    re.I,
)
_VALUE = re.compile(
    r"[\s{(\[$]*(?:\\?[A-Za-z]\s*=\s*)?[\s{(\[$]*(?:[-+−]?\s*(?:\\?\$\s*)?[\d.]*\d|\\(?:d?frac|sqrt|pi|pm|text|left|\{|infty|begin))"
)


def statement(text: str) -> str | None:
    """Return what the last explicit statement names as the answer.

    Returns:
        Its text; "" where the statement is negated or retracted; None without a statement.
    """
    text = _NOT_BUT.sub("", text)
    if (last := next(_statements(text), None)) is not None:
        found, rest = last
        named = clause(rest)
        behind = rest[len(named) :] if rest.startswith(named) else ""
        return "" if _DENIAL.search(found.group()) or _RETRACTED.match(behind) else named
    for pattern in (_IS_ANSWER, _IS_CORRECT):
        if named_before := list(pattern.finditer(text)):
            value = named_before[-1][1].strip(" *_")
            return "" if _DENIAL.search(value) else value
    return None


def _statements(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yield the statements that are followed by text, from the last on, each with that text."""
    for found, behind in texts_behind(_STATEMENT, text):
        if rest := behind.lstrip(" *_:}\n\"'"):
            yield found, rest


def later_statement(text: str) -> str:
    """Return what a statement behind the final answer names as the answer once more.

    Returns:
        Its text; "" without one, or where it is about another case.
    """
    for found, rest in _statements(text):
        begin = max(text.rfind(mark, 0, found.start()) for mark in (". ", "\n", "! ", "? ", ": "))
        named = clause(rest)
        about = text[begin + 1 : found.end()] + rest[: len(named)]
        if begins_with_value(named) and not _ANOTHER_CASE.search(about) and not _DENIAL.search(about):
            return named
    return ""


def clause(text: str) -> str:
    """Return the beginning of a text, up to the end of the clause."""
    text = _ROUNDING.sub("", re.sub(r"\*\*|`", "", text))
    mathematics = MATHEMATICS.match(text)
    begin = mathematics.end() if mathematics else 0
    end = _CLAUSE_END.search(text, begin)
    whole = (text[: end.start()] if end else text).strip()
    if mathematics and not (rest := whole[mathematics.end() :].strip(" .,;:!")):
        return next(filter(None, mathematics.groups()))
    elif mathematics and not re.search(r"[\d$\\]", rest) and not _HEDGE.search(rest):
        return f"{next(filter(None, mathematics.groups()))} {rest}"
    return leading_quantity(whole) or whole


def leading_quantity(text: str) -> str:
    """Return the number and noun at the beginning where more words with numbers follow ("61 people in 3 cars"), else ""."""
    found = _LEADING_QUANTITY.match(text.strip())
    if found is None:
        return ""
    rest = text.strip()[found.end() :]
    counted = found["word"].lower() not in NO_UNIT | SCALES.keys() and not _HEDGE.search(f"{found['word']} {rest}")
    return found.group() if counted and re.search(r"\d", rest) and not re.match(r"\s*\d", rest) else ""


def begins_with_value(text: str | None) -> bool:
    """Return whether a text begins with a number or mathematics, possibly behind the name of a variable."""
    return text is not None and _VALUE.match(text) is not None


def last_value(text: str) -> str:
    """Return the last mathematics in dollar signs, or the last number with what belongs to it.

    Returns:
        Its text; "" without one, or where its sentence does not claim that it is the answer.
    """
    text = _NOT_BUT.sub("", text)
    last = text.rstrip().rpartition("\n")[2]
    bold = [span for span in _BOLD.finditer(last) if any(c.isdigit() for c in span[1])]
    if bold and not begins_with_value(last[bold[-1].end() :].lstrip(" =")):
        return _joined(last, bold)
    if (tail := _EXPLANATION.search(last)) and re.search(r"\d", last[: tail.start()]):
        text = text.rstrip()[: len(text.rstrip()) - len(last) + tail.start()]
    spans = list(MATHEMATICS.finditer(text))
    runs = [run for run in _RUN.finditer(text) if any(c.isdigit() for c in run.group())]
    if spans and not any(run.start() >= spans[-1].end() for run in runs):
        begin, end = spans[-1].span()
        value = _joined(text, spans)
        value = value if "\\begin" in value else value.rpartition("=")[2]
    elif runs:
        begin, end = _extended(text, *runs[-1].span())
        for run in reversed(runs[:-1]):
            if run.end() <= begin and _JOIN.fullmatch(text, run.end(), begin):
                begin = run.start()
            elif run.end() <= begin:
                break
        value = text[begin:end]
    else:
        return ""
    start = max(text.rfind(mark, 0, begin) for mark in ("\n", ". ", "! ", "? ", ", ", "; ")) + 1
    stop = min(
        (place for place in (text.find(mark, end) for mark in ("\n", ". ", "!")) if place >= 0), default=len(text)
    )
    if _NO_CLAIM.search(text[start:begin] + text[end:stop]) or _NUMBERED.search(text[start:begin]):
        return ""
    return value.strip(" .,;:*_=").strip()


def _joined(text: str, spans: list[re.Match[str]]) -> str:
    """Return the text of the last span together with those that a comma, "and" or "or" joins to it."""
    parts = [next(filter(None, spans[-1].groups()))]
    for span, following in zip(reversed(spans[:-1]), reversed(spans[1:]), strict=True):
        if not _JOIN.fullmatch(text, span.end(), following.start()):
            break
        parts.insert(0, next(filter(None, span.groups())))
    return " , ".join(parts)


def _extended(text: str, begin: int, end: int) -> tuple[int, int]:
    """Extend a number's place to the mathematics around it, from the last equals sign on: 4\\sqrt{2}, not 2."""
    for stretch in _STRETCH.finditer(text):
        start, stop = stretch.span()
        if start <= begin and stop >= end:
            equals = text.rfind("=", start, begin + 1)
            return (equals + 1, stop) if equals >= 0 and "=" not in text[begin:stop] else (start, stop)
    return begin, end
