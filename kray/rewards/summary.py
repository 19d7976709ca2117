"""The summary verifier: one sentence of limited length that names the wanted facts.

The right answer is a JSON object: {"words": 14, "facts": [["Ann"], ["nine", "9"], ["train station"]]}, the number of words at
most, and for each fact the forms of which one has to occur. A response has to

1. be one sentence: a single line that begins with a capital letter or a digit and ends with "." or "!", without an earlier
   end of a sentence (".", "!" or "?" before a space);
2. have at most so many words; words joined by hyphens or slashes count each;
3. be more than a list: at least two different words belong to no fact, and at most one fact follows another without a word
   between them;
4. name each fact by a form of it, as whole words; case, and 's behind the last word, do not matter.

Not checked: grammar, and whether the sentence is true. "Leeds was not on Ann and Monday." names all that "Ann went to Leeds on
Monday." does. Where that matters, add a judge (reward.functions).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence

from kray.rewards.responses import outside_thinking
from kray.rewards.reward import Reward

_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['\u2019][^\W\d_]{1,2}\b)?")
_POSSESSIVE = re.compile(r"['\u2019]s\Z")
_CLOSING = "\"'\u201d\u2019)]"
_EARLIER_END = re.compile(rf"[.!?][{re.escape(_CLOSING)}]*\s")
# Different words that belong to no fact, at least: a verb and something that connects.
_OTHER_WORDS = 2

Words = tuple[str, ...]


def verify_summary(response: str, answer: str, *, partial: bool = False) -> Reward:
    """Score a sentence by its form and the facts that it names.

    Args:
        response: What the policy wrote; thinking (<think></think>) does not count.
        answer: The rules, see the module.
        partial: Whether a sentence that keeps the rules of form (1 to 3) earns the share of the facts that it names.

    Returns:
        1 when all rules are kept, else 0 (with `partial`, the share of the facts). The detail names the first rule broken.

    Raises:
        ValueError: The answer does not have the described form.
    """
    most, facts = read_rules(answer)
    text = outside_thinking(response).strip()
    if broken := _no_sentence(text):
        return Reward(0.0, broken)
    words = _words(text)
    if len(words) > most:
        return Reward(0.0, f"{len(words)} words, at most {most} are allowed")
    found = [[span for form in forms for span in _occurrences(form, words)] for forms in facts]
    named = [span for spans in found for span in spans]
    if named and (broken := _only_a_list(named, words)):
        return Reward(0.0, broken)
    missing = [" ".join(forms[0]) for forms, spans in zip(facts, found, strict=True) if not spans]
    if not missing:
        return Reward(1.0)
    return Reward(1 - len(missing) / len(facts) if partial else 0.0, f"does not name {', '.join(missing)}"[:200])


@functools.lru_cache(maxsize=4096)
def read_rules(answer: str) -> tuple[int, tuple[tuple[Words, ...], ...]]:
    """Read a right answer.

    Args:
        answer: The rules, see the module.

    Returns:
        (words at most, for each fact its forms as words in lower case).

    Raises:
        ValueError: It does not have the described form, or no sentence could keep the rules.
    """
    try:
        rules = json.loads(answer)
        most, facts = rules["words"], rules["facts"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f'summary: the answer must be JSON with "words" and "facts", not {answer[:60]!r}') from None
    if type(most) is not int or most < 1:
        raise ValueError(f'summary: "words" must be a number of at least 1, not {most!r:.60}')
    if not (isinstance(facts, list) and facts and all(isinstance(forms, list) and forms for forms in facts)):
        raise ValueError(f'summary: "facts" must be a list of lists of texts, none empty, not {facts!r:.60}')
    for form in (form for forms in facts for form in forms):
        if not (isinstance(form, str) and _words(form)):
            raise ValueError(f'summary: a form in "facts" must be a text with a word in it, not {form!r:.60}')
    read = tuple(tuple(tuple(_words(form)) for form in forms) for forms in facts)
    least = sum(min(map(len, forms)) for forms in read) + _OTHER_WORDS
    if least > most:
        raise ValueError(f'summary: "words" is {most}, but a sentence with all facts has at least {least}')
    return most, read


# Called by verifiers.check_answer.
verify_summary.check_answer = read_rules.__wrapped__  # type: ignore[attr-defined]


def _no_sentence(text: str) -> str:
    """Return why a text is not one sentence; "" when it is."""
    if not _WORD.search(text):
        return "no sentence"
    if len(text.splitlines()) > 1:
        return "more than one line"
    if _EARLIER_END.search(text):
        return "more than one sentence"
    if not text.rstrip(_CLOSING).endswith((".", "!")):
        return "no full stop at the end"
    first = text.lstrip("\"'\u201c\u2018([")[:1]
    return "" if first.isupper() or first.isdigit() else "no capital letter at the beginning"


def _only_a_list(spans: Sequence[tuple[int, int]], words: Sequence[str]) -> str:
    """Return why a sentence is no more than a list of its facts; "" when it is more.

    Args:
        spans: (first word, the one after the last) of each fact that is named, any order.
        words: The words of the sentence.
    """
    ordered = sorted(set(spans))
    named = {index for begin, end in ordered for index in range(begin, end)}
    others = {word for index, word in enumerate(words) if index not in named}
    if len(others) < _OTHER_WORDS:
        return "only lists the facts: too few other words"
    ends = {end for _, end in ordered}
    if sum(begin in ends for begin, _ in ordered) > 1:
        return "only lists the facts: no words between them"
    return ""


def _words(text: str) -> list[str]:
    return [_POSSESSIVE.sub("", word).casefold() for word in _WORD.findall(text)]


def _occurrences(form: Words, words: Sequence[str]) -> list[tuple[int, int]]:
    """Return where a form stands: (its first word, the word after its last)."""
    size = len(form)
    return [(i, i + size) for i in range(len(words) - size + 1) if tuple(words[i : i + size]) == form]
