"""Split an assert into what the tested program evaluates and what it must not see.

Pure: nothing is run here. An assert is `assert <left side> == <right side>`. Of the left side the program's process
evaluates only what needs the program: calls of its names, and surrounding code that reveals nothing (`sorted(f(1))`,
`f(1)[0]`, `A(1) + A(2)`). The rest (`round(f(2), 3)`, `isclose(f(2), 1.5)`, `f(3) - 9`) is evaluated in a separate process,
on the plain values that came back, so that no object of the program takes part in it and the program sees none of its
numbers.

The program's process gets the part of the setup that right sides do not use. A name that both sides use cannot be hidden
from the program; such asserts are refused.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_COMPARES = {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains", "bool")}
_SCOPES = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.NamedExpr)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Name that stands for the value of the expression with this index.
_PLACEHOLDER = "__answer{}__"


@dataclass(frozen=True, slots=True)
class Assert:
    """One parsed assert.

    Attributes:
        expressions: The parts of the left side that need the program.
        combine: Source of a function that computes the left side from the values of `expressions`; "" when the left side is
            the one value itself.
        right: The right side, which needs at most the setup.
    """

    expressions: tuple[str, ...]
    combine: str
    right: str


class Setup:
    """The setup code of a program's tests, statement by statement.

    Attributes:
        names: Names that the setup binds, imports aside.
    """

    def __init__(self, text: str) -> None:
        """Parse the setup.

        Raises:
            ValueError: The text is not Python.
        """
        self._statements = parse(text)
        self._binds = [_bound(statement) for statement in self._statements]
        self._reads = [names_of(statement) for statement in self._statements]
        self._imports = _imported(self._statements)
        self.names = frozenset[str]().union(*self._binds)

    def dependencies(self, names: Collection[str]) -> set[str]:
        """Return the names of the setup that `names` need, including those of `names` that the setup binds."""
        found: set[str] = set()
        pending = set(names) & self.names
        while pending:
            found |= pending
            needed = [{*b, *r} for b, r in zip(self._binds, self._reads, strict=True) if b & pending]
            pending = (set[str]().union(*needed) & self.names) - found
        return found

    def program_independent_names(self) -> set[str]:
        """Return the names that exist without the program: builtins, imports, and setup names that do not need it."""
        available = {*dir(builtins), *self._imports, *self.names}
        dependent = [
            binds
            for statement, binds in zip(self._statements, self._binds, strict=True)
            if names_of(statement) - _local(statement) - available
        ]
        lacking = set[str]().union(*dependent)
        return available - {name for name in self.names if self.dependencies([name]) & lacking}

    def without(self, names: set[str]) -> str:
        """Return the source of the statements that, directly or indirectly, neither bind nor use `names`."""
        hidden, kept = set(names), list(range(len(self._statements)))
        while removed := [index for index in kept if (self._binds[index] | self._reads[index]) & hidden]:
            hidden = hidden.union(*(self._binds[index] for index in removed))
            kept = [index for index in kept if index not in removed]
        return "\n".join(ast.unparse(self._statements[index]) for index in kept)


def parse(text: str) -> list[ast.stmt]:
    """Parse Python source into statements.

    Raises:
        ValueError: The text is not Python.
    """
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"is not Python: {error}") from None


def read_assert(test: object, setup: Setup) -> Assert:
    """Parse one assert.

    Args:
        test: Source of the assert.
        setup: The setup of all tests.

    Raises:
        ValueError: `test` is not an assert that compares something the program computes with a value.
    """
    if not isinstance(test, str):
        raise ValueError("must be text")
    body = parse(test.strip())
    compared = body[0].test if len(body) == 1 and isinstance(body[0], ast.Assert) else None
    if not isinstance(compared, ast.Compare) or [type(op) for op in compared.ops] != [ast.Eq]:
        raise ValueError(f"must be one `assert <call> == <value>`, not {test[:80]!r}; else use calls")
    if any(isinstance(node, (ast.Compare, ast.BoolOp)) or _compares(node) for node in ast.walk(compared.left)):
        raise ValueError(f"its left side compares, so the program would see what is right: {test[:80]!r}")
    right = ast.unparse(compared.comparators[0])
    program_names = names_of(compared.left) - setup.program_independent_names()
    expressions: list[ast.expr] = []
    combined = _ProgramParts(program_names, expressions).visit(compared.left)
    if not program_names or isinstance(combined, ast.Name) or any(isinstance(part, ast.Name) for part in expressions):
        return Assert((ast.unparse(compared.left),), "", right)
    names = ", ".join(map(_PLACEHOLDER.format, range(len(expressions))))
    return Assert(tuple(map(ast.unparse, expressions)), f"(lambda {names}: {ast.unparse(combined)})", right)


def names_of(tree: ast.AST) -> set[str]:
    """Return all names that a tree mentions."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


class _ProgramParts(ast.NodeTransformer):
    """Moves the parts of an expression that need the program to `expressions` and puts placeholders in their place."""

    def __init__(self, program_names: set[str], expressions: list[ast.expr]) -> None:
        self._program_names, self._expressions = program_names, expressions

    def visit(self, node: ast.AST) -> ast.AST:
        if not (isinstance(node, ast.expr) and self._needs_program(node)):
            return self.generic_visit(node)
        self._expressions.append(node)
        return ast.Name(_PLACEHOLDER.format(len(self._expressions) - 1), ast.Load())

    def _needs_program(self, node: ast.AST) -> bool:
        """Return whether the program's process evaluates the whole node."""
        if isinstance(node, ast.Name):
            return node.id in self._program_names
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            return self._needs_program(node.value)
        if isinstance(node, _SCOPES):
            return bool(names_of(node) & self._program_names)
        parts: list[ast.AST] = [
            child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr_context)
        ]
        if isinstance(node, ast.Call):
            if self._needs_program(node.func):
                return True
            parts = [*node.args, *(keyword.value for keyword in node.keywords)]
            # A function of the program that another function calls: map(f, ...).
            if any(isinstance(part, ast.Name) and part.id in self._program_names for part in parts):
                return True
            # A method of a literal in the test.
            if not all(isinstance(part, (ast.Name, ast.Attribute, ast.Load)) for part in ast.walk(node.func)):
                return False
        parts = [part for part in parts if not isinstance(part, (ast.operator, ast.unaryop))]
        return bool(parts) and all(map(self._needs_program, parts))


def _compares(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in _COMPARES


def _local(statement: ast.stmt) -> set[str]:
    """Return the names that functions, classes and comprehensions in a statement bind in their own scopes."""
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
    """Return the names that a module-level statement binds, imports aside."""
    found: set[str] = set()
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        found.update(_stored(node))
        if not isinstance(node, (*_FUNCTIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            pending.extend(ast.iter_child_nodes(node))
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
