"""Answers of several parts, relations, and words."""

from __future__ import annotations

import math
import random

from kray.bench.math_pairs.drawn import Drawn


def ordered(rng: random.Random) -> Drawn:
    """Draw an ordered triple."""
    a, b, c = rng.sample(range(-20, 21), 3)
    three = [str(a), str(b), str(c)]
    same = [
        f"({a},{b},{c})",
        f"\\left({a}, {b}, {c}\\right)",
        f"({a}, {b}, {c})",
        f"\\langle {a}, {b}, {c} \\rangle",
        f"(x,y,z)=({a},{b},{c})",
        f"\\begin{{pmatrix}}{a}\\\\{b}\\\\{c}\\end{{pmatrix}}",
        f"({2 * a}/2, {b}, {c}.0)",
    ]
    different = [
        f"({b},{a},{c})",
        f"({c},{b},{a})",
        f"({a},{b})",
        f"({a},{b},{c + 1})",
        f"({a},{b},{c},{c})",
        f"\\{{{a},{b},{c}\\}}",
        three[2],
        f"[{a},{b},{c}]",
        f"({-a or 1},{b},{c})",
        f"({a},{b});({b},{c})",
    ]
    return Drawn(f"({a},{b},{c})", same, different)


def unordered(rng: random.Random) -> Drawn:
    """Draw a set of three integers."""
    a, b, c = rng.sample(range(-30, 31), 3)
    same = [
        f"{a}, {b}, {c}",
        f"{c},{a},{b}",
        f"{a}, {b}, \\text{{ and }} {c}",
        f"{b}, {a} \\text{{ and }} {c}",
        f"\\{{{a}, {b}, {c}\\}}",
        f"x = {a}, {b}, {c}",
        f"x={a}, x={b}, x={c}",
        f"x \\in \\{{{a},{b},{c}\\}}",
        f"{a}; {b}; {c}",
        f"{a} \\text{{ or }} {b} \\text{{ or }} {c}",
    ]
    different = [
        f"{a}, {b}",
        f"{c}",
        f"{a}, {b}, {c + 31}",
        f"{a}, {b}, {c}, {c + 31}",
        f"{-a or 1}, {b}, {c}" if len({-a or 1, b, c}) == 3 and {-a or 1, b, c} != {a, b, c} else "0",
        f"{a + b + c}",
        f"{a}, {a}, {b}",
    ]
    return Drawn(f"{a}, {b}, {c}", same, different)


def interval(rng: random.Random) -> Drawn:
    """Draw a bounded interval."""
    a, b = sorted(rng.sample(range(-20, 21), 2))
    left, right = rng.choice("[("), rng.choice("])")
    low, high = "\\le" if left == "[" else "<", "\\le" if right == "]" else "<"
    flipped = {"[": "(", "(": "[", "]": ")", ")": "]"}
    up = {"\\le": "\\ge", "<": ">"}
    same = [
        f"{left}{a}, {b}{right}",
        f"\\left{left}{a},{b}\\right{right}",
        f"x \\in {left}{a},{b}{right}",
        f"{a} {low} x {high} {b}",
        f"{b} {up[high]} x {up[low]} {a}",
        f"{a} {low}x{high} {b}".replace("\\le", "≤"),
        f"x {up[low]} {a} \\text{{ and }} x {high} {b}",
    ]
    different = [
        f"{flipped[left]}{a}, {b}{right}",
        f"{left}{a}, {b}{flipped[right]}",
        f"{left}{a}, {b + 1}{right}",
        f"{left}{a - 1}, {b}{right}",
        f"{left}{b}, {a}{right}",
        f"{a}",
        f"{b}",
        f"\\{{{a}, {b}\\}}",
        f"x {high} {b}",
        f"{left}{-b}, {-a}{right}" if -b != a else "0",
        f"{left}{a}, \\infty)",
    ]
    return Drawn(f"{left}{a}, {b}{right}", same, different)


def half_line(rng: random.Random) -> Drawn:
    """Draw an inequality with one bound."""
    a, strict = rng.randint(-20, 20), rng.choice((True, False))
    sign, other, mirrored, bracket = (">", "\\ge", "<", "(") if strict else ("\\ge", ">", "\\le", "[")
    same = [
        f"x {sign} {a}",
        f"{bracket}{a}, \\infty)",
        f"x \\in {bracket}{a},\\infty)",
        f"{a} {mirrored} x",
        f"2x {sign} {2 * a}",
    ]
    if not strict:
        same += [f"x ≥ {a}", f"x \\geq {a}", f"x\\geqslant {a}"]
    different = [
        f"x {other} {a}",
        f"x < {a}",
        f"x \\le {a}",
        f"{a}",
        f"x = {a}",
        f"x {sign} {a + 1}",
        f"(-\\infty, {a})",
        f"x {sign} {-a}" if a else "0",
        f"y {sign} {a}",
        f"x \\ne {a}",
    ]
    return Drawn(f"x {sign} {a}", same, different)


def union(rng: random.Random) -> Drawn:
    """Draw a union of two rays."""
    a, b = sorted(rng.sample(range(-20, 21), 2))
    same = [
        f"(-\\infty, {a}) \\cup ({b}, \\infty)",
        f"({b}, \\infty) \\cup (-\\infty, {a})",
        f"x < {a} \\text{{ or }} x > {b}",
        f"(-∞,{a})∪({b},∞)",
        f"x \\in (-\\infty,{a})\\cup({b},\\infty)",
    ]
    different = [
        f"(-\\infty, {a}] \\cup ({b}, \\infty)",
        f"(-\\infty, {a}) \\cup [{b}, \\infty)",
        f"(-\\infty, {a})",
        f"({a}, {b})",
        f"(-\\infty, {a}) \\cap ({b}, \\infty)",
        f"(-\\infty, {a - 1}) \\cup ({b}, \\infty)",
        "(-\\infty, \\infty)",
        f"x > {b}",
        f"{a}, {b}",
    ]
    return Drawn(f"(-\\infty, {a}) \\cup ({b}, \\infty)", same, different)


def matrix(rng: random.Random) -> Drawn:
    """Draw a 2 x 2 matrix."""
    a, b, c, d = rng.sample(range(-9, 10), 4)

    def grid(rows: list[list[object]], name: str = "pmatrix") -> str:
        return f"\\begin{{{name}}} " + " \\\\ ".join(" & ".join(map(str, row)) for row in rows) + f" \\end{{{name}}}"

    same = [
        grid([[a, b], [c, d]]),
        grid([[a, b], [c, d]], "bmatrix"),
        grid([[a, b], [c, d]]).replace(" ", "").replace("\\begin{pmatrix}", "\\begin{pmatrix} "),
        "\\frac{1}{2}" + grid([[2 * a, 2 * b], [2 * c, 2 * d]]),
        f"A = {grid([[a, b], [c, d]])}",
        "\\left(" + grid([[a, b], [c, d]], "array").replace("{array} ", "{array}{cc} ", 1) + "\\right)",
    ]
    different = [
        grid([[a, c], [b, d]]),
        grid([[c, d], [a, b]]),
        grid([[a, b, c, d]]),
        grid([[a], [b], [c], [d]]),
        grid([[a, b], [c, d + 1]]),
        grid([[-a or 10, b], [c, d]]),
        str(d),
        f"({a},{b},{c},{d})",
        grid([[a, b], [c, d]], "vmatrix"),
    ]
    return Drawn(grid([[a, b], [c, d]]), same, different)


def equation(rng: random.Random) -> Drawn:
    """Draw a linear equation in x and y."""
    a, b, c = rng.sample([k for k in range(2, 13)], 3)
    same = [
        f"{a}x+{b}y={c}",
        f"{b}y+{a}x={c}",
        f"{a}x + {b}y - {c} = 0",
        f"{2 * a}x+{2 * b}y={2 * c}",
        f"-{a}x-{b}y=-{c}",
        f"{c}={a}x+{b}y",
        f"y = \\frac{{{c}-{a}x}}{{{b}}}",
    ]
    different = [
        f"{a}x-{b}y={c}",
        f"{a}x+{b}y=-{c}",
        f"{b}x+{a}y={c}",
        f"{a}x+{b}y={c + 1}",
        f"{a}x+{b}y",
        f"{c}",
        f"{a}x+{b}y<{c}",
        f"{a}x^2+{b}y={c}",
        f"{a}x+{b}y+{c}=0",
    ]
    return Drawn(f"{a}x+{b}y={c}", same, different)


def assignments(rng: random.Random) -> Drawn:
    """Draw values of x and y."""
    a, b = rng.sample(range(2, 40), 2)
    same = [
        f"x={a}, y={b}",
        f"y = {b}, x = {a}",
        f"x = {a} \\text{{ and }} y = {b}",
        f"({a},{b})",
        f"(x,y) = ({a},{b})",
        f"{a}, {b}",
    ]
    different = [
        f"x={b}, y={a}",
        f"({b},{a})",
        f"x={a}",
        f"y={b}",
        f"x={a}, y={b + 1}",
        f"x=-{a}, y={b}",
        f"x={a}, z={b}",
        f"{a}{b}",
    ]
    return Drawn(f"x={a}, y={b}", same, different)


def ratio(rng: random.Random) -> Drawn:
    """Draw a ratio."""
    a, b = rng.choice([(p, q) for p in range(1, 10) for q in range(1, 10) if math.gcd(p, q) == 1 and p != q])
    same = [
        f"{a}:{b}",
        f"{a} : {b}",
        f"{2 * a}:{2 * b}" if 2 * b < 10 else f"{a}:{b}",
        f"\\frac{{{a}}}{{{b}}}",
        f"{a}/{b}",
        f"{a} \\text{{ to }} {b}",
    ]
    different = [
        f"{b}:{a}",
        f"{a}:{b}:1",
        f"{a + 1}:{b}" if (a + 1, b) != (a, b) else "0",
        f"{a}{b}",
        f"-{a}:{b}",
        f"\\frac{{{b}}}{{{a}}}",
        f"({a},{b})",
    ]
    return Drawn(f"{a}:{b}", same, different)


def clock(rng: random.Random) -> Drawn:
    """Draw a time of day."""
    h, m, half = rng.randint(1, 12), rng.randint(0, 59), rng.choice(("a.m.", "p.m."))
    other = "a.m." if half == "p.m." else "p.m."
    same = [
        f"{h}:{m:02d} \\text{{ {half}}}",
        f"{h}:{m:02d}\\text{{ {half.upper()}}}",
        f"{h}:{m:02d}",
        f"{h}:{m:02d} {half.replace('.', '')}",
        f"\\text{{{h}:{m:02d} {half}}}",
    ]
    different = [
        f"{h}:{(m + 1) % 60:02d} \\text{{ {half}}}",
        f"{h % 12 + 1}:{m:02d} \\text{{ {half}}}",
        f"{h}:{m:02d} \\text{{ {other}}}",
        f"{h}",
        f"{m}",
        f"{h}{m:02d}",
    ]
    return Drawn(f"{h}:{m:02d} \\text{{ {half}}}", same, different)


def plus_minus(rng: random.Random) -> Drawn:
    """Draw an integer plus or minus a square root."""
    a, b = rng.randint(1, 9), rng.choice((2, 3, 5, 7, 11))
    same = [
        f"{a} \\pm \\sqrt{{{b}}}",
        f"{a} \\mp \\sqrt{{{b}}}",
        f"{a}+\\sqrt{{{b}}}, {a}-\\sqrt{{{b}}}",
        f"x = {a} ± √{b}",
        f"\\{{{a}-\\sqrt{{{b}}}, {a}+\\sqrt{{{b}}}\\}}",
        f"{a}+\\sqrt{{{b}}} \\text{{ or }} {a}-\\sqrt{{{b}}}",
    ]
    different = [
        f"{a}",
        f"{a} + \\sqrt{{{b}}}",
        f"{a} - \\sqrt{{{b}}}",
        f"{a} \\pm \\sqrt{{{b + 1}}}",
        f"-{a} \\pm \\sqrt{{{b}}}",
        f"\\pm {a}",
        f"\\pm \\sqrt{{{b}}}",
        f"{a} \\pm {b}",
    ]
    return Drawn(f"{a} \\pm \\sqrt{{{b}}}", same, different)


def choice(rng: random.Random) -> Drawn:
    """Draw a letter of a multiple choice."""
    letter, other = rng.sample("ABCDE", 2)
    n = rng.randint(2, 99)
    same = [
        letter,
        f"({letter})",
        f"\\text{{{letter}}}",
        f"\\textbf{{({letter})}}",
        f"\\textbf{{({letter}) }} {n}",
        f"\\text{{({letter})}}\\ {n}",
        f"{letter}. {n}",
        f"\\text{{{letter}) {n}}}",
        f"{letter}.",
    ]
    different = [
        other,
        f"({other})",
        f"\\textbf{{({other}) }} {n}",
        f"{letter}, {other}",
        f"{letter} \\text{{ or }} {other}",
        f"{letter}{other}",
        f"{n}",
        f"{letter}^2",
        f"2{letter}",
        f"({other}) \\text{{ not }} ({letter})",
    ]
    return Drawn(letter, same, different)


def word(rng: random.Random) -> Drawn:
    """Draw a word."""
    word, other = rng.sample(
        ("north", "even", "Monday", "Alice", "increasing", "isosceles", "yes", "parabola", "blue"), 2
    )
    same = [
        word,
        f"\\text{{{word}}}",
        word.capitalize(),
        f"\\text{{{word.upper()}}}",
        f"\\textbf{{{word}}}",
        f"\\text{{{word}.}}",
        f"\\mathrm{{{word}}}",
    ]
    different = [
        other,
        f"\\text{{not {word}}}",
        f"\\text{{{word} or {other}}}",
        f"{word}, {other}",
        "1",
        f"\\text{{{word[::-1]}}}",
    ]
    return Drawn(f"\\text{{{word}}}", same, different)
