"""The code verifier: does the program in a response pass its tests? Python programs, run in a sandbox.

The program is the last fenced code block of the response that is marked as Python or not at all, else the whole text.
The right answer travels as one JSON object with exactly one of

    {"cases": [{"input": "1 2\\n", "output": "3\\n"}, ...]}                     a script: standard input and output
    {"calls": [{"call": "add", "args": [1, 2], "kwargs": {}, "value": 3}, ...]}   functions: JSON in, JSON out
    {"asserts": ["assert add(1, 2) == 3", ...]}                                  Python's text, `==` at the top

and, if wanted, "setup" (Python that runs after the program, for asserts and calls) and "tolerance" (float, 0: how far
numbers may lie apart, absolutely and relatively). Output is compared line by line, spaces at line ends and empty lines at
the end aside. "call" is any expression that gives the function, such as Solution().add. A tuple equals a list in calls.

What should come out never enters the program's process: outputs and values are compared here, and of an assert only its
left side is evaluated beside the program; its right side is evaluated in a sandbox of its own that holds no program.
Asserts of another form (`assert f(x)`, `abs(f(x) - 2) < 1e-6`) cannot be kept from the program and are refused: write them
as calls, with a tolerance where one is needed. A script gets a process per case; calls and asserts share one.
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import math
import re
import time
from dataclasses import dataclass
from typing import Any

from kray.rewards.sandbox import Limits, run
from kray.rewards.verifiers import Reward

_FENCED = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")
_FORMS = {"cases": ("input", "output"), "calls": ("call", "value"), "asserts": ()}
_RIGHT_SIDES_S = 3.0  # for the data's own right sides, which run once per answer


@dataclass(frozen=True, slots=True)
class _Tests:
    """inputs: standard inputs of a script, or expressions for calls and asserts. wanted: text, or plain values."""

    form: str
    inputs: tuple[str, ...]
    wanted: tuple[Any, ...]
    setup: str
    tolerance: float


def verify_code(
    response: str,
    answer: str,
    *,
    isolation: str = "strict",
    timeout_s: float = 6.0,
    memory_mib: int = 512,
    output_kib: int = 1024,
    file_mib: int = 16,
    packages: bool = False,
    partial: bool = False,
) -> Reward:
    """1 when the program passes all tests, else 0; with `partial` the share of the tests that it passes.

    isolation: strict (default) refuses to run where the network, files and other processes cannot be kept from the program;
    best_effort runs it with the walls that can be had. timeout_s: for all tests of a response together, to lie below
    reward.timeout_s. memory_mib, output_kib, file_mib: see sandbox.Limits. packages: the program may import what is
    installed beside kray. Raises ValueError for an answer that is not as above or an option out of range, IsolationError.
    """
    if not (isinstance(timeout_s, (int, float)) and 0 < timeout_s < math.inf):
        raise ValueError(f"code: timeout_s must be positive, not {timeout_s!r}")
    limits = Limits(memory_mib, output_kib, file_mib)
    tests = _parsed(answer)
    wanted = _right_sides(answer, isolation, packages) if tests.form == "asserts" else tests.wanted
    program = extract(response)
    if not program.strip():
        return Reward(0.0, "no program")
    deadline = time.monotonic() + timeout_s
    options = {"limits": limits, "isolation": isolation, "packages": packages}
    passed, first = 0, ""
    for number, failure in enumerate(_failures(program, tests, wanted, deadline, options), start=1):
        passed += not failure
        if failure and not first:
            if failure == "timeout":
                failure = f"timeout after {timeout_s:g} s"
            first = f"test {number} of {len(wanted)}: {failure}"
        if failure and not partial:
            break
    share = passed / len(wanted)
    return Reward(share if partial else float(share == 1.0), first)


def extract(response: str) -> str:
    """The program in a response: its last fenced block of Python (an unclosed one goes to the end), else all of it."""
    blocks = [block for tag, block in _FENCED.findall(response) if tag.lower() in _PYTHON]
    return blocks[-1] if blocks else response


def check_options(**options: Any) -> None:
    """Raise unless the sandbox can be had here with these options of verify_code: runs an empty program."""
    verify_code("pass", '{"cases": [{"input": "", "output": ""}]}', **options)


verify_code.check = check_options  # type: ignore[attr-defined]  # see verifiers.check_verifier


def _failures(program: str, tests: _Tests, wanted: tuple[Any, ...], deadline: float, options: dict[str, Any]) -> Any:
    """Of each test in order: "" or why it failed."""
    if tests.form == "cases":
        for given, right in zip(tests.inputs, wanted, strict=True):
            ended = run(program, deadline, stdin=given.encode(), **options)
            same = _same_output(ended.output.decode(errors="replace"), right, tests.tolerance)
            yield ended.failure or ("" if same else f"printed {ended.output[:60].decode(errors='replace')!r}")
        return
    ended = run(program, deadline, expressions=tests.inputs, setup=tests.setup, **options)
    for right, result in itertools.zip_longest(wanted, ended.results[: len(wanted)]):
        if result is None:
            yield ended.failure or "the program ended before it"
        else:
            yield _judge(result, right, tests)


def _judge(result: dict[str, Any], right: Any, tests: _Tests) -> str:
    if "value" not in result:
        return str(result.get("error", "no value"))[:200]
    try:
        value = decode(result["value"], plain=tests.form == "calls")
        same = _equal(value, right, tests.tolerance)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return "a value that cannot be read"
    return "" if same else f"gave {str(result['value'])[:60]}"


# -- the right answer ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _parsed(answer: str) -> _Tests:
    """Raises ValueError that says what is wrong with the answer."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        raise ValueError(f"code: the answer must be JSON, not {answer[:60]!r}") from None
    forms = [form for form in _FORMS if isinstance(found, dict) and form in found]
    if len(forms) != 1 or set(found) - {*forms, "setup", "tolerance"}:
        keys = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f'code: the answer must hold one of "cases", "calls" and "asserts", not {keys[:80]}')
    form, tests = forms[0], found[forms[0]]
    setup, tolerance = found.get("setup", ""), found.get("tolerance", 0.0)
    if not isinstance(setup, str) or type(tolerance) not in (int, float) or not 0 <= tolerance < math.inf:
        raise ValueError('code: "setup" must be text and "tolerance" a number of at least 0')
    if not isinstance(tests, list) or not tests:
        raise ValueError(f'code: "{form}" must be a list of at least one test')
    pairs = [_TEST[form](test, f'code: "{form}", test {number}') for number, test in enumerate(tests, start=1)]
    inputs, wanted = zip(*pairs, strict=True)
    return _Tests(form, inputs, wanted, setup, float(tolerance))


def _case(test: Any, place: str) -> tuple[str, str]:
    if (
        not isinstance(test, dict)
        or set(test) != {"input", "output"}
        or not all(isinstance(v, str) for v in test.values())
    ):
        raise ValueError(f'{place}: must be {{"input": text, "output": text}}')
    return test["input"], test["output"]


def _call(test: Any, place: str) -> tuple[str, Any]:
    known = {"call", "args", "kwargs", "value"}
    if not isinstance(test, dict) or not {"call", "value"} <= set(test) <= known or not isinstance(test["call"], str):
        raise ValueError(f'{place}: must be {{"call": text, "args": list, "kwargs": object, "value": any}}')
    args, kwargs = test.get("args", []), test.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError(f'{place}: "args" must be a list and "kwargs" an object')
    return f"({test['call']})(*{args!r}, **{kwargs!r})", test["value"]


def _assert(test: Any, place: str) -> tuple[str, str]:
    """The texts of both sides."""
    if not isinstance(test, str):
        raise ValueError(f"{place}: must be text")
    try:
        body = ast.parse(test.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{place}: is not Python: {error}") from None
    compared = body[0].test if len(body) == 1 and isinstance(body[0], ast.Assert) else None
    if not isinstance(compared, ast.Compare) or [type(op) for op in compared.ops] != [ast.Eq]:
        raise ValueError(f"{place}: must be one `assert <call> == <value>`, not {test[:80]!r}; else use calls")
    if any(isinstance(node, (ast.Compare, ast.BoolOp)) for node in ast.walk(compared.left)):
        raise ValueError(f"{place}: its left side compares, so the program would see what is right: {test[:80]!r}")
    return ast.unparse(compared.left), ast.unparse(compared.comparators[0])


_TEST = {"cases": _case, "calls": _call, "asserts": _assert}


verify_code.check_answer = _parsed.__wrapped__  # type: ignore[attr-defined]  # see verifiers.check_answer


@functools.lru_cache(maxsize=64)
def _right_sides(answer: str, isolation: str, packages: bool) -> tuple[Any, ...]:
    """The values of the asserts' right sides. Raises ValueError for one that has none without the program."""
    tests = _parsed(answer)
    ended = run(
        "", time.monotonic() + _RIGHT_SIDES_S, expressions=tests.wanted, setup=tests.setup, isolation=isolation,
        packages=packages,
    )  # fmt: skip
    values = []
    for number, result in enumerate([*ended.results, *[{}] * len(tests.wanted)][: len(tests.wanted)], start=1):
        if "value" not in result:
            why = result.get("error") or ended.failure
            raise ValueError(f'code: "asserts", test {number}: its right side gives no plain value by itself: {why}')
        values.append(decode(result["value"], plain=False))
    return tuple(values)


# -- comparing -----------------------------------------------------------------------------------------------------------


def decode(value: Any, plain: bool) -> Any:
    """What confined/__main__.py's `encode` wrote; plain: tuples as lists. Raises ValueError, TypeError, RecursionError."""
    if isinstance(value, list):
        return [decode(item, plain) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag == "__float__":
        return float.fromhex(inner)
    if tag == "__tuple__":
        items = [decode(item, plain) for item in inner]
        return items if plain else tuple(items)
    if tag == "__set__":
        return {decode(item, False) for item in inner}
    if tag == "__dict__":
        return {decode(key, False): decode(item, plain) for key, item in inner}
    if tag == "__bytes__":
        return bytes.fromhex(inner)
    raise ValueError(f"{tag!r} is not known")


def _equal(given: Any, right: Any, tolerance: float) -> bool:
    if isinstance(given, (list, tuple)) and type(given) is type(right):
        return len(given) == len(right) and all(_equal(*pair, tolerance) for pair in zip(given, right, strict=True))
    if isinstance(given, dict) and isinstance(right, dict):
        return given.keys() == right.keys() and all(_equal(given[key], right[key], tolerance) for key in right)
    return _near(given, right, tolerance)


def _near(given: Any, right: Any, tolerance: float) -> bool:
    numbers = all(isinstance(value, (int, float)) for value in (given, right))
    if tolerance and numbers:
        return given == right or math.isclose(given, right, rel_tol=tolerance, abs_tol=tolerance)
    return given == right


def _same_output(given: str, right: str, tolerance: float) -> bool:
    pair = [[line.rstrip() for line in text.rstrip().splitlines()] for text in (given, right)]
    if pair[0] == pair[1]:
        return True
    if not tolerance or len(pair[0]) != len(pair[1]):
        return False
    words = [[word for line in lines for word in line.split()] for lines in pair]
    return len(words[0]) == len(words[1]) and all(
        _same_word(a, b, tolerance) for a, b in zip(words[0], words[1], strict=True)
    )


def _same_word(given: str, right: str, tolerance: float) -> bool:
    if given == right:
        return True
    try:
        return math.isclose(float(given), float(right), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False
