"""A calculator: the policy writes [12+34] and the result is appended to its text."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from kray.config.templates import check_template, fill
from kray.records import Prompt

# Digits of the longest number that is read or returned, so that no call takes long.
_MAX_DIGITS = 60
# Characters of the longest expression that is evaluated.
_MAX_CHARACTERS = 200
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
    """Evaluate an arithmetic expression.

    Policies read the errors as results of tool calls, so their texts are part of the environment.

    Args:
        expression: Numbers with + - * / // % and parentheses.

    Returns:
        The value as text, with ten significant digits unless it is an integer.

    Raises:
        ValueError: The expression holds anything else, is too long, has no value, or a number has more than 60 digits.
    """
    if len(expression) > _MAX_CHARACTERS:
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
    if not abs(value) < 10**_MAX_DIGITS:
        raise ValueError("a number in it is too large")
    return value


class Calculator:
    """Evaluates the policy's calls; done when a turn ends without a call, which the prompt's verifier then scores."""

    stops = ("]",)

    def __init__(self, least_first: bool = False, shown: str = "{}", unclear: str = "?"):
        """Create a calculator.

        Args:
            least_first: Numbers have their least significant digit first, as in the arithmetic prompts.
            shown: What is appended to a call, with {} for the result.
            unclear: The result of an expression that has no value.

        Raises:
            ValueError: `shown` holds no {}.
        """
        try:
            check_template(shown)
        except ValueError as error:
            raise ValueError(f"shown {error}") from None
        self.least_first, self.shown, self.unclear = least_first, shown, unclear

    def reset(self, prompt: Prompt, seed: int) -> str:
        """Add nothing to the prompt."""
        return ""

    def step(self, action: str) -> tuple[str, bool]:
        """Evaluate the call at the end of the turn; a turn without one is the last."""
        if not action.endswith("]"):
            return "", True
        return fill(self.shown, self.result(action[:-1].rpartition("[")[2])), False

    def reward(self) -> None:
        """Leave the reward to the prompt's verifier."""
        return None

    def result(self, expression: str) -> str:
        """Return the value of an expression in the digit order of the prompts, or `unclear`."""
        try:
            value = calculate(_NUMBER.sub(lambda found: self._plain_number(found[0]), expression))
        except ValueError:
            return self.unclear
        return value[::-1] if self.least_first else value

    def _plain_number(self, digits: str) -> str:
        """Return a number as Python reads it, with the most significant digit first and without leading zeros."""
        return (digits[::-1] if self.least_first else digits).lstrip("0") or "0"
