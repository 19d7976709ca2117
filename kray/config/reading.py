"""Reading of YAML text and `a.b=c` overrides against the schema's dataclasses.

Every value is read as the type that its field declares, so that `subset: no` is the text "no", `lr: 1e-4` is a number and
`steps: 2.5` is an error. Every key keeps the place where it was written (file:line, or the override itself). Problems are
collected, so that all are reported at once; only `parse` raises ConfigError, since nothing can be read after a syntax error.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import keyword
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kray.config.bounds import MOST_BYTES, MOST_VALUES, contains_itself, excess
from kray.errors import ConfigError

# In place of a value that could not be read; its problem has been noted.
MISSING = object()

# Problems that are described; of further ones the number is told.
MOST_PROBLEMS = 20

# Types as errors name them.
NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}

FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
# Characters of the longest scalar that is read as something else than text.
_NUMBER_CHARACTERS = 1000
INTEGER = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")


class Loader(yaml.SafeLoader):
    """Loader of YAML 1.1 in which 1e-4 is a number, and 12:30, 010, 2024-01-01 and = are text."""


class Dumper(yaml.SafeDumper):
    """Dumper of YAML that `Loader` reads as the same values."""


def _replace_number_rules(owner: Any, *dropped: str) -> None:
    changed = {f"tag:yaml.org,2002:{name}" for name in ("float", "int", "timestamp", *dropped)}
    owner.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in changed]
        for first, rules in owner.yaml_implicit_resolvers.items()
    }
    owner.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
    owner.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER, list("-+0123456789"))


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # YAML treats these three as line breaks: only double quotes keep them as they are
    style = '"' if set(text) & set("\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


# "=" has a meaning of its own in YAML 1.1, which SafeLoader cannot construct; Dumper goes on to quote it for other readers.
_replace_number_rules(Loader, "value")
_replace_number_rules(Dumper)
Dumper.add_representer(str, _text_node)


def located(message: str, where: str) -> str:
    """Return a message followed by its place, in a column of its own."""
    return f"{message:<62}   {where}".rstrip() if where else message


@functools.cache
def fields_of(section: type) -> Mapping[str, Any]:
    """Return key -> annotation of a section's dataclass."""
    return {name.rstrip("_"): annotation for name, annotation in typing.get_type_hints(section).items()}


def attribute(key: str) -> str:
    """Return the dataclass field of a key; a Python keyword gets an underscore."""
    return f"{key}_" if keyword.iskeyword(key) else key


def declared(annotation: Any) -> tuple[Any, bool]:
    """Return the annotation without None, and whether None is allowed."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(annotation) if part is not type(None)]
        if len(rest) < len(typing.get_args(annotation)) and len(rest) == 1:
            return rest[0], True
    return annotation, annotation in (Any, type(None))


def is_section(kind: Any) -> bool:
    """Return whether a field of this type has keys of its own."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


@functools.cache
def all_keys(section: type, prefix: str = "") -> tuple[str, ...]:
    """Return every dotted key under a section's dataclass, sections and leaves."""
    found: list[str] = []
    for name, annotation in fields_of(section).items():
        key, (kind, _) = f"{prefix}{name}", declared(annotation)
        found.append(key)
        if is_section(kind):
            found.extend(all_keys(kind, f"{key}."))
    return tuple(found)


def suggestion(key: str, keys: Sequence[str]) -> str:
    """Return ` (did you mean ...?)` for an unknown dotted key, or "".

    It looks for a similar name in the same section, then for the same name in other sections, then for any similar name.
    """
    section, _, leaf = key.rpartition(".")
    siblings = [known for known in keys if known.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
    if not near:
        same = sorted((known for known in keys if known.rpartition(".")[2] == leaf), key=lambda known: known.count("."))
        near = difflib.get_close_matches(key, same, n=1, cutoff=0.75) or same[:3]
    near = near or difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    if not near:
        leaves = {known.rpartition(".")[2]: known for known in reversed(keys)}
        near = [leaves[found] for found in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.75)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def read_bounded(path: str | Path) -> bytes:
    """Return the content of a file of at most MOST_BYTES.

    Raises:
        ConfigError: the file is larger.
        OSError, ValueError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} is longer than {MOST_BYTES >> 10} KiB, too long for a configuration")
    return content


def document(text: str, where: str) -> Any:
    """Return a YAML text as plain values; None when it is empty.

    Raises:
        ConfigError: as in `parse`, or something contains itself.
        yaml.YAMLError: a value cannot be read.
    """
    node = parse(text, where)
    return None if node is None else constructed(node, where)


def constructed(node: yaml.Node, where: str, loader: type[yaml.SafeLoader] = Loader) -> Any:
    """Return a node tree as plain values; see `document`."""
    _check_size(node, where)
    if contains_itself(node):
        raise ConfigError(located("something in it contains itself", where))
    return loader("").construct_document(node)


def _check_size(node: yaml.Node, where: str) -> None:
    if (found := excess(node)) is not None:
        place = where if where.startswith("command line") else f"{where}:{found.node.start_mark.line + 1}"
        message = f"{found.key or 'it'} stands for more than {MOST_VALUES:,} values (aliases count as what they repeat)"
        raise ConfigError(located(message, place))


def parse(text: str, where: str) -> yaml.Node | None:
    """Return the node tree of a YAML text; None when it is empty.

    Args:
        text: the YAML.
        where: name of the file, or the override.

    Raises:
        ConfigError: a syntax error, with its line, or the text is too long or stands for too many values.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(located(f"it is longer than {MOST_BYTES >> 10} KiB", where.partition("=")[0]))
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark and not where.startswith("command line") else where
        raise ConfigError(located(f"not valid YAML: {error.problem or error.context}", place)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        place = where if where.startswith("command line") else f"{where}:{line}"
        raise ConfigError(located(f"not valid YAML: the character U+{ord(text[error.position]):04X}", place)) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(located(f"not valid YAML: {str(error) or type(error).__name__}", where)) from None
    if node is not None:
        _check_size(node, where)
    return node


class Reading:
    """Result of reading one source, a file or an override.

    Attributes:
        places: dotted key -> where it was written.
        problems: messages with their places.
    """

    def __init__(self, schema: type, place: Callable[[yaml.Node], str]):
        """Make an empty reading.

        Args:
            schema: dataclass of the whole configuration.
            place: returns where a node was written.
        """
        self.schema = schema
        self.place = place
        self.places: dict[str, str] = {}
        self.problems: list[str] = []
        # ids of the nodes being read: an alias to one of them would recurse without end
        self._open: set[int] = set()
        self._loader = Loader("")

    def problem(self, message: str, node: yaml.Node) -> Any:
        """Note a problem at a node; return MISSING."""
        self.problems.append(located(message, self.place(node)))
        return MISSING

    def unknown(self, key: str, node: yaml.Node) -> Any:
        """Note a key that the schema does not have; return MISSING."""
        # A suggestion takes a millisecond.
        near = suggestion(key, all_keys(self.schema)) if len(self.problems) < MOST_PROBLEMS else ""
        return self.problem(f"{key} is not a key{near}", node)

    def section(self, section: type, node: yaml.Node, prefix: str = "") -> Any:
        """Return {key: value} of a mapping node; MISSING when it is none."""
        name = prefix.rstrip(".")
        if not isinstance(node, yaml.MappingNode):
            example = f"{prefix}{next(iter(fields_of(section)))}"
            return self.problem(f"{name} is a section with keys such as {example}, not {_shown(node)}", node)
        result = {}
        for leaf, key_node, value_node in self._entries(node, prefix):
            key = f"{prefix}{leaf}"
            if leaf not in fields_of(section):
                self.unknown(key, key_node)
                continue
            self.places[key] = self.place(key_node)
            value = self.value(fields_of(section)[leaf], value_node, key)
            if value is not MISSING:
                result[leaf] = value
        return result

    def value(self, annotation: Any, node: yaml.Node, key: str) -> Any:
        """Return a node's value as the annotated type; MISSING when a problem was noted."""
        kind, optional = declared(annotation)
        if id(node) in self._open:
            return self.problem(f"{key} contains itself", node)
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return None if optional else self.problem(f"{key} may not be null: {_wanted(kind)} is needed", node)
        self._open.add(id(node))
        try:
            if is_section(kind):
                return self.section(kind, node, f"{key}.")
            if typing.get_origin(kind) in (dict, list) or kind in (dict, list, Any):
                return self._free(kind, node, key)
            return self._scalar(kind, node, key)
        except RecursionError:
            return self.problem(f"{key.split('.')[0]} is nested too deeply", node)
        finally:
            self._open.discard(id(node))

    def _entries(self, node: yaml.MappingNode, prefix: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Return (key text, key node, value node) of a mapping; note keys given twice; follow `<<`."""
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            text = str(key_node.value)
            if isinstance(key_node, yaml.ScalarNode) and text in seen:
                self.problem(f"{prefix}{text} is given twice (first in line {seen[text]})", key_node)
            seen.setdefault(text, key_node.start_mark.line + 1)
        if "<<" in seen:
            try:
                self._loader.flatten_mapping(node)
            except (yaml.YAMLError, RecursionError) as error:
                self.problem(f"{prefix}<< cannot be merged: {getattr(error, 'problem', 'it contains itself')}", node)
        entries = {}
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                entries[key_node.value] = (key_node.value, key_node, value_node)
            else:
                self.problem(f"a key of {prefix.rstrip('.') or 'the configuration'} is not text", key_node)
        return list(entries.values())

    def _free(self, kind: Any, node: yaml.Node, key: str) -> Any:
        """Return the value of a dict or list field, or of anything inside one."""
        origin = typing.get_origin(kind) or kind
        inner = (typing.get_args(kind) or (Any,))[-1]
        text = isinstance(node, yaml.ScalarNode) and "${" in node.value
        if text and origin is not Any:
            return node.value
        if isinstance(node, yaml.MappingNode) and origin in (dict, Any):
            result = {}
            for leaf, key_node, value_node in self._entries(node, f"{key}."):
                self.places[f"{key}.{leaf}"] = self.place(key_node)
                result[leaf] = self.value(inner, value_node, f"{key}.{leaf}")
            return {leaf: value for leaf, value in result.items() if value is not MISSING}
        if isinstance(node, yaml.SequenceNode) and origin in (list, Any):
            items = [self.value(inner, item, f"{key}.{i}") for i, item in enumerate(node.value)]
            return [item for item in items if item is not MISSING]
        if isinstance(node, yaml.ScalarNode) and origin is Any:
            return self._scalar(Any, node, key)
        return self.problem(f"{key} must be {_wanted(kind)}, not {_shown(node)}", node)

    def _scalar(self, kind: Any, node: yaml.Node, key: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return self.problem(f"{key} must be {_wanted(kind)}, not {_shown(node)}", node)
        if node.value == "???":
            return self.problem(f"{key} is ??? (a value is needed)", node)
        if "${" in node.value or kind is str:
            return node.value
        if node.tag != "tag:yaml.org,2002:str" and len(node.value) > _NUMBER_CHARACTERS:
            return self.problem(f"{key} cannot be read: {len(node.value):,} characters are too long for a number", node)
        try:
            value = self._loader.construct_object(node)
        # LookupError: "!!int _" raises IndexError
        except (yaml.YAMLError, ValueError, LookupError, OverflowError, TypeError) as error:
            return self.problem(f"{key} cannot be read: {getattr(error, 'problem', None) or error}", node)
        return self._fitted(kind, value, key, node)

    def _fitted(self, kind: Any, value: Any, key: str, node: yaml.Node) -> Any:
        fitted = fit(kind, value)
        if fitted is MISSING:
            return self.problem(f"{key} must be {_wanted(kind)}, not {_shown(node)}", node)
        return fitted


def fit(kind: Any, value: Any) -> Any:
    """Return `value` as `kind` (int, float, bool, str, Any), or MISSING where the conversion would change its meaning.

    Integers and text that spells a finite number are converted to float where a float is declared; nothing else is converted.
    NaN, infinities and integers beyond 64 bits fit no kind.
    """
    if kind is float and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return MISSING
    if isinstance(value, float) and not math.isfinite(value):
        return MISSING
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 2**63:
            return MISSING
        value = float(value) if kind is float else value
    if kind is Any:
        return value if value is None or isinstance(value, bool | int | float | str | list | dict) else MISSING
    return value if type(value) is kind else MISSING


def _wanted(kind: Any) -> str:
    if is_section(kind):
        return "a section"
    if kind is float:
        return "a finite number"
    origin = typing.get_origin(kind) or kind
    return {dict: "a mapping", list: "a list", Any: "a plain value"}.get(origin) or NAMES.get(kind, str(kind))


def _shown(node: yaml.Node) -> str:
    """Return a node as an error quotes it, on one line."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    text = node.value if len(node.value) <= 60 else node.value[:57] + "..."
    return text if text and text.isprintable() and not node.style else repr(text)
