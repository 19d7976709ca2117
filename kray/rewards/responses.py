"""What a response says: its text outside <think>...</think>. Standard library only."""

from __future__ import annotations

import re

# The names under which models think.
_NAMES = ("think", "thought", "reasoning", "scratchpad")
_TAGS = re.compile(
    r"([<◁]/?(?:think|thinking|thought|thoughts|reasoning|scratchpad)[>▷]|<\|(?:begin|end)_of_thought\|>)",
    re.IGNORECASE,
)


def outside_thinking(response: str) -> str:
    """The text outside of thinking.

    What a tag closes that none opened is thinking, too: chat templates of reasoning models open it in the prompt. Thinking
    that is not closed goes to the end.
    """
    if "<" not in response and "◁" not in response:
        return response
    lowered = response.lower()
    if not any(name in lowered for name in _NAMES):
        return response
    said: list[str] = []
    thinking = False
    for number, part in enumerate(_TAGS.split(response)):
        if number % 2 == 0:
            said += [] if thinking else [part]
            continue
        closes = part[1] == "/" or part[:5].lower() == "<|end"
        if closes and not thinking:
            said.clear()
        thinking = not closes
    return "".join(said)
