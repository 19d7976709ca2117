"""Compare a program's values and output with the right ones. Pure.

Values are compared in the encoding of confined/plain.py. They are never turned into Python objects that would hash them:
colliding members would cost time quadratic in their number.

Numbers are equal by value (1 and 1.0, 0.0 and -0.0), NaN equals NaN, an infinity equals itself; True is not 1. The order of
mappings does not matter. A tolerance does not apply to keys of mappings and members of sets.

A tolerance is relative to the right number: |given - right| <= relative * |right|. Within it no number has another sign
than the right one, or is 0 where that is not, however large the tolerance; NaN and infinities equal only themselves. Where
the right number is 0, a tolerance given as one number is absolute.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

# Ignored at line ends; a form feed or a no-break space is output like any other character.
_SPACES = " \t\r"
_WORD = re.compile(rf"[^{_SPACES}]+")
_NUMBER = re.compile(
    # Possessive: a long word that is no number would take time quadratic in its length.
    r"[+-]?(?:(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:e[+-]?[0-9]++)?|(nan|inf|infinity))",
    re.IGNORECASE | re.ASCII,
)
# Largest absolute tolerance that is accepted.
_MAX_ABSOLUTE = 1e300
# Rounding error of the comparison itself, as a share of the tolerance: 1.1 lies within .1 of 1.0.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far numbers may be from the right ones; true if it allows any difference.

    Attributes:
        relative: Share of the right number's size.
        absolute: In the number's own unit; None: `relative` where the right number is 0, else 0.
    """

    relative: float = 0.0
    absolute: float | None = None

    @classmethod
    def read(cls, value: Any) -> Tolerance:
        """Read a number or {"relative": number, "absolute": number}.

        Raises:
            ValueError: The value is neither, a number is negative or too large, or the relative one is not below 1: any
                number of the right sign that is nearer to 0 would be right.
        """
        parts = value if isinstance(value, dict) else {"relative": value}
        valid = parts and set(parts) <= {"relative", "absolute"}
        if not valid or not all(type(part) in (int, float) and 0 <= part <= _MAX_ABSOLUTE for part in parts.values()):
            raise ValueError(
                f'must be a number of at least 0 or {{"relative": number, "absolute": number}}, not {value!r:.60}'
            )
        if parts.get("relative", 0) >= 1:
            raise ValueError(
                f'is relative to the right number and must be below 1, not {value!r:.60}; or {{"absolute": number}}'
            )
        return cls(float(parts.get("relative", 0.0)), float(parts.get("absolute", 0.0)) if value is parts else None)

    def near(self, given: float, right: float) -> bool:
        """Return whether an int or float equals the right one or is within the tolerance."""
        if given == right or (given != given and right != right):
            return True
        if not (_finite(given) and _finite(right)):
            return False
        absolute = (0.0 if right else self.relative) if self.absolute is None else self.absolute
        relative = self.relative if given and right and (given > 0) == (right > 0) else 0.0
        if not (absolute or relative):
            return False
        # Floats cannot represent all integers.
        if isinstance(given, int) or isinstance(right, int):
            allowed = max(Fraction(absolute), Fraction(relative) * abs(Fraction(right)))
            return abs(Fraction(given) - Fraction(right)) <= allowed * Fraction(1 + _ROUNDING)
        return abs(given - right) <= max(absolute, relative * abs(right)) * (1 + _ROUNDING)

    def __bool__(self) -> bool:
        return bool(self.relative or self.absolute)


EXACT = Tolerance()
# What reading a value raises that `encode` did not write.
UNREADABLE = (ValueError, TypeError, RecursionError, OverflowError)


def same_value(given: Any, right: Any, tolerance: Tolerance = EXACT, tuples_are_lists: bool = False) -> bool:
    """Return whether two encoded values are equal.

    Args:
        given: What came out of the sandbox: any JSON value.
        right: The right value.
        tolerance: How far numbers may be from the right ones.
        tuples_are_lists: Whether a tuple equals a list of the same items, as in JSON, which has no tuples.

    Raises:
        UNREADABLE: A value that `encode` does not write.
    """
    kind, content = _decoded(given, tuples_are_lists)
    right_kind, right_content = _decoded(right, tuples_are_lists)
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
    """Return whether a script's output is the right one, line by line.

    Spaces at line ends and empty lines at the end do not count. With a tolerance, words of a line that are decimal numbers
    are compared as numbers, all others as text.
    """
    # Bytes that are not UTF-8 equal no text.
    lines = _lines(given.decode(errors="surrogateescape"))
    right_lines = _lines(right)
    if lines == right_lines:
        return True
    if not tolerance or len(lines) != len(right_lines):
        return False
    return all(_same_words(*pair, tolerance) for pair in zip(lines, right_lines, strict=True))


def source(value: Any, hashed: bool = False) -> str:
    """Return a Python expression that evaluates to an encoded value.

    Args:
        value: The encoded value.
        hashed: Whether it is a key of a mapping or a member of a set.

    Raises:
        UNREADABLE: A value that `encode` does not write.
    """
    kind, content = _decoded(value, False)
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
    # Python limits the number of decimal digits, so integers are written in hexadecimal.
    if isinstance(number, int):
        return f"({number:#x})"
    return f"({number!r})" if math.isfinite(number) else f'float("{number}")'


def _finite(number: float) -> bool:
    return isinstance(number, int) or math.isfinite(number)


def _near_complex(given: complex, right: complex, tolerance: Tolerance) -> bool:
    if EXACT.near(given.real, right.real) and EXACT.near(given.imag, right.imag):
        return True
    if not (tolerance and math.isfinite(abs(given)) and math.isfinite(abs(right))):
        return False
    return abs(given - right) <= max(tolerance.relative * abs(right), tolerance.absolute or 0.0) * (1 + _ROUNDING)


def _decoded(value: Any, tuples_are_lists: bool) -> tuple[str, Any]:
    """Return (kind, content) of an encoded value; raise ValueError or TypeError for what `encode` does not write."""
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
    """Return canonical key -> value; raise ValueError for a duplicate key."""
    found = {_key(key): value for key, value in items}
    if len(found) != len(items):
        raise ValueError("duplicate key")
    return found


def _key(value: Any) -> str:
    """Return a text that two encoded values share exactly when they are equal."""
    kind, content = _decoded(value, False)
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
    given, expected = _number(word), _number(right)
    return given is not None and expected is not None and tolerance.near(given, expected)


def _number(word: str) -> float | None:
    """Return the value of a decimal number, nan or inf; None for other words and numbers too large for a float."""
    if (found := _NUMBER.fullmatch(word)) is None:
        return None
    number = float(word)
    return number if found[1] or math.isfinite(number) else None
