"""What a response says: its text outside <think>...</think>. Standard library only."""

from __future__ import annotations

import re

_OPEN, _CLOSE = "<think>", "</think>"
_TAGS = re.compile(f"({_OPEN}|{_CLOSE})")


def outside_thinking(response: str) -> str:
    """The text outside of thinking.

    What a tag closes that none opened is thinking, too: chat templates of reasoning models open it in the prompt. Thinking
    that is not closed goes to the end.
    """
    said: list[str] = []
    thinking = False
    for part in _TAGS.split(response):
        if part == _CLOSE and not thinking:
            said.clear()
        elif not thinking and part not in (_OPEN, _CLOSE):
            said.append(part)
        thinking = part == _OPEN or (thinking and part != _CLOSE)
    return "".join(said)
