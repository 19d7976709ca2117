"""Parts of a response that several verifiers look for: text outside of thinking, fenced blocks, answer tags, statements.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# A fenced block: its info string's first word ("" without one) and its content. An unclosed block goes to the end. Possessive:
# a long line would take time quadratic in its length.
FENCED = re.compile(r"^[ \t]*+```[ \t]*+([\w+#.-]*+)[^\n]*+\n(.*?)(?:^[ \t]*+```|\Z)", re.DOTALL | re.MULTILINE)
# Pattern of the innermost <answer>...</answer>; to be compiled with re.DOTALL.
ANSWER_TAG = r"<answer>((?:(?!<answer>).)*?)</answer>"

# Words in the tags in which models think.
_NAMES = ("think", "thought", "reasoning", "scratchpad")
_TAGS = re.compile(
    r"([<◁]/?(?:think|thinking|thought|thoughts|reasoning|scratchpad)[>▷]|<\|(?:begin|end)_of_thought\|>)",
    re.IGNORECASE,
)


def outside_thinking(response: str) -> str:
    """Return the text outside of <think>...</think> and its variants.

    Text before a closing tag that no tag opened is thinking, too: chat templates of reasoning models open it in the prompt.
    Thinking that is not closed goes to the end.
    """
    if "<" not in response and "◁" not in response:
        return response
    lowered = response.lower()
    if not any(name in lowered for name in _NAMES):
        return response
    outside: list[str] = []
    thinking = False
    for number, part in enumerate(_TAGS.split(response)):
        if number % 2 == 0:
            outside += [] if thinking else [part]
            continue
        closes = part[1] == "/" or part[:5].lower() == "<|end"
        if closes and not thinking:
            outside.clear()
        thinking = not closes
    return "".join(outside)


def is_answer_pattern(noun: str) -> str:
    """Return the pattern of "is the answer" behind its verb: an article, at most one adjective and a noun pattern."""
    return rf"\s+(?:the|my|our)\s+(?:\w+\s+)?{noun}"


def texts_behind(cue: re.Pattern[str], text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yield each match of a cue such as "the answer is" with the text behind it, from the last match to the first."""
    for found in reversed(list(cue.finditer(text))):
        yield found, text[found.end() :]


def last_line(text: str) -> str:
    """Return the last line that is not blank, without surrounding blanks."""
    return text.rstrip().rpartition("\n")[2].strip()
