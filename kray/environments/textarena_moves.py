"""Candidates for moves of textarena's games: every text that may be a legal move, from which illegal ones are then taken out.

They are what a random opponent and the warm-up of a tiny policy play.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any


def _cells(side: str | int, form: str = "[{} {}]") -> Callable[[Any], list[str]]:
    """Return the candidates of a square board; `side` is its width or the game's attribute with it."""

    def candidates(game: Any) -> list[str]:
        width = range(side if isinstance(side, int) else getattr(game, side))
        return [form.format(row, column) for row, column in itertools.product(width, width)]

    return candidates


def _fixed(*moves: str) -> Callable[[Any], list[str]]:
    return lambda game: list(moves)


def _numbers(count: Callable[[Any], range]) -> Callable[[Any], list[str]]:
    return lambda game: [f"[{number}]" for number in count(game)]


def _nim(game: Any) -> list[str]:
    piles = game.state.game_state["piles"]
    return [f"[{pile} {taken}]" for pile, size in enumerate(piles) for taken in range(1, size + 1)]


def _mastermind(game: Any) -> list[str]:
    state = game.state.game_state
    codes = itertools.product(range(1, state["num_numbers"] + 1), repeat=state["code_length"])
    return [f"[{' '.join(map(str, code))}]" for code in itertools.islice(codes, 50_000)]


# Name of the game's class -> its candidates, given the game.
MOVES: dict[str, Callable[[Any], list[str]]] = {
    "BlackjackEnv": _fixed("[Hit]", "[Stand]"),
    "ConnectFourEnv": _numbers(lambda game: range(game.num_cols)),
    "FrozenLakeEnv": _fixed("[up]", "[down]", "[left]", "[right]"),
    "Game2048Env": _fixed("[Up]", "[Down]", "[Left]", "[Right]"),
    "GuessTheNumberEnv": _numbers(lambda game: range(game.min_number, game.max_number + 1)),
    "IteratedMatchingPenniesEnv": _fixed("[heads]", "[tails]"),
    "IteratedRockPaperScissorsEnv": _fixed("[rock]", "[paper]", "[scissors]"),
    "KuhnPokerEnv": _fixed("[check]", "[bet]", "[call]", "[fold]"),
    "LightsOutEnv": _cells("size"),
    "MastermindEnv": _mastermind,
    "NimEnv": _nim,
    "OthelloEnv": _cells("N", "[{}, {}]"),
    "PigDiceEnv": _fixed("[roll]", "[hold]"),
    "SimpleTakEnv": _numbers(lambda game: range(game.board_size**2)),
    "TicTacToeEnv": _numbers(lambda game: range(9)),
    "TowerOfHanoiEnv": _fixed("[A B]", "[A C]", "[B A]", "[B C]", "[C A]", "[C B]"),
    "WildTicTacToeEnv": lambda game: [f"[{mark} {cell}]" for mark in "XO" for cell in range(9)],
}
