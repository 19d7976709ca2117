"""The code verifier: does the program in a response pass its tests? Python programs, run in a sandbox.

The program is the last fenced code block of the response that is marked as Python or not at all, else the whole text;
thinking (<think></think>) does not count. The right answer travels as one JSON object with exactly one of

    {"cases": [{"input": "1 2\\n", "output": "3\\n"}, ...]}                     a script: standard input and output
    {"calls": [{"call": "add", "args": [1, 2], "kwargs": {}, "value": 3}, ...]}   functions: JSON in, JSON out
    {"asserts": ["assert add(1, 2) == 3", ...]}                                  Python's text, `==` at the top

and, if wanted, "tolerance" and for calls and asserts "setup" (Python that runs after the program). "call" is any expression
that gives the function, such as Solution().add. What counts as equal is written down in values.py: numbers by value, True is
not 1, NaN is NaN, in calls a tuple is a list. A tolerance is relative to the right number; {"relative": r, "absolute": a}
sets both apart. Output is compared line by line, spaces at line ends and empty lines at the end aside.

What should come out never enters the program's process. Outputs and plain values are compared here: an object of another
class has no say in whether it is equal (`__eq__`), and one of a subclass counts as the base type's value. Of an assert the
program's process evaluates what needs the program, and the rest is evaluated in a sandbox that holds no program
(asserts.py). Asserts of another form (`assert f(x)`, `abs(f(x) - 2) < 1e-6`) are refused: write them as calls, with a
tolerance where one is needed. A script gets a process per case; calls and asserts share one.

What cannot be kept from the program: inputs, "call", and all of the setup but what right sides alone use. A setup or a call
that compares what the program gives does so in the program's process, where the program can make it say anything, and so
does a method of what the program gives with its arguments (`f(3).startswith("abc")`): let the value itself come out.
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kray.rewards.confined.plain import encode
from kray.rewards.program_tests import Tests, read_tests
from kray.rewards.responses import outside_thinking
from kray.rewards.sandbox import Limits, run
from kray.rewards.values import UNREADABLE, same_output, same_value, source
from kray.rewards.verifiers import Reward

_FENCED = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")
_RIGHT_SIDES_S = 3.0  # for the data's own right sides, which run once per answer


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
    tests = read_tests(answer)
    rights = _right_sides(answer, isolation, packages) if tests.form == "asserts" else [t.right for t in tests.tests]
    program = extract(response)
    if not program.strip():
        return Reward(0.0, "no program")
    deadline = time.monotonic() + timeout_s
    options = {"limits": limits, "isolation": isolation, "packages": packages}
    passed, first = 0, ""
    for number, failure in enumerate(_failures(program, tests, rights, deadline, options), start=1):
        passed += not failure
        if failure and not first:
            if failure == "timeout":
                failure = f"timeout after {timeout_s:g} s"
            first = f"test {number} of {len(rights)}: {failure}"
        if failure and not partial:
            break
    share = passed / len(rights)
    return Reward(share if partial else float(share == 1.0), first)


def extract(response: str) -> str:
    """The program in a response, thinking aside: its last fenced block of Python (an unclosed one goes to the end), else
    all of it."""
    said = outside_thinking(response)
    blocks = [block for tag, block in _FENCED.findall(said) if tag.lower() in _PYTHON]
    return blocks[-1] if blocks else said


def check_options(**options: Any) -> None:
    """Raise unless the sandbox can be had here with these options of verify_code: runs an empty program."""
    verify_code("pass", '{"cases": [{"input": "", "output": ""}]}', **options)


verify_code.check = check_options  # type: ignore[attr-defined]  # see verifiers.check_verifier
verify_code.check_answer = read_tests.__wrapped__  # type: ignore[attr-defined]  # see verifiers.check_answer


def _failures(
    program: str, tests: Tests, rights: Sequence[Any], deadline: float, options: dict[str, Any]
) -> Iterator[str]:
    """Of each test in order: "" or why it failed."""
    if tests.form == "cases":
        for test, right in zip(tests.tests, rights, strict=True):
            ended = run(program, deadline, stdin=test.asked[0].encode(), **options)
            same = same_output(ended.output, right, tests.tolerance)
            yield ended.failure or ("" if same else f"printed {ended.output[:60].decode(errors='replace')!r}")
        return
    asked = [text for test in tests.tests for text in test.asked]
    ended = run(program, deadline, expressions=asked, setup=tests.program_setup, **options)
    lacking: dict[str, Any] = {"error": ended.failure or "the program ended before it"}
    results = iter([*ended.results, *[lacking] * len(asked)])
    given = [list(itertools.islice(results, len(test.asked))) for test in tests.tests]
    lefts = _left_sides(tests, given, deadline, options)
    for left, right in zip(lefts, rights, strict=True):
        yield _judge(left, right, tests)


def _left_sides(
    tests: Tests, given: list[list[dict[str, Any]]], deadline: float, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Of each test the value to compare, or an error: what the program gave, or what a process without it makes of that."""
    lefts = [next((result for result in results if "value" not in result), results[0]) for results in given]
    made: dict[int, str] = {}
    for index, (test, left) in enumerate(zip(tests.tests, lefts, strict=True)):
        if test.around and "value" in left:
            try:
                made[index] = f"{test.around}({', '.join(source(result['value']) for result in given[index])})"
            except UNREADABLE:
                lefts[index] = {"error": "a value that cannot be read"}
    if made:
        ended = run("", deadline, expressions=list(made.values()), setup=tests.setup, **options)
        lacking: dict[str, Any] = {"error": ended.failure or "no value"}
        for index, result in zip(made, itertools.chain(ended.results, itertools.repeat(lacking)), strict=False):
            lefts[index] = result
    return lefts


def _judge(result: dict[str, Any], right: Any, tests: Tests) -> str:
    if "value" not in result:
        return str(result.get("error", "no value"))[:200]
    try:
        same = same_value(result["value"], right, tests.tolerance, tuples_are_lists=tests.form == "calls")
        return "" if same else f"gave {json.dumps(result['value'])[:60]}"
    except UNREADABLE:
        return "a value that cannot be read"


@functools.lru_cache(maxsize=64)
def _right_sides(answer: str, isolation: str, packages: bool) -> tuple[Any, ...]:
    """The encoded values of the asserts' right sides. Raises ValueError for one that has none without the program."""
    tests = read_tests(answer)
    rights: list[Any] = []
    for test in tests.tests:
        try:
            rights.append({"value": encode(ast.literal_eval(test.right))})
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            rights.append(None)
    asked = [test.right for test, right in zip(tests.tests, rights, strict=True) if right is None]
    if asked:
        ended = run(
            "", time.monotonic() + _RIGHT_SIDES_S, expressions=asked, setup=tests.setup, isolation=isolation,
            packages=packages,
        )  # fmt: skip
        found = itertools.chain(ended.results, itertools.repeat({"error": ended.failure}))
        rights = [next(found) if right is None else right for right in rights]
    for number, right in enumerate(rights, start=1):
        if "value" not in right:
            raise ValueError(
                f'code: "asserts", test {number}: its right side gives no plain value by itself: {right.get("error")}'
            )
    return tuple(right["value"] for right in rights)
