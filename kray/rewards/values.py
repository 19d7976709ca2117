"""When what a program gave counts as what is right: plain values, and lines of output. Pure.

Values are compared in the form that confined/plain.py writes. They are never made into Python objects that would hash
them: members that collide would cost the judge the square of their number.

Numbers are equal by value (1 and 1.0, 0.0 and -0.0), NaN is equal to NaN, an infinity to itself; True is not 1. Of mappings
the order does not count. A tolerance does not reach into keys of mappings and members of sets.

A tolerance is relative to the right number, whatever the program gave: |given - right| <= relative * |right|. Within it
no number has another sign than the right one, or is 0 where that is not, however large the tolerance; NaN and infinities
are equal to themselves alone. Where the right number is 0, one number as the tolerance counts absolutely.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_SPACES = " \t\r"  # at line ends; a form feed or a no-break space is output like any other character
_WORD = re.compile(rf"[^{_SPACES}]+")
_NUMBER = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|(nan|inf|infinity))", re.IGNORECASE | re.ASCII
)
_LARGEST = 1e300  # tolerance
_ROUNDING = 1e-9  # of the comparison itself, as a share of what is allowed: 1.1 lies within .1 of 1.0


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far numbers may lie from the right ones.

    Args:
        relative: as a share of the right number's size.
        absolute: in the number's own unit; None: `relative` where the right number is 0, else 0.
    """

    relative: float = 0.0
    absolute: float | None = None

    @classmethod
    def read(cls, value: Any) -> Tolerance:
        """From a number or {"relative": number, "absolute": number}. Raises ValueError."""
        parts = value if isinstance(value, dict) else {"relative": value}
        sound = parts and set(parts) <= {"relative", "absolute"}
        if not sound or not all(type(part) in (int, float) and 0 <= part <= _LARGEST for part in parts.values()):
            raise ValueError(
                f'must be a number of at least 0 or {{"relative": number, "absolute": number}}, not {value!r:.60}'
            )
        return cls(float(parts.get("relative", 0.0)), float(parts.get("absolute", 0.0)) if value is parts else None)

    def near(self, given: float, right: float) -> bool:
        """Whether a number, whole or not, is equal to the right one or near enough."""
        if given == right or (given != given and right != right):
            return True
        if not (_finite(given) and _finite(right)):
            return False
        absolute = (0.0 if right else self.relative) if self.absolute is None else self.absolute
        relative = self.relative if given and right and (given > 0) == (right > 0) else 0.0
        if not (absolute or relative):
            return False
        if isinstance(given, int) or isinstance(right, int):  # floats cannot hold all whole numbers
            allowed = max(Fraction(absolute), Fraction(relative) * abs(Fraction(right)))
            return abs(Fraction(given) - Fraction(right)) <= allowed * Fraction(1 + _ROUNDING)
        return abs(given - right) <= max(absolute, relative * abs(right)) * (1 + _ROUNDING)

    def __bool__(self) -> bool:
        return bool(self.relative or self.absolute)


EXACT = Tolerance()
UNREADABLE = (ValueError, TypeError, RecursionError, OverflowError)  # of a value that `encode` did not write


def same_value(given: Any, right: Any, tolerance: Tolerance = EXACT, tuples_are_lists: bool = False) -> bool:
    """Whether two encoded values are the same.

    Args:
        given: what came out of the sandbox: anything that JSON can hold.
        tuples_are_lists: as in JSON, which has no tuples.

    Raises:
        UNREADABLE: for what `encode` does not write.
    """
    kind, content = _opened(given, tuples_are_lists)
    right_kind, right_content = _opened(right, tuples_are_lists)
    if kind != right_kind:
        return False
    if kind == "number":
        return tolerance.near(content, right_content)
    if kind == "complex":
        return _near_complex(content, right_content, tolerance)
    if kind in ("list", "tuple"):
        return len(content) == len(right_content) and all(
            same_value(*pair, tolerance, tuples_are_lists) for pair in zip(content, right_content, strict=True)
        )
    if kind == "set":
        return sorted(map(_key, content)) == sorted(map(_key, right_content))
    if kind == "dict":
        items, right_items = _by_key(content), _by_key(right_content)
        return items.keys() == right_items.keys() and all(
            same_value(items[key], right_items[key], tolerance, tuples_are_lists) for key in items
        )
    return content == right_content


def same_output(given: bytes, right: str, tolerance: Tolerance = EXACT) -> bool:
    """Whether a script printed what it should, line by line.

    Spaces at line ends and empty lines at the end do not count. With a tolerance the words of a line that are decimal
    numbers are compared as numbers, all others as text.
    """
    lines = _lines(given.decode(errors="surrogateescape"))  # what is not UTF-8 is equal to no text
    right_lines = _lines(right)
    if lines == right_lines:
        return True
    if not tolerance or len(lines) != len(right_lines):
        return False
    return all(_same_words(*pair, tolerance) for pair in zip(lines, right_lines, strict=True))


def source(value: Any, hashed: bool = False) -> str:
    """A Python expression that gives an encoded value. hashed: as a key or a member of a set. Raises UNREADABLE."""
    kind, content = _opened(value, False)
    if kind == "number":
        return _number_source(content)
    if kind == "complex":
        return f"complex({_number_source(content.real)}, {_number_source(content.imag)})"
    if kind == "list":
        return f"[{', '.join(map(source, content))}]"
    if kind == "tuple":
        return f"({''.join(source(item, hashed) + ', ' for item in content)})"
    if kind == "set":
        return f"{'frozenset' if hashed else 'set'}([{', '.join(source(item, True) for item in content)}])"
    if kind == "dict":
        return "{" + ", ".join(f"{source(key, True)}: {source(item)}" for key, item in content) + "}"
    return repr(content)


def _number_source(number: float) -> str:
    if isinstance(number, int):
        return f"({number:#x})"  # not in decimal digits, whose number Python limits
    return f"({number!r})" if math.isfinite(number) else f'float("{number}")'


def _finite(number: float) -> bool:
    return isinstance(number, int) or math.isfinite(number)


def _near_complex(given: complex, right: complex, tolerance: Tolerance) -> bool:
    if EXACT.near(given.real, right.real) and EXACT.near(given.imag, right.imag):
        return True
    if not (tolerance and math.isfinite(abs(given)) and math.isfinite(abs(right))):
        return False
    return abs(given - right) <= max(tolerance.relative * abs(right), tolerance.absolute or 0.0) * (1 + _ROUNDING)


def _opened(value: Any, tuples_are_lists: bool) -> tuple[str, Any]:
    """(kind, content) of an encoded value. Raises ValueError, TypeError for what `encode` does not write."""
    if value is None or isinstance(value, bool):
        return "constant", value
    if isinstance(value, int):
        return "number", value
    if isinstance(value, str):
        return "text", value
    if isinstance(value, list):
        return "list", value
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"no value: {type(value).__name__}")
    ((tag, content),) = value.items()
    if tag == "__int__":
        return "number", int(content, 16)
    if tag == "__float__":
        return "number", float.fromhex(content)
    if tag == "__complex__":
        real, imaginary = map(float.fromhex, content)
        return ("complex", complex(real, imaginary)) if imaginary else ("number", real)
    if tag == "__bytes__":
        return "bytes", bytes.fromhex(content)
    kind = {"__tuple__": "list" if tuples_are_lists else "tuple", "__set__": "set", "__dict__": "dict"}.get(tag)
    if kind is None or not isinstance(content, list):
        raise ValueError(f"no value: {tag!r}")
    return kind, content


def _by_key(items: list[Any]) -> dict[str, Any]:
    """Canonical key -> value. Raises ValueError for a key that comes twice."""
    found = {_key(key): value for key, value in items}
    if len(found) != len(items):
        raise ValueError("a key comes twice")
    return found


def _key(value: Any) -> str:
    """A text that two encoded values share exactly when they are equal."""
    kind, content = _opened(value, False)
    if kind == "number":
        return _number_key(content)
    if kind == "complex":
        return f"{_number_key(content.real)}+{_number_key(content.imag)}j"
    if kind in ("list", "tuple", "set"):
        members = map(_key, content)
        return f"{kind}({','.join(sorted(members) if kind == 'set' else members)})"
    if kind == "dict":
        return f"dict({','.join(sorted(f'{key}:{_key(item)}' for key, item in _by_key(content).items()))})"
    return content.hex() + "b" if kind == "bytes" else json.dumps(content)


def _number_key(number: float) -> str:
    if _finite(number) and number == int(number):
        return f"{int(number):x}n"
    return float(number).hex() + "n"


def _lines(text: str) -> list[str]:
    return [line.rstrip(_SPACES) for line in text.rstrip(_SPACES + "\n").split("\n")]


def _same_words(line: str, right_line: str, tolerance: Tolerance) -> bool:
    words, right_words = _WORD.findall(line), _WORD.findall(right_line)
    return len(words) == len(right_words) and all(
        word == right or _same_numbers(word, right, tolerance) for word, right in zip(words, right_words, strict=True)
    )


def _same_numbers(word: str, right: str, tolerance: Tolerance) -> bool:
    given, wanted = _number(word), _number(right)
    return given is not None and wanted is not None and tolerance.near(given, wanted)


def _number(word: str) -> float | None:
    """The value of a decimal number, nan or inf; None for other words and for what is too large for a float."""
    if (found := _NUMBER.fullmatch(word)) is None:
        return None
    number = float(word)
    return number if found[1] or math.isfinite(number) else None
