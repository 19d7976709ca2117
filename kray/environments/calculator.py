"""A calculator: the policy writes [12+34], and the result is appended to what it wrote."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from kray.records import Prompt

_DIGITS = 60  # of the longest number that is taken or given
_CHARACTERS = 200  # of the longest expression
_NUMBER = re.compile(r"\d+")
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def calculate(expression: str) -> str:
    """The value of numbers with + - * / // % and brackets; ten significant digits where it is no integer.

    Raises ValueError for anything else, and for numbers of more than 60 digits.
    """
    if len(expression) > _CHARACTERS:
        raise ValueError("the expression is too long")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression!r:.60} has no value: {type(error).__name__}") from None
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def _value(node: ast.AST) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value: Any = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError("it holds something other than numbers and + - * / // % ( )")
    if not abs(value) < 10**_DIGITS:
        raise ValueError("a number in it is too large")
    return value


class Calculator:
    """Done when the policy ends its turn without a call; the prompt's verifier judges that turn.

    least_first: numbers have their least significant digit first, as in the arithmetic prompts. shown: what is appended to
    a call, with {} for the result; unclear: the result of what has none.
    """

    stops = ("]",)

    def __init__(self, least_first: bool = False, shown: str = "{}", unclear: str = "?"):
        if "\0" not in shown.format("\0"):
            raise ValueError(f"shown must hold {{}}, not {shown!r}")
        self.least_first, self.shown, self.unclear = least_first, shown, unclear

    def reset(self, prompt: Prompt, seed: int) -> str:
        return ""

    def step(self, action: str) -> tuple[str, bool]:
        if not action.endswith("]"):
            return "", True
        return self.shown.format(self.result(action[:-1].rpartition("[")[2])), False

    def reward(self) -> None:
        return None

    def result(self, expression: str) -> str:
        try:
            value = calculate(_NUMBER.sub(lambda found: self._turned(found[0]), expression))
        except ValueError:
            return self.unclear
        return value[::-1] if self.least_first else value

    def _turned(self, digits: str) -> str:
        """A number as Python reads it: without zeros in front."""
        return (digits[::-1] if self.least_first else digits).lstrip("0") or "0"
