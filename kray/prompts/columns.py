"""Arrow columns as plain values: numbers as they are meant, and JSON as what it holds.

Arrow gives a 32-bit float as the 64-bit float next to it (0.1 becomes 0.10000000149011612) and JSON columns, which datasets
writes since version 5, as JSON text, in which a text has quotes around it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

Read = Callable[[Any], Any]


def parse_json(text: str | bytes) -> Any:
    """JSON whose fractions and exponents stay as exact as they are written: they become Decimals. Raises ValueError."""
    return json.loads(text, parse_float=_decimal)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        raise ValueError(f"the exponent of {text:.40} is too large") from None


def reader(kind: Any) -> Read | None:
    """What makes a plain value of what `to_pylist` gives for an Arrow type; None where there is nothing to do.

    The function raises ValueError for text of a JSON column that is not JSON.
    """
    from pyarrow import types

    if getattr(kind, "extension_name", "") == "arrow.json":
        return _where_present(parse_json)
    if hasattr(kind, "storage_type"):  # any other extension type
        return reader(kind.storage_type)
    if types.is_float16(kind) or types.is_float32(kind):
        return _where_present(_half if types.is_float16(kind) else _single)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind) or _is_list(kind):
        inner = reader(kind.value_type)
        if inner is None or not _is_list(kind):
            return inner
        return _where_present(lambda items: [inner(item) for item in items])
    if types.is_struct(kind):
        inside = {field.name: read for field in kind if (read := reader(field.type)) is not None}
        return _where_present(lambda fields: read_fields(fields, inside)) if inside else None
    return None


def read_fields(fields: Mapping[str, Any], readers: Mapping[str, Read]) -> dict[str, Any]:
    """The mapping with the values of the readers' names read. Raises ValueError that names the field."""
    found = dict(fields)
    for name, read in readers.items():
        try:
            found[name] = read(found[name])
        except (ValueError, RecursionError) as error:
            raise ValueError(f'field "{name}": {str(error) or type(error).__name__}') from None
    return found


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(types, test)(kind) for test in tests)


def _where_present(read: Read) -> Read:
    return lambda value: None if value is None else read(value)


def _single(value: float) -> Decimal | float:
    return _shortest(np.float32(value))


def _half(value: float) -> Decimal | float:
    return _shortest(np.float16(value))


def _shortest(number: np.floating) -> Decimal | float:
    """The shortest decimal that the column's type reads as this number; floats that are not finite stay floats."""
    if not np.isfinite(number):
        return float(number)
    return Decimal(np.format_float_positional(number, unique=True, trim="0"))
