"""What an assert asks of a program, and what the program must not see of it. Pure: nothing is run here.

An assert is `assert <left side> == <right side>`. Of the left side the program's process evaluates only what needs the
program: calls of its names, and around them what adds nothing that could be read (`sorted(f(1))`, `f(1)[0]`, `A(1) + A(2)`).
The rest (`round(f(2), 3)`, `isclose(f(2), 1.5)`, `f(3) - 9`) is evaluated apart, on the plain values that came back, so
that no object of the program takes part in it and no number in it is seen.

Of the setup the program's process gets what right sides do not use. What both sides use cannot be kept apart: refused.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_COMPARES = {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains", "bool")}
_SCOPES = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.NamedExpr)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_ANSWER = "__answer{}__"  # stands for the value that came back for the part of this number


@dataclass(frozen=True, slots=True)
class Assert:
    """One test.

    Args:
        asked: expressions that need the program.
        around: the left side as a function of their values; "": it is the one value asked for.
        right: the right side, which needs the setup at most.
    """

    asked: tuple[str, ...]
    around: str
    right: str


class Setup:
    """The setup of a program's tests, statement by statement. Raises ValueError when it is not Python."""

    def __init__(self, text: str) -> None:
        self._statements = parse(text)
        self._binds = [_bound(statement) for statement in self._statements]
        self._reads = [names_of(statement) for statement in self._statements]
        self._imports = _imported(self._statements)
        self.names = frozenset[str]().union(*self._binds)

    def reached(self, names: Collection[str]) -> set[str]:
        """Names of the setup that these names need, themselves included."""
        found: set[str] = set()
        ahead = set(names) & self.names
        while ahead:
            found |= ahead
            needed = [{*b, *r} for b, r in zip(self._binds, self._reads, strict=True) if b & ahead]
            ahead = (set[str]().union(*needed) & self.names) - found
        return found

    def own_names(self) -> set[str]:
        """Names that are there without the program: of Python, imports, and of the setup where it needs no program."""
        there = {*dir(builtins), *self._imports, *self.names}
        needing = [
            binds
            for statement, binds in zip(self._statements, self._binds, strict=True)
            if names_of(statement) - _local(statement) - there
        ]
        lacking = set[str]().union(*needing)
        return there - {name for name in self.names if self.reached([name]) & lacking}

    def without(self, names: set[str]) -> str:
        """The statements that neither bind nor use these names, nor what needs them."""
        hidden, kept = set(names), list(range(len(self._statements)))
        while lost := [index for index in kept if (self._binds[index] | self._reads[index]) & hidden]:
            hidden = hidden.union(*(self._binds[index] for index in lost))
            kept = [index for index in kept if index not in lost]
        return "\n".join(ast.unparse(self._statements[index]) for index in kept)


def parse(text: str) -> list[ast.stmt]:
    """The statements of a text. Raises ValueError when it is not Python."""
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"is not Python: {error}") from None


def read_assert(test: object, setup: Setup) -> Assert:
    """Raises ValueError for what is no comparison of something that is asked of the program with a value."""
    if not isinstance(test, str):
        raise ValueError("must be text")
    body = parse(test.strip())
    compared = body[0].test if len(body) == 1 and isinstance(body[0], ast.Assert) else None
    if not isinstance(compared, ast.Compare) or [type(op) for op in compared.ops] != [ast.Eq]:
        raise ValueError(f"must be one `assert <call> == <value>`, not {test[:80]!r}; else use calls")
    if any(isinstance(node, (ast.Compare, ast.BoolOp)) or _compares(node) for node in ast.walk(compared.left)):
        raise ValueError(f"its left side compares, so the program would see what is right: {test[:80]!r}")
    right = ast.unparse(compared.comparators[0])
    own = names_of(compared.left) - setup.own_names()
    asked: list[ast.expr] = []
    around = _Apart(own, asked).visit(compared.left)
    if not own or isinstance(around, ast.Name) or any(isinstance(part, ast.Name) for part in asked):
        return Assert((ast.unparse(compared.left),), "", right)
    names = ", ".join(map(_ANSWER.format, range(len(asked))))
    return Assert(tuple(map(ast.unparse, asked)), f"(lambda {names}: {ast.unparse(around)})", right)


def names_of(tree: ast.AST) -> set[str]:
    """All names that a tree mentions."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


class _Apart(ast.NodeTransformer):
    """Takes the parts that need the program out of an expression, into `asked`, and puts names in their place."""

    def __init__(self, own: set[str], asked: list[ast.expr]) -> None:
        self._own, self._asked = own, asked

    def visit(self, node: ast.AST) -> ast.AST:
        if not (isinstance(node, ast.expr) and self._inside(node)):
            return self.generic_visit(node)
        self._asked.append(node)
        return ast.Name(_ANSWER.format(len(self._asked) - 1), ast.Load())

    def _inside(self, node: ast.AST) -> bool:
        """Whether a part is evaluated beside the program as a whole."""
        if isinstance(node, ast.Name):
            return node.id in self._own
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            return self._inside(node.value)
        if isinstance(node, _SCOPES):
            return bool(names_of(node) & self._own)
        parts: list[ast.AST] = [
            child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr_context)
        ]
        if isinstance(node, ast.Call):
            if self._inside(node.func):
                return True
            parts = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(part, ast.Name) and part.id in self._own for part in parts):
                return True  # a function of the program that another one calls: map(f, ...)
            if not all(isinstance(part, (ast.Name, ast.Attribute, ast.Load)) for part in ast.walk(node.func)):
                return False  # a method of what the test writes out
        parts = [part for part in parts if not isinstance(part, (ast.operator, ast.unaryop))]
        return bool(parts) and all(map(self._inside, parts))


def _compares(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in _COMPARES


def _local(statement: ast.stmt) -> set[str]:
    """Names that functions, classes and comprehensions in a statement bind for themselves."""
    scopes = [node for node in ast.walk(statement) if isinstance(node, (*_SCOPES, *_FUNCTIONS))]
    return {name for scope in scopes for node in ast.walk(scope) for name in _stored(node)}


def _stored(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, _FUNCTIONS):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def _bound(statement: ast.stmt) -> frozenset[str]:
    """Names that a statement of a module binds, imports aside."""
    found: set[str] = set()
    ahead: list[ast.AST] = [statement]
    while ahead:
        node = ahead.pop()
        found.update(_stored(node))
        if not isinstance(node, (*_FUNCTIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            ahead.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def _imported(statements: list[ast.stmt]) -> set[str]:
    aliases = [
        alias
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    ]
    return {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
