"""When values and outputs count as equal: laws."""

from __future__ import annotations

import contextlib
import json
import math
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.rewards.code import extract
from kray.rewards.confined.plain import encode
from kray.rewards.values import UNREADABLE, Tolerance, same_output, same_value, source

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**80) | st.floats() | st.complex_numbers()
    | st.text(st.characters()) | st.binary()
)  # fmt: skip
HASHED = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    SCALARS | st.frozensets(HASHED, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(HASHED, inner, max_size=3)
    ),
    max_leaves=12,
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FINITE = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TOLERANCES = st.floats(0, 10) | st.sampled_from([0.0, 1e-9, 1e-6, 0.01, 0.5, 1.0])


def through_json(value):
    return json.loads(json.dumps(encode(value)))


@given(VALUES)
def test_a_value_is_the_same_as_itself(value):
    assert same_value(through_json(value), encode(value))
    assert same_value(encode(value), encode(value), Tolerance(0.1))


@given(VALUES)
def test_the_source_of_a_value_gives_the_value(value):
    assert same_value(encode(eval(source(encode(value)))), encode(value))


def typed(value):
    """Python's own equality, but for booleans, which are no numbers, and NaN, which is one value."""
    if isinstance(value, bool) or value is None:
        return ("constant", str(value))
    if isinstance(value, complex):
        return ("complex", typed(value.real), typed(value.imag)) if value.imag else typed(value.real)
    if isinstance(value, float) and math.isnan(value):
        return ("number", "nan")
    if isinstance(value, (int, float)):
        return ("number", value)
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, tuple(map(typed, value)))
    if isinstance(value, frozenset):
        return ("set", frozenset(map(typed, value)))
    if isinstance(value, dict):
        return ("dict", frozenset((typed(key), typed(item)) for key, item in value.items()))
    return (type(value).__name__, value)


SMALL = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 2, 0.0, -0.0, 1.0, 0.5, math.nan, 1j, 1 + 0j, "", "1", b"", b"1"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.sampled_from([0, 1, True, "1", (1,), 1.5]), inner, max_size=2)
        | st.frozensets(st.sampled_from([0, 1.0, True, "1", (1,), None]), max_size=2)
    ),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=1000)
@given(SMALL, SMALL)
def test_equality_is_pythons_but_for_booleans_and_nan(one, other):
    assert same_value(encode(one), encode(other)) == (typed(one) == typed(other))


@given(FINITE, FINITE, TOLERANCES)
def test_a_tolerance_reaches_no_further_than_it_says(given_number, right, relative):
    near = Tolerance(relative).near(given_number, right)
    apart = abs(Fraction(given_number) - Fraction(right))
    size = abs(Fraction(right)) if right else Fraction(1)
    if near and given_number != right:
        assert apart <= Fraction(relative) * size * Fraction(1 + 1e-8)
        assert not right or (given_number > 0) == (right > 0)
    elif not near and right:
        assert apart > Fraction(relative) * size * Fraction(1 - 1e-8) or given_number * right <= 0


@given(st.floats(1e-300, 1e300), st.floats(1e-6, 0.9), st.sampled_from([1, -1]))
def test_a_tolerance_holds_at_any_scale(right, relative, sign):
    tolerance = Tolerance(relative)
    right = sign * right
    assert tolerance.near(right * (1 + relative * 0.99), right)
    assert tolerance.near(right * (1 - relative * 0.99), right)
    assert not tolerance.near(right * (1 + relative * 1.01), right)
    assert not tolerance.near(right * (1 - relative * 1.01), right)
    assert not tolerance.near(-right, right)
    assert not tolerance.near(0.0, right)


@given(FINITE, TOLERANCES)
def test_what_is_not_finite_is_near_itself_alone(right, relative):
    tolerance = Tolerance(relative, relative)
    for strange in (math.nan, math.inf, -math.inf):
        assert tolerance.near(strange, strange)
        assert not tolerance.near(strange, right)
        assert not tolerance.near(right, strange)
    assert not tolerance.near(math.inf, -math.inf)


@given(JSON)
def test_of_any_json_nothing_is_made_but_a_verdict(value):
    """A program can write what it likes into its results."""
    for right in (encode(1), encode([1]), encode({1}), encode({1: 2})):
        with contextlib.suppress(UNREADABLE):
            assert same_value(value, right) in (True, False)


@pytest.mark.parametrize(
    "value", [1.5, {}, {"__float__": "x"}, {"__set__": 1}, {"__dict__": [[1]]}, {"__int__": 7}, {"a": 1, "b": 2}]
)
def test_what_was_not_encoded_has_no_value(value):
    with pytest.raises(UNREADABLE):
        same_value(value, value)


@pytest.mark.parametrize("tag", ["__set__", "__dict__"])
def test_members_that_collide_cost_the_judge_nothing(tag):
    numbers = [i * (2**61 - 1) for i in range(1, 50_000)]
    value = {tag: numbers if tag == "__set__" else [[number, 1] for number in numbers]}
    started = time.process_time()
    assert same_value(value, value)
    assert time.process_time() - started < 2


NINES = "9" * 1_000_000
HEAVY = [
    {"__int__": "f" * 1_000_000}, [{"__int__": "f" * 1000}] * 900, {"__float__": "0x1." + "f" * 900_000 + "p0"},
    {"__bytes__": "00" * 400_000}, {"__set__": [NINES, "9" * 999_999]}, {"__dict__": [[str(i), [i]] for i in range(90_000)]},
]  # fmt: skip


def nested(value, tag, levels):
    for _ in range(levels):
        value = {tag: [value]} if tag else [value]
    return value


@pytest.mark.parametrize(
    "value", [*HEAVY, *(nested(NINES, tag, 300) for tag in ("", "__tuple__", "__set__"))], ids=lambda _: ""
)
def test_the_judges_own_work_is_bounded(value):
    """Results of a megabyte, the usual bound, cost a fraction of a second whatever is in them."""
    started = time.process_time()
    for given_value, right in ((value, value), (value, encode(7)), ({"__set__": [value]}, encode({1}))):
        with contextlib.suppress(UNREADABLE):
            same_value(given_value, right, Tolerance(0.1, 1.0))
    with contextlib.suppress(UNREADABLE):
        source(value)
    assert time.process_time() - started < 3


LONG_WORDS = [
    f"{NINES}x", f"{NINES}.{NINES}x", f"1e{NINES}x", f".{NINES}.", f"-{NINES}", f"1e{NINES}", " ." * 500_000, "\t" * 10**6
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LONG_WORDS)))
def test_long_words_cost_the_judge_nothing(number):
    started = time.process_time()
    assert not same_output(LONG_WORDS[number].encode(), "1", Tolerance(0.1))
    assert time.process_time() - started < 2


LONG_RESPONSES = [
    "```" + "a" * 500_000,
    "``` " + " " * 500_000,
    " " * 500_000 + "```",
    "```\n" * 100_000,
    "\t```py x" * 60_000,
]


@pytest.mark.parametrize("number", range(len(LONG_RESPONSES)))
def test_the_program_in_a_long_response_is_found_soon(number):
    started = time.process_time()
    extract(LONG_RESPONSES[number])
    assert time.process_time() - started < 2


class Liar(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__
    __int__ = __index__ = __trunc__ = lambda self: 7


def test_subclasses_are_written_as_their_base():
    assert encode(Liar(3)) == 3
    assert type(encode(Liar(3))) is int
    assert encode([Liar(3)]) == [3]
    assert encode({Liar(3): 1}) == {"__dict__": [[3, 1]]}


LINES = st.lists(st.text(st.sampled_from("01.e- \tab"), max_size=8), max_size=4).map("\n".join)


@given(LINES, st.text(st.sampled_from(" \t\r"), max_size=3), st.text(st.sampled_from(" \t\r\n"), max_size=3))
def test_spaces_at_line_ends_do_not_count(text, space, end):
    given_bytes = (text.replace("\n", space + "\n") + end).encode()
    assert same_output(given_bytes, text)
    assert same_output(text.encode(), given_bytes.decode())


@given(LINES, LINES, st.sampled_from([0.0, 1e-6, 0.5, 1.0]))
def test_lines_are_never_joined(one, other, relative):
    if same_output(one.encode(), other, Tolerance(relative)):
        words, right_words = ([len(line.split()) for line in text.rstrip().split("\n")] for text in (one, other))
        assert words == right_words


@given(st.binary(max_size=20), st.text(max_size=10))
def test_any_output_is_judged(printed, right):
    assert same_output(printed, right, Tolerance(0.1)) in (True, False)
