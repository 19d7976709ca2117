"""A solver and a checker on arithmetic: one answers, the other says whether the answer that it reads is right.

The solver reads the problem, such as `21+43=`, and writes its answer. The checker reads the problem and an answer, such as
`21+43=640?`, and writes `y` where that answer is right, else `n`.

- The solver's reward is 1 for the right answer, else 0. It does not depend on the checker.
- The checker's reward is 1 for the right verdict on the answer that it reads, else 0; other texts than `y` and `n` are wrong.

Agreement pays neither role. No verdict changes the solver's reward, so approving wrong answers earns nothing. The checker's
reward gives the solver's tokens no gradient, so answers that are easy to judge earn nothing either. The checker reads an answer
only if it consists of as many digits as the right one, else nothing before the `?`, so the solver cannot add a mark for it.

A checker that always says `y` would be right as often as the solver. Therefore a share of right answers (`altered`) is read
with one digit replaced: against a solver that is always right, each constant verdict is then right half of the time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from kray.records import Prompt, derive_seed
from kray.rewards.verifiers import Reward

RIGHT, WRONG = "y", "n"
# After the answer that the checker reads.
ASKED = "?"
DIGITS = "0123456789"


def with_error(answer: str, rng: random.Random) -> str:
    """Return an answer with one digit replaced by another."""
    place = rng.randrange(len(answer))
    other = rng.choice([digit for digit in DIGITS if digit != answer[place]])
    return answer[:place] + other + answer[place + 1 :]


class SolverChecker:
    """One answer and one verdict on it.

    A player `perfect` answers and judges without errors: the policy's reward as the checker against it is its accuracy on
    right and wrong answers alike (with `altered` 0.5).
    """

    roles = ("solver", "checker")
    players = ("perfect",)
    stops: tuple[str, ...] = ()

    def __init__(self, altered: float = 0.5):
        """Create it.

        Args:
            altered: Share of right answers that the checker reads with one digit replaced, in [0, 1]. Drawn by the prompt's
                seed, so that all episodes of a prompt in a step have the same draw.
        """
        if not 0 <= altered <= 1:
            raise ValueError(f"altered must be in [0, 1], not {altered!r:.40}")
        self.altered, self.seed = altered, 0
        self.answer = self.given = self.shown = self.verdict = ""

    def reset(self, prompt: Prompt, seed: int) -> tuple[str, Mapping[str, str]]:
        """Begin with the prompt, which both roles read.

        Raises:
            ValueError: The prompt's answer does not consist of digits.
        """
        if not _digits(prompt.answer):
            raise ValueError(f"solver_checker needs answers of digits 0 to 9, not {prompt.answer!r:.40}")
        self.answer, self.seed = prompt.answer, seed
        return "solver", {}

    def step(self, role: str, action: str) -> tuple[str, Mapping[str, str], bool]:
        """Take the answer, or the verdict."""
        if role == "checker":
            self.verdict = action.strip()
            return "solver", {}, True
        self.given = action.strip()
        self.shown = self.given if _digits(self.given) and len(self.given) == len(self.answer) else ""
        rng = random.Random(derive_seed(self.seed, "altered"))
        if self.given == self.answer and rng.random() < self.altered:
            self.shown = with_error(self.answer, rng)
        return "checker", {"checker": self.shown + ASKED}, False

    def rewards(self) -> dict[str, Reward]:
        """Return 1 for the right answer and for the right verdict, else 0."""
        return {
            "solver": Reward(float(self.given == self.answer), f"answer {self.given!r:.40}"),
            "checker": Reward(float(self.verdict == self._right_verdict), f"{self.verdict!r:.40} on {self.shown!r}"),
        }

    def play(self, role: str, player: str, seed: int) -> str:
        """Return the right answer or verdict."""
        return self.answer if role == "solver" else self._right_verdict

    @property
    def _right_verdict(self) -> str:
        return RIGHT if self.shown == self.answer else WRONG


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()
