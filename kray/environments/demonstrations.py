"""Demonstrations of textarena's games for the warm-up of a tiny policy: whole games of random legal moves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from kray.records import Prompt, derive_seed

# To be raised when demonstrations change, so that cached policies are not reused.
VERSION = 1
# Turns after which a demonstration ends, finished or not.
MAX_TURNS = 32
# Share of the games in which a line occurs that becomes one token of the policy.
_LINE_SHARE = 0.01
# Characters of the shortest such line.
_LINE_CHARACTERS = 4


class Segment(NamedTuple):
    """A part of a conversation.

    Attributes:
        text: Its text.
        sampled: Whether the policy writes it.
        ends_turn: Whether the end-of-sequence token follows.
    """

    text: str
    sampled: bool
    ends_turn: bool


def play_games(games: Mapping[str, Any], size: int, seed: int) -> list[list[Segment]]:
    """Play games at random.

    Args:
        games: Label -> options of the environment textarena, as in prompts.train.tasks; the labels alternate.
        size: Number of games, rounded down to a multiple of the number of labels.
        seed: Seed of the positions and the moves.

    Returns:
        The segments of each game: the prompt with the opening, and in turn a move and what the game says to it.

    Raises:
        ImportError: textarena is not installed.
        ValueError: A game cannot be created, or which moves it has is not known.
    """
    return [
        _play(label, dict(options or {}), derive_seed("demonstration", seed, label, number))
        for number in range(max(1, size // len(games)))
        for label, options in games.items()
    ]


def game_key(games: Mapping[str, Any]) -> list[Any]:
    """Return what demonstrations depend on besides their arguments, as JSON values."""
    return [VERSION, version("textarena"), list(games)]


def common_lines(games: Sequence[Sequence[Segment]]) -> list[str]:
    """Return the lines that games repeat, such as rules and rows of boards; each becomes one token of a tiny policy."""
    lines = Counter(
        line for game in games for line in {line for part in game if not part.sampled for line in _lines(part)}
    )
    return [line for line, count in sorted(lines.items()) if count >= _LINE_SHARE * len(games)]


def _lines(part: Segment) -> list[str]:
    return [line for line in part.text.split("\n") if len(line) >= _LINE_CHARACTERS]


def _play(label: str, options: dict[str, Any], seed: int) -> list[Segment]:
    # Not above: loading textarena takes seconds, and most tiny policies learn something else.
    from kray.environments.textarena import TextArena

    environment, rng = TextArena(**{**options, "chat": False}), random.Random(seed)
    prompt = Prompt(f"{label}:{seed}", "", "", "seeds", text=f"{label}\n", metadata={"seed": seed})
    segments = [Segment(f"{prompt.text}{environment.reset(prompt, seed)}", False, False)]
    for _ in range(MAX_TURNS):
        move = environment.random_move(rng)
        observation, done = environment.step(move)
        segments.append(Segment(move, True, True))
        if done:
            break
        assert isinstance(observation, str)
        segments.append(Segment(observation, False, False))
    return segments
