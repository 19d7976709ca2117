"""Pathological LaTeX is judged by its deadline."""

import asyncio

import pytest

from kray.rewards import Scorer

DEADLINE_S = 1.0


def nested(opening: str, depth: int, core: str = "2", closing: str = "}") -> str:
    return opening * depth + core + closing * depth


def boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


PATHOLOGICAL = {
    "nested fractions": boxed(nested("\\frac{1}{", 40)),
    "very nested fractions": boxed(nested("\\frac{1}{", 5000)),
    "nested roots": boxed(nested("\\sqrt{", 100)),
    "nested parentheses": boxed(nested("(", 400, closing=")")),
    "power tower": "\\boxed{10^{10^{10}}}",
    "bare power tower": "The answer is $10^10^10$",
    "higher tower": "\\boxed{9^{9^{9^{9}}}}",
    "factorial": "\\boxed{(10^9)!}",
    "binomial": "\\boxed{\\binom{10^9}{5\\cdot 10^8}}",
    "modulus": "\\boxed{7 \\bmod 10^{10^{10}}}",
    "expansion": "\\boxed{(x+y+z+1)^{400}}",
    "long product": "\\boxed{" + "".join(f"(x+{i})" for i in range(90)) + "}",
    "long sum": "\\boxed{" + "+".join(f"x_{{{i}}}" for i in range(5000)) + "}",
    "long set": "\\boxed{\\{" + ",".join(map(str, range(5000))) + "\\}}",
    "hard integral": "\\boxed{\\int_0^1 \\frac{\\sin(x^x)}{\\log(x+\\sqrt{x})} dx}",
    "endless sum": "\\boxed{\\sum_{i=1}^{10^9} \\frac{1}{i^i}}",
    "many digits": "\\boxed{" + "9" * 100_000 + "}",
    "many decimals": "#### 0." + "1" * 50_000,
    "unclosed boxes": "\\boxed{" * 50_000,
    "unclosed braces": "\\boxed{" + "{" * 50_000,
    "closing braces": "\\boxed{" + "}" * 50_000,
    "dollars": "$" * 50_000,
    "backslashes": "\\" * 50_000,
    "nested text": "\\boxed{" + "\\text{" * 5000,
    "matrix": "\\boxed{\\begin{pmatrix}" + " & ".join(["1"] * 200) + "\\end{pmatrix}}",
    "odd characters": "\\boxed{\0\ud800\u202e\ufffe}",
}


@pytest.mark.parametrize("right", ["8", "\\frac{x+1}{2}"])
def test_every_judgement_ends_by_its_deadline_with_reward_0(right):
    """The scorer's own law is tested in test_scorer.py; here: it holds for what sympy and its parser do with each of these."""

    async def run(scorer: Scorer) -> dict:
        found = {}
        for name, response in PATHOLOGICAL.items():
            outcome = await asyncio.wait_for(
                scorer.score_one("", response, right), DEADLINE_S + 60
            )  # a process may start
            found[name] = (outcome.reward, outcome.error, outcome.elapsed_s <= DEADLINE_S)
        found["the next one"] = ((await scorer.score_one("", boxed(right), right)).reward, "", True)
        return found

    with Scorer("math", timeout_s=DEADLINE_S) as scorer:
        found = asyncio.run(run(scorer))
    assert found.pop("the next one") == (1.0, "", True)
    assert found == {name: (0.0, "", True) for name in PATHOLOGICAL}
