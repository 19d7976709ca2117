"""The reasoning_gym verifier: each task scores answers by its own rule.

The right answer is one JSON string, {"task": name, "entry": {...}}, with everything that the task's scoring reads. JSON has
neither tuples nor keys that are not text, and some tasks compare them: a tuple is written {"__tuple__": [...]}, a mapping
with other keys {"__items__": [[key, value], ...]}. Plain JSON is read as it is.

Some tasks pass an answer to Python's eval, or to SymPy's parse_expr, which evaluates code, too: a policy could run any code
in this process and read the right answer from the surrounding variables. `make_scoring_safe` gives these tasks parsers that
evaluate only literals and arithmetic; what these refuse is scored like any answer that cannot be read.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import functools
import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import reasoning_gym
import sympy
from reasoning_gym.factory import DATASETS
from sympy.parsing import sympy_parser

from kray.rewards.responses import ANSWER_TAG, outside_thinking
from kray.rewards.sentences import answer_candidates
from kray.rewards.task_rules import RULE_DECIDES, deserves_full_credit
from kray.rewards.verifiers import Reward

_EVALUATES, _PARSES = re.compile(r"(?<![\w.])eval\("), re.compile(r"\b(parse_expr|sympify)\(")
# Tasks whose answers are arithmetic on whole numbers, without symbols.
_OF_NUMBERS = ("reasoning_gym.games.countdown", "reasoning_gym.games.puzzle24")
_NUMBERS = re.compile(r"(?!.*(\*\s*\*|/\s*/))[\d\s+\-*/()]+", re.DOTALL)
_FUNCTION_NAMES = """
    abs Abs sqrt root exp log ln sin cos tan cot sec csc asin acos atan sinh cosh tanh Pow Rational Integer Float
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.Name, ast.Call, ast.Load)
_TAGGED = re.compile(ANSWER_TAG, re.DOTALL)


def verify_reasoning(response: str, answer: str, *, partial: bool = True, extract: bool = False) -> Reward:
    """Score an answer by its task's own rule, in [0, 1].

    The scored text is that in the last <answer></answer>, or the whole response without tags; thinking (<think></think>)
    never counts. Most tasks score the text as it stands: one that merely contains the right answer, such as a sentence,
    earns partial credit, about the share of its characters that are the answer.

    Args:
        response: What the policy wrote.
        answer: JSON with "task" and "entry".
        partial: Whether to keep the task's partial credit for nearly right answers (many tasks give 0.01-0.1 to any answer
            at all); False: full credit or nothing.
        extract: Whether to extract the final answer of a response without tags: of `answer_candidates` the first that earns
            full credit counts, else the last.

    Raises:
        ValueError: The right answer does not hold a task and its entry.
    """
    task, entry = _unpack(answer)
    text = outside_thinking(response)
    tagged = _TAGGED.findall(text)
    for given in [tagged[-1].strip()] if tagged else answer_candidates(text) if extract else [text.strip()]:
        if (value := _task_score(task, given, entry)) >= 1.0:
            break
    if not partial:
        value = float(value >= 1.0)
    return Reward(value, "" if value >= 1.0 else f"{task}: {given[:60]!r}")


def check_entry(answer: str) -> None:
    """Check a right answer.

    Args:
        answer: JSON with "task" and "entry".

    Raises:
        ValueError: The task is unknown, or its scoring cannot read the entry.
    """
    task, entry = _unpack(answer)
    if not isinstance(task, str) or task not in DATASETS:
        near = difflib.get_close_matches(str(task), DATASETS, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f"reasoning_gym: the answer's task {task!r:.60} is not known{hint}")
    if not isinstance(entry, dict) or "answer" not in entry:
        raise ValueError(
            f'reasoning_gym: the entry of task "{task}" must be an object with "answer", not {entry!r:.60}'
        )
    try:
        value = _task_score(task, str(entry["answer"]), entry)
    # The scoring of a hundred tasks raises any kind of error.
    except Exception as error:
        why = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f'reasoning_gym: the scoring of task "{task}" cannot read its entry ({why})') from error
    # Some scoring gives 0 to every response where a part of the entry is missing. Not every entry holds its right answer,
    # and the parsers here do not read every right answer: 0 alone does not mean that the entry is broken.
    if value < 1.0 and entry["answer"] is not None and not entry.get("metadata"):
        raise ValueError(
            f'reasoning_gym: by the scoring of task "{task}" the answer of its entry, which has no metadata, is wrong'
        )


# Called by verifiers.check_answer.
verify_reasoning.check_answer = check_entry  # type: ignore[attr-defined]


def _unpack(answer: str) -> tuple[Any, Any]:
    """Return (task, entry) of a right answer; raise ValueError where it does not hold them."""
    try:
        packed = json.loads(answer, object_hook=_restore)
        return packed["task"], packed["entry"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f'reasoning_gym: the answer must be JSON with "task" and "entry", not {answer[:60]!r}'
        ) from error


def _task_score(task: str, given: str, entry: Any) -> float:
    """Return the task's score in [0, 1].

    An answer that the scoring cannot read is wrong, unless it cannot read the entry's own answer either, which raises.
    """
    score = _scoring(task)
    try:
        value = float(score(answer=given, entry=entry))
    except Exception:
        score(answer=str(entry["answer"]), entry=entry)
        return 0.0
    if value >= 1.0 or task in RULE_DECIDES:
        right = deserves_full_credit(task, given, entry, parse_numbers)
        value = 1.0 if right else 0.0 if value >= 1.0 else value
    # Some tasks give 1 + 2e-16.
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


@functools.cache
def _scoring(task: str) -> Callable[..., float]:
    make_scoring_safe()
    return reasoning_gym.get_score_answer_fn(task)


@functools.cache
def make_scoring_safe() -> None:
    """Keep all tasks' scoring from evaluating answers, in this process from now on.

    It covers all tasks at once, as one task may be composed of others.
    """
    for task, _ in DATASETS.values():
        score = task.score_answer
        source, module = inspect.getsource(score), sys.modules[score.__module__]
        # A name of the module shadows the builtin.
        if _EVALUATES.search(source):
            module.eval = ast.literal_eval  # type: ignore[attr-defined]
        if _PARSES.search(source):
            parse = parse_numbers if score.__module__.startswith(_OF_NUMBERS) else parse_arithmetic
            for name, value in list(vars(module).items()):
                if value is sympy:
                    setattr(module, name, _SafeSympy(parse))
                elif value in (sympy_parser.parse_expr, sympy.sympify):
                    setattr(module, name, parse)


def parse_arithmetic(text: str, local_dict: dict[str, Any] | None = None) -> Any:
    """Parse arithmetic without evaluating anything else.

    Args:
        text: Numbers, symbols, operators and calls of _FUNCTIONS.
        local_dict: Values of names, as SymPy's parse_expr takes them.

    Returns:
        The SymPy expression.

    Raises:
        ValueError: The text is not such an expression.
    """
    text = str(text).strip()
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an expression: {type(error).__name__}") from None
    if "#" in text:
        raise ValueError("not arithmetic: a comment")
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        fine = isinstance(node, _NODES)
        if isinstance(node, ast.Constant):
            fine = type(node.value) in (int, float)
        elif isinstance(node, ast.Name) and id(node) in called:
            fine = node.id in _FUNCTIONS
        elif isinstance(node, ast.Name):
            fine = not node.id.startswith("_") and not hasattr(builtins, node.id)
        elif isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name) and not node.keywords
        if not fine:
            raise ValueError(f"not arithmetic: {type(node).__name__}")
    return sympy_parser.parse_expr(text, local_dict=local_dict)


def parse_numbers(text: str) -> Any:
    """Parse arithmetic on whole numbers: digits, parentheses and + - * / only.

    In tasks that prescribe the numbers, x / x would be a 1 made of none, and 3.5 two numbers used as one.

    Raises:
        ValueError: The text holds anything else.
    """
    if not _NUMBERS.fullmatch(str(text).strip()):
        raise ValueError("not arithmetic on numbers")
    return parse_arithmetic(text)


class _SafeSympy(types.ModuleType):
    """SymPy with a safe parser in place of the functions that evaluate text."""

    def __init__(self, parse: Callable[..., Any]):
        super().__init__("sympy")
        self.parse_expr = self.sympify = parse

    def __getattr__(self, name: str) -> Any:
        return getattr(sympy, name)


def _restore(value: dict[str, Any]) -> Any:
    if len(value) == 1:
        if "__tuple__" in value:
            return tuple(value["__tuple__"])
        if "__items__" in value:
            return dict(value["__items__"])
    return value
