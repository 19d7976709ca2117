"""Generates pairs of a right answer and a response whose correctness is known by construction.

A family draws an answer, usual ways to write the same answer, and wrong answers that a single mistake makes of it: a sign,
digit, operator, exponent, order, bracket or unit changed, a part left out, a second answer added.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from kray.bench.math_pairs import expressions, structures, values
from kray.bench.math_pairs.drawn import Drawn

FAMILIES: dict[str, Callable[[random.Random], Drawn]] = {
    family.__name__: family
    for family in (
        values.integer,
        values.fraction,
        values.decimal,
        expressions.surd,
        expressions.power,
        values.scientific,
        expressions.polynomial,
        expressions.rational_function,
        expressions.pi,
        expressions.logarithm,
        expressions.trigonometric,
        expressions.complex_number,
        values.percent,
        values.measure,
        values.degrees,
        values.numeral,
        values.residue,
        structures.ordered,
        structures.unordered,
        structures.interval,
        structures.half_line,
        structures.union,
        structures.matrix,
        structures.equation,
        structures.assignments,
        structures.ratio,
        structures.clock,
        structures.plus_minus,
        structures.choice,
        structures.word,
    )
}
_RESPONSES = ("\\boxed{%s}", "Thus the answer is $\\boxed{%s}$.", "<think>\\boxed{0}</think>\n\\[\\boxed{%s}\\]")


def pairs(count: int, seed: int) -> Iterator[tuple[str, str, str, bool]]:
    """Make pairs from `count` draws, of all families in turn.

    Yields:
        (family, right answer, response, whether the response is right) for everything that a draw gives.
    """
    rng = random.Random(seed)
    for number in range(count):
        name = list(FAMILIES)[number % len(FAMILIES)]
        drawn = FAMILIES[name](rng)
        for given in drawn.same:
            yield name, drawn.answer, rng.choice(_RESPONSES) % given, True
        for given in drawn.different:
            if given != drawn.answer:
                yield name, drawn.answer, rng.choice(_RESPONSES) % given, False
