"""The reasoning_gym verifier: each task brings its own scoring, by how right an answer is.

The right answer travels as one JSON string, {"task": name, "entry": {...}}, with everything the task's scoring looks at.
JSON has neither tuples nor keys that are not text, and some tasks compare them: a tuple is written {"__tuple__": [...]},
a mapping with other keys {"__items__": [[key, value], ...]}. Plain JSON is read as it is.

Some tasks hand an answer to Python's eval, or to SymPy's parse_expr, which evaluates as well: a policy could run any code
here, and read the right answer from the variables around. `disarm` gives these tasks parsers that evaluate nothing but
literals and arithmetic; what they refuse is scored like any answer that cannot be read.
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

from kray.rewards.responses import outside_thinking
from kray.rewards.sentences import answer_candidates
from kray.rewards.task_rules import DECIDED, fully_right
from kray.rewards.verifiers import Reward

_EVALUATES, _PARSES = re.compile(r"(?<![\w.])eval\("), re.compile(r"\b(parse_expr|sympify)\(")
_OF_NUMBERS = ("reasoning_gym.games.countdown", "reasoning_gym.games.puzzle24")  # what is asked for holds no symbol
_NUMBERS = re.compile(r"(?!.*(\*\s*\*|/\s*/))[\d\s+\-*/()]+", re.DOTALL)
_FUNCTIONS = {
    "abs", "Abs", "sqrt", "root", "exp", "log", "ln", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan",
    "sinh", "cosh", "tanh", "Pow", "Rational", "Integer", "Float",
}  # fmt: skip
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.Name, ast.Call, ast.Load)
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


def verify_reasoning(response: str, answer: str, *, partial: bool = True, extract: bool = False) -> Reward:
    """Score an answer by its task's own rule, in [0, 1].

    What is scored is the text in the last <answer></answer>, or without tags the whole response; thinking
    (<think></think>) never counts. Most tasks score the text as it stands: one that merely contains the right answer, such
    as a sentence, earns partial credit, about the share of its characters that are the answer.

    Args:
        answer: JSON with "task" and "entry".
        partial: keep the task's marks for nearly right answers (many tasks give 0.01-0.1 to any answer at all); False: full
            marks or nothing.
        extract: take the final answer out of a response without tags, as `readings` says: of its readings the first that
            earns full marks counts, else the last.

    Raises:
        ValueError: for an answer that does not hold a task and its entry.
    """
    task, entry = _unpack(answer)
    said = outside_thinking(response)
    tagged = _TAGGED.findall(said)
    for given in [tagged[-1].strip()] if tagged else answer_candidates(said) if extract else [said.strip()]:
        if (value := _marks(task, given, entry)) >= 1.0:
            break
    if not partial:
        value = float(value >= 1.0)
    return Reward(value, "" if value >= 1.0 else f"{task}: {given[:60]!r}")


def check_entry(answer: str) -> None:
    """Raise ValueError for a right answer that holds no known task, or an entry that the task's scoring cannot read."""
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
        value = _marks(task, str(entry["answer"]), entry)
    except Exception as error:  # whatever the scoring of one of a hundred tasks raises
        why = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f'reasoning_gym: the scoring of task "{task}" cannot read its entry ({why})') from error
    # Some scoring gives 0 where what it looks at is missing, to every response. Not every entry holds its right answer, and
    # the parsers here do not read every right answer: 0 alone does not say that the entry is broken.
    if value < 1.0 and entry["answer"] is not None and not entry.get("metadata"):
        raise ValueError(
            f'reasoning_gym: by the scoring of task "{task}" the answer of its entry, which has no metadata, is wrong'
        )


verify_reasoning.check_answer = check_entry  # type: ignore[attr-defined]  # see verifiers.check_answer


def _unpack(answer: str) -> tuple[Any, Any]:
    """(task, entry) of a right answer. Raises ValueError where it does not hold them."""
    try:
        packed = json.loads(answer, object_hook=_restore)
        return packed["task"], packed["entry"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f'reasoning_gym: the answer must be JSON with "task" and "entry", not {answer[:60]!r}'
        ) from error


def _marks(task: str, given: str, entry: Any) -> float:
    """The task's score. What the scoring cannot read is wrong, unless it cannot read the entry's own answer either."""
    score = _scoring(task)
    try:
        value = float(score(answer=given, entry=entry))
    except Exception:
        score(answer=str(entry["answer"]), entry=entry)
        return 0.0
    if value >= 1.0 or task in DECIDED:
        right = fully_right(task, given, entry, parse_numbers)
        value = 1.0 if right else 0.0 if value >= 1.0 else value
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0  # some give 1 + 2e-16


@functools.cache
def _scoring(task: str) -> Callable[..., float]:
    disarm()
    return reasoning_gym.get_score_answer_fn(task)


@functools.cache
def disarm() -> None:
    """From now on no task's scoring evaluates an answer, in this process. All tasks: one may be made of others."""
    for task, _ in DATASETS.values():
        score = task.score_answer
        source, module = inspect.getsource(score), sys.modules[score.__module__]
        if _EVALUATES.search(source):
            module.eval = ast.literal_eval  # type: ignore[attr-defined]  # found before the builtin of this name
        if _PARSES.search(source):
            parse = parse_numbers if score.__module__.startswith(_OF_NUMBERS) else parse_arithmetic
            for name, value in list(vars(module).items()):
                if value is sympy:
                    setattr(module, name, _Careful(parse))
                elif value in (sympy_parser.parse_expr, sympy.sympify):
                    setattr(module, name, parse)


def parse_arithmetic(text: str, local_dict: dict[str, Any] | None = None) -> Any:
    """The SymPy expression of an arithmetic expression: numbers, symbols, operators, _FUNCTIONS. Raises ValueError."""
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
    """The same of whole numbers, parentheses and + - * / alone: x / x would be a 1 that no number was used for, 3.5 two
    numbers that are one."""
    if not _NUMBERS.fullmatch(str(text).strip()):
        raise ValueError("not arithmetic on numbers")
    return parse_arithmetic(text)


class _Careful(types.ModuleType):
    """SymPy, but for what evaluates text."""

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
