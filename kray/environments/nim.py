"""Nim, a game for two: players take objects from heaps in turn, and whoever takes the last one wins.

The prompt is the position: the sizes of the heaps, one digit each, and `>`, such as `352>`. A move names the heap by a letter,
from `a` on, and the number of objects to take from it: `b4` leaves `312>`, which is what the other player reads. A move that
is not legal loses the game. Every position is won by one of the sides (C. L. Bouton, 1901): the side to move wins unless the
bitwise exclusive or of the heaps is 0.
"""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Mapping, Sequence

from kray.records import Prompt

HEAPS = "abcdefgh"
# After the heaps in a position.
TO_MOVE = ">"


def position(heaps: Sequence[int]) -> str:
    """Return a position as players read it."""
    return "".join(map(str, heaps)) + TO_MOVE


def read_position(text: str) -> list[int]:
    """Invert `position`.

    Raises:
        ValueError: The text is no position with an object left.
    """
    digits = text.removesuffix(TO_MOVE)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(HEAPS) and int(digits)):
        raise ValueError(f"{text!r:.40} is no position of Nim such as 352{TO_MOVE}, with at most {len(HEAPS)} heaps")
    return [int(digit) for digit in digits]


def moves(heaps: Sequence[int]) -> list[str]:
    """Return all legal moves."""
    return [f"{HEAPS[at]}{taken}" for at, size in enumerate(heaps) for taken in range(1, size + 1)]


def after(heaps: Sequence[int], move: str) -> list[int] | None:
    """Return the heaps after a move; None where it is not legal."""
    if move not in moves(heaps):
        return None
    at = HEAPS.index(move[0])
    return [size - int(move[1]) if place == at else size for place, size in enumerate(heaps)]


def won(heaps: Sequence[int]) -> bool:
    """Return whether the side to move can force a win."""
    return functools.reduce(operator.xor, heaps, 0) != 0


class Nim:
    """Two players, who read the position before each of their moves; the winner's reward is 1, the loser's 0.

    An opponent `random` moves at random among the legal moves; `perfect` wins every position that can be won.
    """

    roles = ("first", "second")
    players = ("random", "perfect")
    stops: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.heaps: list[int] = []
        self.winner, self.how = "", "the game was not finished"

    def reset(self, prompt: Prompt, seed: int) -> tuple[str, Mapping[str, str]]:
        """Begin from the prompt's position, which both players read."""
        self.heaps = read_position((prompt.text or "").strip())
        return "first", {}

    def step(self, role: str, action: str) -> tuple[str, Mapping[str, str], bool]:
        """Make a move."""
        other = self._other(role)
        left = after(self.heaps, action.strip())
        if left is None:
            self.winner, self.how = other, f"{role} made an illegal move: {action.strip()!r:.40}"
            return other, {}, True
        self.heaps = left
        if not any(left):
            self.winner, self.how = role, f"{role} took the last object"
            return other, {}, True
        return other, {other: position(left)}, False

    def rewards(self) -> dict[str, float]:
        """Return 1 for the winner and 0 for the loser, one half each for a game that was not finished."""
        return {role: 0.5 if not self.winner else float(role == self.winner) for role in self.roles}

    def play(self, role: str, player: str, seed: int) -> str:
        """Return a move of a player of this environment."""
        rng, legal = random.Random(seed), moves(self.heaps)
        if player == "perfect":
            legal = [move for move in legal if not won(after(self.heaps, move) or [1])] or legal
        return rng.choice(legal)

    def _other(self, role: str) -> str:
        return self.roles[1 - self.roles.index(role)]
