"""Plain data as JSON: what a program's functions returned, on its way out of the sandbox.

Standard library only: the confined process imports this module by its file, kray as part of its package.
"""

from __future__ import annotations

from typing import Any

_SMALL = 1 << 63  # integers from here on are written in hexadecimal: Python limits the decimal digits that it converts


def encode(value: Any, own: str = "") -> Any:
    """JSON of plain data, with the types that JSON lacks as {"__tuple__": [...]} and so on.

    An instance of a subclass is written as the value of its base type, read by the base type's own methods: what a
    class overrides (`__int__`, `__str__`, `__iter__`, `items`) does not count.

    Args:
        own: the module of the program that is judged. Arrays of libraries are plain data, what its classes claim to be
            (a method `tolist`) is not.

    Raises:
        TypeError: for anything else.
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
    if hasattr(value, "tolist") and type(value).__module__ != own:  # arrays and numbers of numpy and its like
        return encode(value.tolist(), own)
    raise TypeError(f"{type(value).__name__} is not plain data")
