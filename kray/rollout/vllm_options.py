"""The names of vLLM's options (EngineArgs), read from its source: importing vLLM takes seconds."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from kray.errors import ConfigError

# Where vLLM declares its options, below its package.
SOURCE, CLASS = "engine/arg_utils.py", "EngineArgs"


def option_names() -> frozenset[str] | None:
    """Return the options of the vLLM that is installed here; None where none is."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return None
    file = Path(found.submodule_search_locations[0]) / SOURCE
    if not file.is_file():
        return None
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == CLASS:
            fields = (item.target for item in node.body if isinstance(item, ast.AnnAssign))
            return frozenset(name.id for name in fields if isinstance(name, ast.Name) and not name.id.startswith("_"))
    return None


def check_options(given: Iterable[str]) -> None:
    """Check that vLLM has these options; where it is not installed, the engines find out.

    Args:
        given: Names, the keys of rollout.vllm.

    Raises:
        ConfigError: It has no such option.
    """
    given = list(given)
    known = option_names() if given else None
    for name in given if known is not None else []:
        if name not in (known or ()):
            near = difflib.get_close_matches(name, sorted(known or ()), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"rollout.vllm.{name} is not an option of the vLLM that is installed{hint}")
