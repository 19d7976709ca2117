"""The names and types of vLLM's options (EngineArgs), read from its source: importing vLLM takes seconds."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kray.errors import ConfigError

# Where vLLM declares its options, below its package.
SOURCE, CLASS = "engine/arg_utils.py", "EngineArgs"


# Types that a value of a configuration can be compared with, by their names in an annotation. An int is a float, too.
TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
    "None": (type(None),),
}


def option_types() -> dict[str, tuple[str, ...]] | None:
    """Return the options of the vLLM that is installed here, each with the names of its types; None where none is.

    Types are left out where a value cannot be compared with one of them: classes and choices of vLLM.
    """
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return None
    file = Path(found.submodule_search_locations[0]) / SOURCE
    if not file.is_file():
        return None
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == CLASS:
            fields = [(item.target, item.annotation) for item in node.body if isinstance(item, ast.AnnAssign)]
            named = [(target.id, wanted) for target, wanted in fields if isinstance(target, ast.Name)]
            return {name: _types(wanted) for name, wanted in named if not name.startswith("_")}
    return None


def _types(annotation: ast.expr) -> tuple[str, ...]:
    """Return the names of the types of an annotation, all of them in TYPES; nothing where one is not."""
    if isinstance(annotation, ast.BinOp):
        sides = _types(annotation.left), _types(annotation.right)
        return sides[0] + sides[1] if all(sides) else ()
    # list[int] is compared as a list.
    outer = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    name = ast.unparse(outer)
    return (name,) if name in TYPES else ()


def check_options(given: Mapping[str, Any]) -> None:
    """Check that vLLM has these options, of these types; where it is not installed, the engines find out.

    Args:
        given: rollout.vllm.

    Raises:
        ConfigError: It has no such option, or one of another type.
    """
    known = option_types() if given else None
    for name, value in given.items() if known is not None else []:
        if name not in (known or {}):
            near = difflib.get_close_matches(name, sorted(known or {}), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"rollout.vllm.{name} is not an option of the vLLM that is installed{hint}")
        wanted = (known or {})[name]
        fitting = tuple(each for name_of_type in wanted for each in TYPES[name_of_type])
        # A bool is an int to Python alone.
        if wanted and (not isinstance(value, fitting) or (isinstance(value, bool) and bool not in fitting)):
            text = " or ".join("null" if each == "None" else each for each in wanted)
            raise ConfigError(f"rollout.vllm.{name} must be {text} for the vLLM that is installed, not {value!r}")
