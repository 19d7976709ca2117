"""The code verifier: run the Python program in a response against its tests, in a sandbox.

The program is the last fenced code block of the response that is marked as Python or not marked at all, else the whole
text; thinking (<think></think>) does not count. The right answer is one JSON object with exactly one of

    {"cases": [{"input": "1 2\\n", "output": "3\\n"}, ...]}                     a script: standard input and output
    {"calls": [{"call": "add", "args": [1, 2], "kwargs": {}, "value": 3}, ...]}   functions: JSON in, JSON out
    {"asserts": ["assert add(1, 2) == 3", ...]}                                  Python source, `==` at the top level

and optionally "tolerance" and, for calls and asserts, "setup" (Python that runs after the program). "call" is any expression
that evaluates to the function, such as Solution().add. values.py defines equality: numbers by value, True is not 1, NaN
equals NaN, and in calls a tuple equals a list. A tolerance is relative to the right number and below 1; {"relative": r,
"absolute": a} sets both separately. Output is compared line by line, ignoring spaces at line ends and empty lines at the end.

Expected outputs and values never enter the program's process. Outputs and plain values are compared in this process: an
object of another class cannot influence the comparison (`__eq__`), and one of a subclass counts as the base type's value.
The program's process evaluates those parts of an assert that need the program; the rest is evaluated in a sandbox that
holds no program (asserts.py). Asserts of another form (`assert f(x)`, `abs(f(x) - 2) < 1e-6`) are refused: write them as
calls, with a tolerance where one is needed. A script gets a process per case; calls and asserts share one.

What cannot be hidden from the program: inputs, "call", and the setup except for what only right sides use. What no test uses is
taken for the program's to use, such as a class of the task or a function that it is told to call: a reference that no right
side calls does not belong into the setup. A setup or a call that compares the program's results does so in the program's
process, where the program can manipulate the comparison; the same holds for a method of a result with its arguments
(`f(3).startswith("abc")`). Let tests return the value itself.
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kray.rewards.confined.plain import encode
from kray.rewards.program_tests import Tests, read_tests
from kray.rewards.responses import FENCED, outside_thinking
from kray.rewards.sandbox import Limits, run
from kray.rewards.values import UNREADABLE, same_output, same_value, source
from kray.rewards.verifiers import Reward

# Info strings of fenced blocks that hold Python; "" is a block without one.
_PYTHON = ("", "python", "python3", "py")
# Seconds for evaluating the right sides of the data's asserts, once per answer.
_RIGHT_SIDES_S = 3.0
# A day; a program that runs longer holds its scoring process for nothing.
_MOST_S = 86_400.0


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
    """Run the program in a response against its tests.

    Args:
        response: What the policy wrote.
        answer: The tests, see the module.
        isolation: "strict" refuses to run where the program cannot be cut off from the network, files and other processes;
            "best_effort" runs it with the restrictions that are available.
        timeout_s: Seconds for all tests of a response together; must be below reward.timeout_s.
        memory_mib: Address space of the program's process.
        output_kib: Bound of its standard output, and of its results.
        file_mib: Bound of all that it writes to its folder.
        packages: Whether the program may import packages that are installed beside kray.
        partial: Whether a program that fails some tests earns the share of tests that it passes.

    Returns:
        1 when the program passes all tests, else 0 (with `partial`, the share of tests passed). The detail describes the
        first failure.

    Raises:
        ValueError: The answer does not have the described form, or an option is out of range.
        IsolationError: `isolation` is "strict" and a restriction is missing here.
    """
    if not (isinstance(timeout_s, (int, float)) and 0.001 <= timeout_s <= _MOST_S):
        raise ValueError(f"code: timeout_s must be from 0.001 to {_MOST_S:g} s, not {timeout_s!r:.60}")
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
    """Return the program in a response.

    Returns:
        The last fenced block of Python outside of thinking (an unclosed block goes to the end), else all the text outside
        of thinking.
    """
    text = outside_thinking(response)
    blocks = [block for tag, block in FENCED.findall(text) if tag.lower() in _PYTHON]
    return blocks[-1] if blocks else text


def check_options(**options: Any) -> None:
    """Check options of verify_code by running an empty program.

    Raises:
        ValueError: An option is out of range.
        IsolationError: The sandbox is not available here with these options.
    """
    verify_code("pass", '{"cases": [{"input": "", "output": ""}]}', **options)


# Called by verifiers.check_verifier and verifiers.check_answer.
verify_code.check = check_options  # type: ignore[attr-defined]
verify_code.check_answer = read_tests.__wrapped__  # type: ignore[attr-defined]


def _failures(
    program: str, tests: Tests, rights: Sequence[Any], deadline: float, options: dict[str, Any]
) -> Iterator[str]:
    """Yield for each test, in order, "" or why it failed."""
    if tests.form == "cases":
        for test, right in zip(tests.tests, rights, strict=True):
            result = run(program, deadline, stdin=test.inputs[0].encode(), **options)
            same = same_output(result.output, right, tests.tolerance)
            yield result.failure or ("" if same else f"printed {result.output[:60].decode(errors='replace')!r}")
        return
    expressions = [text for test in tests.tests for text in test.inputs]
    result = run(program, deadline, expressions=expressions, setup=tests.program_setup, **options)
    missing: dict[str, Any] = {"error": result.failure or "the program ended before it"}
    results = iter([*result.results, *[missing] * len(expressions)])
    by_test = [list(itertools.islice(results, len(test.inputs))) for test in tests.tests]
    lefts = _left_sides(tests, by_test, deadline, options)
    for left, right in zip(lefts, rights, strict=True):
        yield _failure(left, right, tests)


def _left_sides(
    tests: Tests, by_test: list[list[dict[str, Any]]], deadline: float, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return for each test the value to compare, or an error.

    The value is the program's, or what `combine` computes from the program's values in a process without the program.
    """
    lefts = [next((result for result in results if "value" not in result), results[0]) for results in by_test]
    combined: dict[int, str] = {}
    for index, (test, left) in enumerate(zip(tests.tests, lefts, strict=True)):
        if test.combine and "value" in left:
            try:
                combined[index] = f"{test.combine}({', '.join(source(result['value']) for result in by_test[index])})"
            except UNREADABLE:
                lefts[index] = {"error": "a value that cannot be read"}
    if combined:
        ran = run("", deadline, expressions=list(combined.values()), setup=tests.setup, **options)
        missing: dict[str, Any] = {"error": ran.failure or "no value"}
        for index, result in zip(combined, itertools.chain(ran.results, itertools.repeat(missing)), strict=False):
            lefts[index] = result
    return lefts


def _failure(result: dict[str, Any], right: Any, tests: Tests) -> str:
    """Return why a result is not the right one; "" when it is."""
    if "value" not in result:
        error = result.get("error", "no value")
        return error[:200] or "an error" if isinstance(error, str) else "a result that cannot be read"
    try:
        same = same_value(result["value"], right, tests.tolerance, tuples_are_lists=tests.form == "calls")
        return "" if same else f"gave {json.dumps(result['value'])[:60]}"
    except UNREADABLE:
        return "a value that cannot be read"


@functools.lru_cache(maxsize=64)
def _right_sides(answer: str, isolation: str, packages: bool) -> tuple[Any, ...]:
    """Return the encoded values of the asserts' right sides.

    Raises:
        ValueError: A right side cannot be evaluated without the program.
    """
    tests = read_tests(answer)
    rights: list[Any] = []
    for test in tests.tests:
        try:
            rights.append({"value": encode(ast.literal_eval(test.right))})
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            rights.append(None)
    expressions = [test.right for test, right in zip(tests.tests, rights, strict=True) if right is None]
    if expressions:
        deadline = time.monotonic() + _RIGHT_SIDES_S
        options: dict[str, Any] = {"setup": tests.setup, "isolation": isolation, "packages": packages}
        ran = run("", deadline, expressions=expressions, **options)
        found = itertools.chain(ran.results, itertools.repeat({"error": ran.failure}))
        rights = [next(found) if right is None else right for right in rights]
    for number, right in enumerate(rights, start=1):
        if "value" not in right:
            raise ValueError(
                f'code: "asserts", test {number}: its right side gives no plain value by itself: {right.get("error")}'
            )
    return tuple(right["value"] for right in rights)
