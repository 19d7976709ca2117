"""Convert values of Arrow columns to plain ones: numbers with their own precision, and decoded JSON.

Arrow returns a 32-bit float as the equal 64-bit float (0.1 becomes 0.10000000149011612), and JSON columns, which datasets
writes since version 5, as JSON text, in which strings have quotes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Context, Decimal
from typing import Any

import numpy as np

Read = Callable[[Any], Any]


def parse_json(text: str | bytes) -> Any:
    """Parse JSON and keep fractions and exponents exact, as Decimals.

    Raises:
        ValueError: The text is not JSON, or an object has a key twice, of which the last would silently hide the others.
    """
    return json.loads(text, parse_float=_decimal, object_pairs_hook=_object)


class Written(Decimal):
    """A number of a JSON document.

    Attributes:
        text: The number as written.
    """

    text: str


def _decimal(text: str) -> Written:
    try:
        number = Written(text)
    except ArithmeticError:
        raise ValueError(f"the exponent of {text:.40} is too large") from None
    number.text = text
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f'the key "{twice:.60}" stands twice in one object')
    return found


def reader(kind: Any) -> Read | None:
    """Return the function that converts values of an Arrow type, as `to_pylist` returns them, to plain values.

    Args:
        kind: The Arrow type.

    Returns:
        The function, which raises ValueError for invalid text of a JSON column; None where no conversion is needed.
    """
    from pyarrow import types

    if getattr(kind, "extension_name", "") == "arrow.json":
        return _where_present(parse_json)
    # Any other extension type.
    if hasattr(kind, "storage_type"):
        return reader(kind.storage_type)
    if types.is_float16(kind) or types.is_float32(kind):
        return _where_present(np.float16 if types.is_float16(kind) else np.float32)
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
    """Convert the fields of a row.

    Args:
        fields: Values by name.
        readers: Functions that convert some of them.

    Raises:
        ValueError: A value cannot be converted; the message names the field.
    """
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


# The process's own context may have a low precision: reasoning_gym sets one.
_PRECISE = Context(prec=400)


def exact_number(number: np.floating) -> Decimal:
    """Return the number that a finite float of a column stands for: an integer as such, else its shortest decimal.

    Large floats stand for several integers. Where the shortest decimal has so few digits that its type can distinguish all
    such numbers (6 digits of 32 bits, 15 of 64) and differs from the float's integer (1e23 is 99999999999999991611392), either
    may be meant.

    Raises:
        ValueError: Either may be meant; the message is to follow the name of the field.
    """
    shortest = Decimal(np.format_float_positional(number, unique=True, trim="0"))
    if not float(number).is_integer():
        return shortest
    integer = int(number)
    if integer != shortest and len(shortest.normalize(_PRECISE).as_tuple().digits) <= np.finfo(number.dtype).precision:
        kind, round_number = number.dtype.name, f"{shortest.normalize(_PRECISE):e}"
        raise ValueError(
            f"is either {round_number} rounded to {str(integer)[:40]}, as {kind} stores it, or that integer itself; "
            "make the column integers or text"
        )
    return Decimal(integer)
