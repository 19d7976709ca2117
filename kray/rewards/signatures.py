"""Call reward functions in kray's own signature and in those of other trainers, as they are.

    kray        (response, answer, **options) -> float | bool | Reward
    TRL         (completions, **columns) -> list[float | None]; also prompts, completion_ids
    verl        (data_source, solution_str, ground_truth, extra_info) -> float | dict with "score"
    verifiers   any of (prompt, completion, answer, info, task, ...) -> float

The signature is told by the names of the parameters: completions is TRL's, solution_str verl's, completion that of verifiers'
rubrics; two positional parameters are kray's. Further parameters get the columns of the prompt (`prompts.train.columns`) and
the options by name, and a function that has **kwargs gets all of them. Functions may be coroutines.

A function in TRL's signature gets lists of one: a reward is asked for when its response has ended, under a deadline of its own,
so responses are never scored together. It cannot compare the responses of a batch with each other.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kray.records import Prompt
from kray.rewards.reward import Reward, as_reward

KRAY, TRL, VERL, VERIFIERS_STYLE = "kray", "TRL", "verl", "verifiers"
# The parameter that tells each signature of others.
_MARKS = {"completions": TRL, "solution_str": VERL, "completion": VERIFIERS_STYLE}
KNOWN = (
    "kray's (response, answer), TRL's (completions, **columns), verl's (data_source, solution_str, ground_truth, extra_info) "
    "or that of verifiers (completion, answer, ...)"
)
# What a function returns that does not apply to the prompt.
NOT_APPLICABLE = object()


@dataclass(frozen=True, slots=True)
class Sample:
    """What a reward function may ask for beside the response.

    Attributes:
        prompt: The prompt, with its answer and columns.
        tokens: Ids of the response's tokens.
    """

    prompt: Prompt
    tokens: Sequence[int] | np.ndarray = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what functions get of it, as JSON can hold it.

        Raises:
            TypeError, ValueError: JSON cannot hold a column.
        """
        prompt = self.prompt
        messages = None if prompt.messages is None else [dict(message) for message in prompt.messages]
        asked = {"id": prompt.id, "source": prompt.source, "text": prompt.text, "messages": messages}
        found = asked | {"columns": dict(prompt.columns), "tokens": [int(token) for token in self.tokens]}
        json.dumps(found)
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], answer: str) -> Sample:
        """Return the sample that `to_dict` described, with its answer."""
        messages = found["messages"]
        prompt = Prompt(
            found["id"],
            answer,
            "",
            found["source"],
            text=found["text"],
            messages=None if messages is None else tuple(messages),
            columns=found["columns"],
        )
        return cls(prompt, tuple(found["tokens"]))


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature of a reward function.

    Attributes:
        style: One of KRAY, TRL, VERL and VERIFIERS_STYLE.
        names: Parameters that can be given by name.
        required: Those without a default.
        takes_all: Whether it takes any others by name.
    """

    style: str
    names: frozenset[str]
    required: tuple[str, ...]
    takes_all: bool


@functools.lru_cache(maxsize=256)
def signature_of(function: Callable[..., Any]) -> Signature:
    """Return the signature of a reward function.

    Raises:
        ValueError: It is none that kray knows.
    """
    try:
        found = inspect.signature(function)
    # Compiled functions may have no signature.
    except (TypeError, ValueError):
        return Signature(KRAY, frozenset(), (), True)
    parameters = found.parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = frozenset(p.name for p in named)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    styles = [style for mark, style in _MARKS.items() if mark in names]
    if len(styles) > 1:
        raise ValueError(f"takes {found}, which mixes the signatures of {' and '.join(styles)}")
    positional = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if not styles and positional < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise ValueError(f"takes {found}, which is not a signature of a reward function: {KNOWN}")
    required = tuple(p.name for p in named if p.default is p.empty)
    return Signature(styles[0] if styles else KRAY, names, required, takes_all)


def call_reward(function: Callable[..., Any], response: str, subject: Any, options: Mapping[str, Any]) -> Any:
    """Call a reward function of any signature.

    Args:
        function: The function.
        response: What the policy wrote.
        subject: The Sample, or the right answer.
        options: Keyword arguments of the function; they take precedence over columns of their name.

    Returns:
        What the function returned, as kray's functions do; NOT_APPLICABLE for None in TRL's signature.

    Raises:
        ValueError: The signature is unknown, a parameter has no column, or what was returned is no reward. Exceptions of the
            function pass through.
    """
    signature = signature_of(function)
    if signature.style == KRAY:
        answer = subject.prompt.answer if isinstance(subject, Sample) else subject
        return _awaited(function(response, answer, **options))
    sample = subject if isinstance(subject, Sample) else Sample(Prompt("", subject, "", "", text=""))
    known = _arguments(signature.style, response, sample) | dict(options)
    if missing := [name for name in signature.required if name not in known]:
        raise ValueError(_missing(missing, sample.prompt))
    given = known if signature.takes_all else {name: known[name] for name in signature.names if name in known}
    return _read(signature.style, _awaited(function(**given)))


def check_sample(function: Callable[..., Any], prompt: Prompt, options: Mapping[str, Any]) -> None:
    """Check that a prompt has what a reward function asks for.

    Raises:
        ValueError: A parameter has neither a column nor an option, or the signature is unknown.
    """
    signature = signature_of(function)
    if signature.style != KRAY:
        known = _arguments(signature.style, "", Sample(prompt)) | dict(options)
        if missing := [name for name in signature.required if name not in known]:
            raise ValueError(_missing(missing, prompt))


def _missing(names: list[str], prompt: Prompt) -> str:
    known = f"the prompt's columns are {', '.join(prompt.columns)}" if prompt.columns else "the prompt has no columns"
    return f"the function asks for {', '.join(names)}, and {known}; name fields in the source's columns, or set options"


def _arguments(style: str, response: str, sample: Sample) -> dict[str, Any]:
    """Return what a function of another trainer may be given, by name."""
    prompt = sample.prompt
    chat = None if prompt.messages is None else [dict(message) for message in prompt.messages]
    said = [{"role": "assistant", "content": response}]
    columns = {"answer": prompt.answer, **prompt.columns}
    if style == VERL:
        own = {"solution_str": response, "ground_truth": columns.get("ground_truth", prompt.answer)}
        return {"extra_info": None, **columns, **own}
    if style == TRL:
        own = {
            "prompts": prompt.text if chat is None else chat,
            "completions": response if chat is None else said,
            "completion_ids": [int(token) for token in sample.tokens],
        }
        return {name: [value] for name, value in (columns | own).items()}
    asked = [{"role": "user", "content": prompt.text or ""}] if chat is None else chat
    return columns | {"prompt": asked, "completion": said}


def _read(style: str, value: Any) -> Any:
    """Return what a function of another trainer returned as one of kray's would return it."""
    if style == TRL:
        try:
            values = list(value)
        except TypeError:
            raise ValueError(f"the function returned {value!r:.80}, not a list with one reward") from None
        if len(values) != 1:
            raise ValueError(f"the function returned {len(values)} rewards for a list of 1 completion")
        return NOT_APPLICABLE if values[0] is None else values[0]
    if style == VERL and isinstance(value, Mapping):
        if "score" not in value:
            raise ValueError(f'the function returned a mapping without "score" (keys: {", ".join(map(str, value))})')
        more = {str(key): inner for key, inner in value.items() if key != "score"}
        detail = json.dumps(more, ensure_ascii=False, default=str) if more else ""
        return Reward(as_reward(value["score"], "score").value, detail)
    return value


def _awaited(value: Any) -> Any:
    """Return the result of a coroutine, and anything else as it is."""
    if not inspect.iscoroutine(value):
        return value
    return asyncio.run(value)
