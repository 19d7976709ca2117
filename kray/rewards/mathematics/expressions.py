"""Parse one mathematical expression, strictly: text that is not understood as a whole is `Unreadable`, never parsed in part.

An expression is a tree of tuples: ("num", Fraction), ("sym", name), ("const", "pi" | "e" | "i" | "inf"), an operator of
`evaluation.py` with its operands, or ("fn", name, arguments). Input is text normalized by `notation.normalize`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from kray.rewards.mathematics.tokens import CONSTANTS, END, FUNCTIONS, Token, Unreadable, tokenize

Node = tuple[Any, ...]

# Levels of nesting of brackets and operators.
_DEPTH = 60

_INVERSES = {name: "arc" + name for name in ("sin", "cos", "tan")}
# Before a parenthesis these are unknown functions, not factors.
_APPLIED = {"f", "g", "O", "\\Theta", "\\phi", "\\sigma", "\\Gamma"}
_SEVERAL = ("gcd", "lcm", "max", "min")
_GREEK_LETTERS = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
    omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar
"""
GREEK = frozenset(_GREEK_LETTERS.split())
# Over several letters, lines and arrows do not change which object is meant (AB); over one letter they do.
_OVER = ("overline", "overrightarrow", "overleftrightarrow", "bar", "widehat", "hat", "tilde", "vec")
_CLOSES = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil", "|": "|"}
_BEGINS_FACTOR = FUNCTIONS | GREEK | CONSTANTS.keys() | {"frac", "binom", "lfloor", "lceil", *_OVER}
_DEGREE_SIGNS = (["\\circ"], ["{", "\\circ", "}"])


def read(text: str) -> Node:
    """Parse normalized text as one expression.

    Returns:
        The tree of the whole text.

    Raises:
        Unreadable: A part of it is not understood.
    """
    reader = _Reader(tokenize(text))
    node = reader.sum()
    if reader.peek() is not END:
        raise Unreadable(f"{reader.peek().text!r} is left over")
    return node


def symbols(node: Node) -> set[str]:
    """Return the names of the variables in an expression."""
    if node[0] == "sym":
        return {node[1]}
    return set().union(*(symbols(child) for child in node[1:] if isinstance(child, tuple)))


def _is_angle(node: Node) -> bool:
    return node == ("const", "pi") or (node[0] == "mul" and _is_angle(node[2]))


class _Reader:
    """A recursive-descent parser: sum, product, sign, power, primary."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.position, self.depth, self.in_bars = tokens, 0, 0, False

    def peek(self, ahead: int = 0) -> Token:
        where = self.position + ahead
        return self.tokens[where] if where < len(self.tokens) else END

    def next(self) -> Token:
        self.position += 1
        return self.tokens[self.position - 1] if self.position <= len(self.tokens) else END

    def take(self, *wanted: str) -> str:
        """Consume the next token if it is one of these and return its text, else ""."""
        return self.next().text if self.peek().text in wanted else ""

    def expect(self, wanted: str) -> None:
        if not self.take(wanted):
            raise Unreadable(f"{wanted!r} is missing")

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > _DEPTH:
            raise Unreadable("too many brackets")
        node = self.product()
        while sign := self.take("+", "-"):
            other = self.product()
            node = ("add", node, ("neg", other) if sign == "-" else other)
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.take("\\cdot", "*"):
                node = ("mul", node, self.signed())
            elif self.take("/"):
                node = ("div", node, self.signed())
            elif self.factor_follows() or (
                self.peek().value is not None and self.tokens[self.position - 1].text == "!"
            ):
                node = ("mul", node, self.power())
            else:
                return node

    def factor_follows(self) -> bool:
        """Return whether a factor follows without an operator. A number is none: "60 61" is not a product."""
        text = self.peek().text
        if self.peek().value is not None:
            return False
        if text == "|":
            return not self.in_bars
        return (
            text in ("(", "{", "[")
            or (text.isascii() and text.isalpha())
            or (text[1:] in _BEGINS_FACTOR and text[0] == "\\")
        )

    def signed(self) -> Node:
        self.depth += 1
        if self.depth > _DEPTH:
            raise Unreadable("too many signs")
        sign = self.take("-", "+")
        node = self.signed() if sign else self.power()
        self.depth -= 1
        return ("neg", node) if sign == "-" else node

    def power(self) -> Node:
        node = self.postfix(self.primary())
        if self.take("^"):
            node = self.postfix(("deg", node) if self.degree() else ("pow", node, self.exponent()))
        return node

    def exponent(self) -> Node:
        if self.take("-"):
            return ("neg", self.exponent())
        node = self.number() if self.peek().value is not None else self.primary()
        return ("pow", node, self.exponent()) if self.take("^") else node

    def degree(self) -> bool:
        """Consume a degree sign behind "^" and return whether there was one."""
        for sign in _DEGREE_SIGNS:
            if [token.text for token in self.tokens[self.position : self.position + len(sign)]] == sign:
                self.position += len(sign)
                return True
        return False

    def postfix(self, node: Node) -> Node:
        while sign := self.take("!", "%"):
            if sign == "!" and self.peek().text == "!":
                raise Unreadable("!!")
            node = ("fact" if sign == "!" else "pct", node)
        return node

    def primary(self) -> Node:
        if self.peek().value is not None:
            return self.mixed(self.number())
        token = self.next().text
        if token in ("(", "[", "{", "|"):
            inside = self.up_to(_CLOSES[token])
            return ("fn", "abs", inside) if token == "|" else inside
        if token.isascii() and token.isalpha():
            return self.symbol(token)
        if token[:1] == "\\":
            return self.command(token[1:])
        raise Unreadable(f"{token!r} begins no expression")

    def number(self) -> Node:
        return ("num", self.next().value)

    def mixed(self, node: Node) -> Node:
        """Combine an integer and a proper fraction of integers behind it into a mixed number: 1 3/4, 1\\frac34."""
        begin, whole = self.position, node[1]
        if whole.denominator != 1 or whole == 0:
            return node
        if self.peek().value is not None and self.peek(1).text == "/" and self.peek(2).value is not None:
            top, bottom = self.peek(), self.peek(2)
            self.position += 3
        elif self.take("\\frac"):
            top, bottom = self.braced_digits(), self.braced_digits()
        else:
            return node
        if top.text.isdigit() and bottom.text.isdigit() and 0 < top.value < bottom.value and self.peek().text != "^":  # type: ignore[operator]
            return ("num", whole + top.value / bottom.value)  # type: ignore[operator]
        self.position = begin
        return node

    def braced_digits(self) -> Token:
        """Return the next argument of \\frac where it is a number, else a token without a value."""
        if self.peek().text == "{" and self.peek(2).text == "}":
            self.position += 3
            return self.tokens[self.position - 2]
        if self.peek().text[:1].isdigit():
            self.split_digits()
            return self.next()
        return self.next()

    def split_digits(self) -> None:
        """Split the next number after its first digit, which alone is an argument without braces (\\frac12, \\sqrt25)."""
        text = self.peek().text
        if len(text) > 1:
            if not text.isdigit():
                raise Unreadable("a number without braces")
            self.tokens[self.position : self.position + 1] = [
                Token(text[0], Fraction(text[0])),
                Token(text[1:], Fraction(text[1:])),
            ]

    def argument(self) -> Node:
        """Parse the argument of a command: a group in braces, or the next digit, letter or command."""
        if self.peek().value is not None:
            self.split_digits()
            return self.number()
        return self.primary()

    def up_to(self, closing: str) -> Node:
        outside, self.in_bars = self.in_bars, closing == "|"
        node = self.sum()
        self.expect(closing)
        self.in_bars = outside
        return node

    def symbol(self, name: str) -> Node:
        if self.take("_"):
            return ("sym", f"{name}_{self.subscript()}")
        while self.take("'"):
            name += "'"
        if name.rstrip("'") in _APPLIED and self.peek().text == "(":
            self.next()
            arguments = [self.sum()]
            while self.take(","):
                arguments.append(self.sum())
            self.expect(")")
            return ("fn", "applied", name, *arguments)
        return ("const", name) if name in ("e", "i") else ("sym", name)

    def subscript(self) -> str:
        """Return the text of a subscript, without braces."""
        if not self.take("{"):
            token = self.next().text
            if not token.isalnum():
                raise Unreadable("a subscript is missing")
            return token
        begin = self.position
        while self.peek() is not END and not self.take("}"):
            self.position += 1
        return "".join(token.text for token in self.tokens[begin : self.position - 1])

    def command(self, name: str) -> Node:
        if name in CONSTANTS:
            return ("const", CONSTANTS[name])
        if name in GREEK:
            return self.symbol("\\" + name)
        if name in ("frac", "binom"):
            first, second = self.argument(), self.argument()
            return ("div", first, second) if name == "frac" else ("fn", "binom", first, second)
        if name in ("lfloor", "lceil"):
            return ("fn", "floor" if name == "lfloor" else "ceil", self.up_to(_CLOSES["\\" + name]))
        if name in _OVER:
            under = self.argument()
            if under[0] != "sym":
                raise Unreadable(f"\\{name}")
            return under if len(under[1]) > 1 else ("sym", f"\\{name} {under[1]}")
        if name in FUNCTIONS:
            return self.function(name)
        raise Unreadable(f"\\{name}")

    def function(self, name: str) -> Node:
        if name == "sqrt":
            index = (self.up_to("]"),) if self.take("[") else ()
            return ("fn", "root", self.argument(), *index)
        if name == "log" and self.take("_"):
            base = self.argument()
            return ("fn", "log", self.operand(), base)
        exponent = self.exponent() if self.take("^") else None
        if exponent == ("neg", ("num", Fraction(1))):
            name, exponent = "a" + name, None
            if name not in FUNCTIONS:
                raise Unreadable(f"the inverse of {name[1:]}")
        name = _INVERSES.get(name[1:], name) if name[0] == "a" else name
        node: Node = ("fn", name, *(self.several() if name in _SEVERAL else [self.operand()]))
        return ("pow", node, exponent) if exponent else node

    def several(self) -> list[Node]:
        """Parse arguments in brackets, separated by commas."""
        opening = self.take("(", "{")
        if not opening:
            raise Unreadable("arguments are missing")
        found = [self.sum()]
        while self.take(","):
            found.append(self.sum())
        self.expect(_CLOSES[opening])
        return found

    def operand(self) -> Node:
        """Parse the operand of a function: one bracket, or the factors up to the next function, bracket or sign."""
        if self.peek().text in ("(", "{", "[", "|"):
            return self.power()
        node = ("neg", self.power()) if self.take("-") else self.power()
        while self.factor_follows() and self.peek().text != "(" and self.peek().text[1:] not in FUNCTIONS:
            node = ("mul", node, self.power())
        # sin pi/2
        if self.peek().text == "/" and self.peek(1).value is not None and _is_angle(node):
            self.position += 1
            node = ("div", node, self.number())
        return node
