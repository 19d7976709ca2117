"""Tables as JSON in MLflow's format, for rows of any text and any numbers. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kray.text import legible


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table whose columns are all keys of the rows, in order of appearance; null where a row lacks one."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]}
    return json.dumps(plain(table), ensure_ascii=False, default=repr)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: NumPy scalars as numbers, numbers that are not finite as None, legible text."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, str):
        return legible(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {legible(str(name)): plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
