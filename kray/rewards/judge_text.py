"""What a judge is asked, and how its reply is read. Pure.

A response cannot end its place in the template: kray puts it between two lines with a digest of the response itself, which a
response cannot contain. Text in it that imitates these lines, or that spells special tokens of usual chat templates, is broken
up by a space, and the reward's detail says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kray.records import Prompt
from kray.reward_settings import JUDGE_TEMPLATE, JudgeConfig
from kray.rewards.responses import outside_thinking
from kray.rewards.reward import Reward, as_reward

# The detail of a reward whose response was changed for the judge.
BROKEN_UP = "the response imitates the judge's markers or special tokens, which were broken up"
# The marker lines, and special tokens as usual chat templates write them. Spelt in ordinary text, a server may still read them
# as tokens. Group 1 is what a space is put behind.
_IMITATIONS = re.compile(
    r"(<)(?=\|[^<>|\n]{1,64}\|>|｜[^<>｜\n]{1,64}｜>|/?s>|/?(?:start|end)_of_turn>|[be]os>)"
    r"|(\[)(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
    r"|(\[)(?=(?:end of )?response [0-9a-f]{4,}\])",
    re.IGNORECASE,
)
_REPLY_CHARACTERS = 300
# Numbers from here on are outside of every range, and may be larger than any float.
_MOST = 1e300


def judge_request(judge: JudgeConfig, prompt: Prompt, response: str) -> tuple[dict[str, Any], bool]:
    """Return the body of a request for a verdict.

    Args:
        judge: The judge.
        prompt: What was asked, with its answer and columns.
        response: What the policy wrote; thinking is left out.

    Returns:
        (body, whether the response was changed).

    Raises:
        ValueError: The template names a field that the prompt does not have.
    """
    shown, changed = guarded(outside_thinking(response))
    known = {"answer": prompt.answer, **prompt.columns, "prompt": _asked(prompt), "response": shown}
    try:
        text = (judge.template or JUDGE_TEMPLATE).format(**{name: _text(value) for name, value in known.items()})
    except KeyError as error:
        raise ValueError(
            f"the judge's template names {{{error.args[0]}}}, and the prompt has {', '.join(known)}"
        ) from None
    messages = [{"role": "system", "content": judge.system}] if judge.system else []
    messages.append({"role": "user", "content": text})
    body = {
        "model": judge.model,
        "messages": messages,
        "max_tokens": judge.max_tokens,
        "temperature": judge.temperature,
    }
    return body | dict(judge.request), changed


def guarded(response: str) -> tuple[str, bool]:
    """Return a response between its marker lines, and whether it was changed to keep it there."""
    inside = _IMITATIONS.sub(lambda found: f"{found[0]} ", response)
    digits = hashlib.blake2b(inside.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"[response {digits}]\n{inside}\n[end of response {digits}]", inside != response


def read_verdict(judge: JudgeConfig, reply: str) -> Reward:
    """Return the reward that a judge's reply means.

    Args:
        judge: The judge.
        reply: Its text.

    Raises:
        ValueError: The reply holds no number, or one outside of the range; the message quotes it.
    """
    quoted = " ".join(reply.split())[-_REPLY_CHARACTERS:]
    if judge.json_field:
        numbers = list(_json_numbers(outside_thinking(reply), judge.json_field))
        sought = f'JSON object with a number in "{judge.json_field}"'
    else:
        found = re.finditer(judge.pattern, outside_thinking(reply))
        numbers = [number for match in found if (number := _number(match[match.re.groups])) is not None]
        sought = f"number that matches {judge.pattern}"
    if not numbers:
        raise ValueError(f"the judge's reply holds no {sought}: {quoted!r}")
    low, high = judge.range
    if not low <= numbers[-1] <= high:
        raise ValueError(f"the judge's {numbers[-1]:g} is outside its range {low:g} to {high:g}: {quoted!r}")
    return as_reward(Reward((numbers[-1] - low) / (high - low), quoted), "judge")


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _json_numbers(text: str, name: str) -> Iterator[float]:
    """Yield the numbers of a field of the JSON objects in a text, outermost objects only, in order."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if isinstance(value, str):
                value = _number(value)
            if isinstance(value, int | float):
                yield float(value) if abs(value) < _MOST else math.inf
        at = text.find("{", end)


def _asked(prompt: Prompt) -> str:
    if prompt.messages is None:
        return prompt.text or ""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)


def _text(value: Any) -> str:
    """Return a field of the template as text; lists and mappings as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
