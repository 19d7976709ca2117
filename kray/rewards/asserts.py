"""Split an assert into what the tested program evaluates and what it must not see.

Pure: nothing is run here. An assert is `assert <left side> == <right side>`. Of the left side the program's process
evaluates only what needs the program: calls of its names, and surrounding code that reveals nothing (`sorted(f(1))`,
`f(1)[0]`, `A(1) + A(2)`). The rest (`round(f(2), 3)`, `isclose(f(2), 1.5)`, `f(3) - 9`) is evaluated in a separate process,
on the plain values that came back, so that no object of the program takes part in it and the program sees none of its
numbers.

The program's process gets the part of the setup that right sides do not use. A name that both sides use cannot be hidden
from the program; such asserts are refused. So are right sides that take names from the setup which it does not bind in plain
sight (`exec`, `globals()`): what makes them cannot be told apart from the rest.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_COMPARES = {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains", "bool")}
_SCOPES = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.NamedExpr)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# What makes or reads names that the source does not show.
_MAKE_NAMES = {"exec", "globals", "locals", "vars"}
_READ_NAMES = _MAKE_NAMES | {"eval", "__import__"}
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
        # Binding the variable of a loop again changes nothing that others need.
        uses = zip(self._statements, self._binds, self._reads, strict=True)
        self._uses = [(binds | reads) - _loop_variables(statement) for statement, binds, reads in uses]
        self._imports = _imported(self._statements)
        self._makes_names = any(
            names_of(each) & _MAKE_NAMES for each in self._statements if not isinstance(each, _FUNCTIONS)
        )
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

    def hidden_names(self, names: Collection[str]) -> set[str]:
        """Return the names that must be kept from who may not know `names`.

        They are what `names` need; what uses any of that; and what statements need that may fill or change any of that when
        they run: after `WANTED = {}`, `for x in range(9): WANTED[x] = solve(x)` tells that solve is hidden, too.
        """
        hidden = self.dependencies(names)
        while True:
            using = [i for i, uses in enumerate(self._uses) if uses & hidden]
            changing = set[str]().union(*(self._uses[i] for i in using if not _only_binds(self._statements[i])))
            grown = hidden.union(self.dependencies(changing), *(self._binds[i] & self._uses[i] for i in using))
            if grown == hidden:
                return hidden
            hidden = grown

    def check_right(self, right: ast.expr) -> None:
        """Check that the source shows which names of the setup a right side needs.

        Raises:
            ValueError: It does not.
        """
        own = {name for node in ast.walk(right) for name in _stored(node)}
        names = names_of(right) - own
        unknown = names - self.names - self._imports - set(dir(builtins))
        unseen = sorted(names & _READ_NAMES) if self.names else []
        if unseen:
            raise ValueError(f"its right side reads names by {unseen[0]}, so they cannot be kept from the program")
        if unknown and ("*" not in self._imports or self._makes_names):
            raise ValueError(f"its right side needs {min(unknown)}, which the setup does not bind in plain sight")
        if names & self.names and self._makes_names:
            raise ValueError(
                f"its right side needs {min(names & self.names)} of a setup that makes names by exec or globals(), which "
                "cannot be kept from the program; write the value out"
            )

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
        """Return the source of the statements that neither bind nor use `names`, which `hidden_names` returned."""
        parts = zip(self._statements, self._uses, strict=True)
        return "\n".join(ast.unparse(statement) for statement, uses in parts if not uses & names)


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
    setup.check_right(compared.comparators[0])
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


def _loop_variables(statement: ast.stmt) -> set[str]:
    loops = [node.target for node in ast.walk(statement) if isinstance(node, (ast.For, ast.AsyncFor))]
    return {name for target in loops for node in ast.walk(target) for name in _stored(node)}


def _only_binds(statement: ast.stmt) -> bool:
    """Return whether a statement defines names and changes nothing else."""
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return not any(isinstance(node, (ast.Attribute, ast.Subscript)) for each in targets for node in ast.walk(each))
    return isinstance(statement, (*_FUNCTIONS, ast.Import, ast.ImportFrom))


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
