"""Verifiers: functions that compare a response with the right answer.

A verifier is `fn(response: str, answer: str, **options) -> float | bool | Reward`, or a reward function in the signature of
another trainer (signatures.py). Its values are in [0, 1], or in the range that its attribute `reward_range = (lowest, highest)`
declares. A wrong response earns the lowest value; an exception means that the right answer or the verifier is broken (a data
failure), never that the response is wrong.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from kray.records import Prompt
from kray.reward_settings import read_range
from kray.rewards.responses import outside_thinking
from kray.rewards.reward import Reward, as_reward
from kray.rewards.signatures import KRAY, NOT_APPLICABLE, Sample, call_reward, check_sample, signature_of
from kray.text import describe

Verifier = Callable[..., "Reward | float | bool"]

# Where each verifier is defined, in the form in which custom verifiers are named. Not the functions themselves: importing
# sympy or reasoning_gym takes a second, and most runs need at most one of them.
VERIFIERS: dict[str, str] = {
    "exact": "kray.rewards.verifiers:exact",
    "math": "kray.rewards.mathematics:verify_math",
    "code": "kray.rewards.code:verify_code",
    "reasoning_gym": "kray.rewards.reasoning:verify_reasoning",
    "summary": "kray.rewards.summary:verify_summary",
}
_ERROR_CHARACTERS = 300


def score(verifier: str, response: str, answer: str | Sample, **options: Any) -> Reward:
    """Score one response in this process, without a deadline.

    Args:
        verifier: A key of VERIFIERS, "pkg.mod:fn" or "file.py:fn".
        response: What the policy wrote.
        answer: The right answer, in the verifier's form, or a Sample, whose prompt has the columns too.
        **options: Keyword arguments of the verifier.

    Raises:
        ValueError: The verifier is unknown, its reward is not a finite number, or it does not apply to the prompt. Exceptions
            of the verifier pass through.
    """
    value = call_reward(load_verifier(verifier), response, answer, options)
    if value is NOT_APPLICABLE:
        raise ValueError(f'verifier "{verifier}" returned None: it does not apply to this prompt')
    return as_reward(value, verifier)


def load_verifier(name: str) -> Verifier:
    """Import the function behind a verifier's name.

    Args:
        name: A key of VERIFIERS, "pkg.mod:fn" or "file.py:fn".

    Raises:
        ValueError: There is no such verifier; the message names it and what was looked for.
    """
    path = VERIFIERS.get(name, name)
    module_name, colon, function_name = path.rpartition(":")
    if not colon:
        near = difflib.get_close_matches(name, VERIFIERS, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(
            f'verifier "{name}" is not known{hint}; known: {", ".join(VERIFIERS)}, or pkg.mod:fn or file.py:fn'
        )
    if not module_name or not function_name:
        raise ValueError(f'verifier "{name}": write it as pkg.mod:fn')
    try:
        found: Any = (
            _module_of_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
        )
    except Exception as error:
        raise ValueError(
            f'verifier "{name}": importing {module_name} failed: {describe(error, _ERROR_CHARACTERS)}'
        ) from error
    for part in function_name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f'verifier "{name}": {module_name} has no function "{function_name}"')
    return found


def _module_of_file(path: str) -> ModuleType:
    """Import a file; a relative path is looked for in the current folder and those that modules are imported from."""
    folders = [os.getcwd(), *sys.path]
    files = (os.path.abspath(os.path.join(folder, os.path.expanduser(path))) for folder in folders)
    file = next(filter(os.path.isfile, files), None)
    if file is None:
        raise FileNotFoundError(f"there is no such file (in {os.getcwd()} and the folders of modules)")
    name = f"_kray_rewards_{hashlib.blake2b(file.encode(), digest_size=8).hexdigest()}"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, file)
        assert specification is not None
        assert specification.loader is not None
        # Known before it runs, as its dataclasses and its functions' annotations need.
        sys.modules[name] = module = importlib.util.module_from_spec(specification)
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def declared_range(function: Any, name: str) -> tuple[float, float] | None:
    """Return the range of values that a verifier declares by its attribute `reward_range`; None: it declares none.

    Args:
        function: The verifier.
        name: Of the verifier, for messages.

    Raises:
        ValueError: The attribute is no range.
    """
    given = getattr(function, "reward_range", None)
    return None if given is None else read_range(given, f'verifier "{name}": its reward_range')


def check_verifier(name: str, **options: Any) -> None:
    """Check that a verifier can be loaded, takes these options and finds what it needs on this machine.

    The verifier itself is not called, but its attribute `check(**options)` is, if it has one.

    Raises:
        ValueError: It cannot be used; the message names the verifier.
    """
    function = load_verifier(name)
    declared_range(function, name)
    try:
        known = signature_of(function)
    except ValueError as error:
        raise ValueError(f'verifier "{name}" {error}') from None
    try:
        signature = inspect.signature(function)
    # Compiled functions may have no signature.
    except (TypeError, ValueError):
        return
    if known.style != KRAY:
        if not known.takes_all and (unknown := set(options) - known.names):
            raise ValueError(f'verifier "{name}" takes {signature}: it has no option {min(unknown)}')
        return
    try:
        signature.bind("response", "answer", **options)
    except TypeError as error:
        raise ValueError(f'verifier "{name}" takes {signature}: {error}') from None
    if (needs := getattr(function, "check", None)) is not None:
        try:
            needs(**options)
        except Exception as error:
            raise ValueError(f'verifier "{name}": {error}') from error


def check_answer(name: str, answer: str) -> None:
    """Check a right answer with the verifier's attribute `check_answer`, if it has one.

    Raises:
        ValueError: The verifier cannot use this answer.
    """
    if (check := getattr(load_verifier(name), "check_answer", None)) is not None:
        check(answer)


def check_prompt(name: str, prompt: Prompt, options: Mapping[str, Any]) -> None:
    """Check that a verifier can use a prompt's answer, and that the prompt has the columns that it asks for.

    Args:
        name: The verifier.
        prompt: The prompt.
        options: Keyword arguments of the verifier.

    Raises:
        ValueError: It cannot be scored.
    """
    check_answer(name, prompt.answer)
    if name not in VERIFIERS:
        check_sample(load_verifier(name), prompt, options)


def exact(response: str, answer: str, *, case_sensitive: bool = True, strip: bool = True, after: str = "") -> Reward:
    """Return 1 when response and answer are the same text, else 0.

    The text must match character by character: an added full stop, another spelling of a number or another form of a Unicode
    character is wrong. Thinking (<think></think>) may be left out of the response.

    Args:
        response: What the policy wrote.
        answer: The right answer.
        case_sensitive: Whether upper and lower case differ.
        strip: Whether to ignore spaces and line ends at both ends.
        after: A marker such as "=" or "####". Given one, only what stands behind its last occurrence outside of thinking
            counts; a response without it is wrong.

    Raises:
        ValueError: The right answer is blank, so that an empty response would be right, or holds the marker, so that none
            would be.
    """
    check_text(answer)
    if after and after in answer:
        raise ValueError(f"exact: the right answer {answer[:40]!r} holds the marker {after!r}: no response is right")
    right = answer.strip() if strip else answer
    candidates = [response, outside_thinking(response)]
    if after:
        _, found, behind = candidates[1].rpartition(after)
        if not found:
            return Reward(0.0, f"no {after!r} in {candidates[1][:40]!r}")
        candidates = [behind]
    for text in candidates:
        given = text.strip() if strip else text
        if given == right or (not case_sensitive and given.casefold() == right.casefold()):
            return Reward(1.0)
    return Reward(0.0, f"{given[:40]!r} is not {right[:40]!r}")


def check_text(answer: str) -> None:
    """Check a right answer of `exact`.

    Raises:
        ValueError: It is blank.
    """
    if not answer.strip():
        raise ValueError("exact: the right answer is empty, so an empty response would be right")


def check_exact(*, after: str = "", **_: Any) -> None:
    """Check the options of `exact`.

    Raises:
        ValueError: The marker is not a text.
    """
    if not isinstance(after, str):
        raise ValueError(f"the option after must be a text such as '=', not {after!r}")


# Called by check_answer and check_verifier.
exact.check_answer = check_text  # type: ignore[attr-defined]
exact.check = check_exact  # type: ignore[attr-defined]
