"""Encode plain data as JSON: the results of a sandboxed program.

Standard library only: the sandboxed process imports this module as a top-level module, kray as part of its package.
"""

from __future__ import annotations

from typing import Any

# Integers of at least this size are written in hexadecimal: Python limits the decimal digits that it converts.
_SMALL = 1 << 63


def encode(value: Any, own: str = "") -> Any:
    """Encode plain data as JSON, with the types that JSON lacks as {"__tuple__": [...]} and so on.

    An instance of a subclass is encoded as the value of its base type, read by the base type's own methods: what a class
    overrides (`__int__`, `__str__`, `__iter__`, `items`) has no effect.

    Args:
        value: What to encode.
        own: Name of the program's own module. Arrays of libraries are plain data; classes of the program that imitate them
            (by a method `tolist`) are not.

    Raises:
        TypeError: The value is not plain data.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        number = int.__add__(value, 0)
        return number if -_SMALL < number < _SMALL else {"__int__": hex(number)}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return {"__float__": float.hex(value)}
    if isinstance(value, complex):
        return {"__complex__": [float.hex(complex.real.__get__(value)), float.hex(complex.imag.__get__(value))]}
    if isinstance(value, list):
        return [encode(item, own) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"__tuple__": [encode(item, own) for item in tuple.__iter__(value)]}
    if isinstance(value, set):
        return {"__set__": [encode(item, own) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"__set__": [encode(item, own) for item in frozenset.__iter__(value)]}
    if isinstance(value, dict):
        return {"__dict__": [[encode(key, own), encode(item, own)] for key, item in dict.items(value)]}
    if isinstance(value, bytes):
        return {"__bytes__": bytes.hex(value)}
    if isinstance(value, bytearray):
        return {"__bytes__": bytearray.hex(value)}
    # Arrays and numbers of numpy and similar libraries.
    if hasattr(value, "tolist") and type(value).__module__ != own:
        return encode(value.tolist(), own)
    raise TypeError(f"{type(value).__name__} is not plain data")
