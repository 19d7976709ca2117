"""Bounds of what a YAML text may stand for, so that no file costs more than a second or memory in proportion to what it hides.

Aliases multiply: ten lines of ten aliases each stand for 10^10 values. Interpolations do the same when they are resolved. Both
are counted here before anything is expanded. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

# Bytes of a file, or characters of an override. The configurations in configs/ have 1 to 5 KiB.
MOST_BYTES = 256 << 10
# Values that a text may stand for, with each alias counted as what it repeats. A long scalar counts as several.
MOST_VALUES = 5_000
_SCALAR_CHARACTERS = 64
# Interpolations that may be resolved for all values together, and how many may lead to one another.
MOST_RESOLVED = 1_000
MOST_DEPTH = 32
# Characters of a text with interpolations, and of what all texts resolve to.
MOST_TEMPLATE = 10_000
MOST_TEXT = 1 << 20
# Characters of the name of an interpolation that are looked at.
_NAME_CHARACTERS = 500

_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*:(.*)", re.DOTALL)
# Resolvers whose first argument is a key.
_READ_KEYS = ("oc.select", "oc.deprecated", "oc.dict.keys", "oc.dict.values")
_PART = re.compile(r"[^.\[\]]+")


class Excess(NamedTuple):
    """Something that stands for too many values.

    Attributes:
        key: Dotted, of the innermost value that does.
        node: That value's key, or the value itself.
    """

    key: str
    node: yaml.Node


def excess(root: yaml.Node) -> Excess | None:
    """Return what in a node tree stands for more than MOST_VALUES values; None where nothing does.

    What contains itself counts once.
    """
    sizes, _ = _sizes(root)
    if sizes[id(root)] <= MOST_VALUES:
        return None
    key, at, place, seen = "", root, root, {id(root)}
    while True:
        larger = [each for each in _children(at) if sizes[id(each[2])] > MOST_VALUES and id(each[2]) not in seen]
        if not larger:
            return Excess(key.lstrip("."), place)
        name, place, at = larger[0]
        key, seen = f"{key}.{name:.60}", {*seen, id(at)}


def contains_itself(root: yaml.Node) -> bool:
    """Return whether a node tree has an alias to what it stands in."""
    return _sizes(root)[1]


def _children(node: yaml.Node) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield (name, where it is written, value) of what a node contains."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value) if isinstance(key, yaml.ScalarNode) else "?", key, value
            if not isinstance(key, yaml.ScalarNode):
                yield "?", key, key
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), value, value


def _sizes(root: yaml.Node) -> tuple[dict[int, int], bool]:
    """Return the number of values of each node, by its id, and whether one contains itself; without recursion."""
    sizes: dict[int, int] = {}
    unfinished: set[int] = set()
    cyclic = False
    pending = [(root, False)]
    while pending:
        node, finished = pending.pop()
        if finished:
            inside = sum(sizes.get(id(value), 0) for _, _, value in _children(node))
            # Beyond the bound the exact number does not matter, and would have thousands of digits.
            sizes[id(node)] = min(1 + inside, MOST_VALUES + 1)
            unfinished.discard(id(node))
        elif isinstance(node, yaml.ScalarNode):
            sizes[id(node)] = 1 + len(node.value) // _SCALAR_CHARACTERS
        elif id(node) in unfinished:
            cyclic = True
        elif id(node) not in sizes:
            unfinished.add(id(node))
            pending.append((node, True))
            pending += [(value, False) for _, _, value in _children(node)]
    return sizes, cyclic


class _Cost(NamedTuple):
    """What resolving a value takes: interpolations that are resolved, characters of the result, depth of references."""

    resolved: int
    characters: int
    depth: int


def interpolation_problem(tree: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (dotted key, what is wrong) where resolving the interpolations of a configuration would take too much.

    Args:
        tree: Nested mappings and lists with texts as they were written.
    """
    return _Interpolations(tree).problem()


class _Problem(Exception):
    """Carries (dotted key, message) out of a recursion."""


class _Interpolations:
    """The costs of a tree's values, each computed once. What a reference may mean is taken at its most expensive."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree
        self._costs: dict[tuple[str, ...], _Cost] = {}
        self._open: set[tuple[str, ...]] = set()

    def problem(self) -> tuple[str, str] | None:
        try:
            resolved, characters, _ = self._cost((), self._tree)
        except _Problem as found:
            return found.args[0]
        except RecursionError:
            return "", "is nested too deeply"
        message = _excess(resolved, characters) if resolved else ""
        return ("", message) if message else None

    def _cost(self, path: tuple[str, ...], value: Any) -> _Cost:
        if isinstance(value, str):
            return self._text_cost(path, value) if "${" in value else _Cost(0, len(value), 0)
        if not isinstance(value, Mapping | list):
            return _Cost(0, 1, 0)
        if path in self._costs:
            return self._costs[path]
        self._enter(path)
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        found = self._sum(path, [self._cost((*path, str(name)), inner) for name, inner in items])
        return self._leave(path, found)

    def _text_cost(self, path: tuple[str, ...], text: str) -> _Cost:
        if path in self._costs:
            return self._costs[path]
        if len(text) > MOST_TEMPLATE:
            message = f"has {len(text):,} characters, more than the {MOST_TEMPLATE:,} of a text with interpolations"
            raise _Problem((".".join(path), message))
        self._enter(path)
        parts = [_Cost(1, len(text), 0)]
        try:
            names = list(references(text))
        except ValueError as error:
            raise _Problem((".".join(path), str(error))) from None
        for name in names:
            parts.append(_Cost(1, 0, 0))
            if (target := self._target(path, name)) is not None:
                parts.append(self._cost(*target))
        resolved, characters, depth = self._sum(path, parts)
        if depth >= MOST_DEPTH:
            raise _Problem((".".join(path), f"has interpolations that lead through more than {MOST_DEPTH} others"))
        return self._leave(path, _Cost(resolved, characters, depth + 1))

    def _sum(self, path: tuple[str, ...], costs: list[_Cost]) -> _Cost:
        resolved, characters = sum(cost.resolved for cost in costs), sum(cost.characters for cost in costs)
        if path and (message := _excess(resolved, characters)):
            raise _Problem((".".join(path), message))
        return _Cost(resolved, characters, max((cost.depth for cost in costs), default=0))

    def _enter(self, path: tuple[str, ...]) -> None:
        if path in self._open:
            raise _Problem((".".join(path), "an interpolation refers to itself"))
        self._open.add(path)

    def _leave(self, path: tuple[str, ...], cost: _Cost) -> _Cost:
        self._open.discard(path)
        self._costs[path] = cost
        return cost

    def _target(self, path: tuple[str, ...], name: str) -> tuple[tuple[str, ...], Any] | None:
        """Return (path, value) of what a name refers to; None where the tree does not have it."""
        name = name.strip()
        up = len(name) - len(name.lstrip("."))
        at = path[: max(0, len(path) - up)] if up else ()
        parts = _PART.findall(name[up:])
        value: Any = self._tree
        for part in (*at, *parts):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part[:9]) < len(value):
                value = value[int(part[:9])]
            else:
                return None
        return (*at, *parts), value


def references(text: str) -> Iterator[str]:
    """Yield the name in each interpolation of a text; of a name that another one completes, what stands before that.

    Raises:
        ValueError: Braces stand within more than MOST_DEPTH others.
    """
    starts: list[int | None] = []
    at = 0
    while at < len(text):
        if len(starts) > MOST_DEPTH:
            raise ValueError(f"has braces of interpolations within more than {MOST_DEPTH} others")
        if text[at] == "\\":
            # What follows is escaped.
            at += 2
            continue
        if text.startswith("${", at):
            starts.append(at + 2)
            at += 2
            continue
        if text[at] == "{" and starts:
            starts.append(None)
        elif text[at] == "}" and starts and (start := starts.pop()) is not None:
            yield from _named(text[start : min(at, start + _NAME_CHARACTERS)])
        at += 1


def _named(content: str) -> Iterator[str]:
    call = _CALL.fullmatch(content)
    if call is None:
        yield content.partition("${")[0]
    elif call[1] in _READ_KEYS:
        yield call[2].partition("${")[0].partition(",")[0].strip(" '\"")


def _excess(resolved: int, characters: int) -> str:
    if resolved > MOST_RESOLVED:
        return f"its interpolations lead to more than {MOST_RESOLVED:,} others"
    if characters > MOST_TEXT:
        return f"its interpolations stand for more than {MOST_TEXT >> 20} MiB of text"
    return ""
