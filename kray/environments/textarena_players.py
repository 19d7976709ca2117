"""Games of textarena for two, with a role for each player: self-play, or the policy against an opponent of its own kind.

As kray/environments/textarena.py, but both players may be the policy, each with its own view of the game and its own reward.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from kray.config.templates import fill
from kray.environments.chance import numbered
from kray.environments.interface import Observation
from kray.environments.textarena_game import Game, check_shape, open_game
from kray.records import Prompt, derive_seed
from kray.rewards.verifiers import Reward


class TextArenaPlayers:
    """Both players of a game for two; a player's reward is that of textarena in [0, 1], or 1 for a win.

    `first` is textarena's player 0, who moves first in most games. An opponent `random` makes legal moves, each equally likely.
    """

    roles = ("first", "second")
    players = ("random",)
    stops: tuple[str, ...] = ()

    def __init__(
        self,
        game: str,
        arguments: Mapping[str, Any] | None = None,
        moves: Sequence[str] = (),
        random_moves: int = 0,
        reward: str = "graded",
        chat: bool = True,
        shown: str = "\n{}\n",
    ):
        """Create a game.

        Args:
            game: textarena's id of the game, such as TicTacToe-v0.
            arguments: Keyword arguments of the game in place of those that it is registered with.
            moves: All moves that may be legal, where kray does not know them; only a random player and random_moves need them.
            random_moves: Random legal moves of both players before the first turn, so that positions differ.
            reward: graded: 0 for a loss, 0.5 for a draw, 1 for a win; win: 1 for a win, otherwise 0.
            chat: Observations are chat messages of the user. false: text, for policies without a chat template.
            shown: With chat: false, the text of an observation, with {} for what the game says.

        Raises:
            ImportError: textarena is not installed.
            ValueError: An option is invalid, or the game cannot be created or cannot be played by two.
        """
        check_shape(reward, shown)
        self.random_moves, self.win_only, self.chat, self.shown = random_moves, reward == "win", chat, shown
        self.game = Game(game, arguments or {}, moves)
        self.game.start(0)
        if self.game.players != 2:
            raise ValueError(f'game "{game}" is played alone: use environment.name: textarena')
        self.seed, self.turn, self.begun = 0, 0, {role: False for role in self.roles}

    def reset(self, prompt: Prompt, seed: int) -> tuple[str, Mapping[str, Observation]]:
        """Set up the prompt's position."""
        self.seed = seed
        open_game(self.game, numbered(prompt), self.random_moves)
        return self._next()

    def step(self, role: str, action: str) -> tuple[str, Mapping[str, Observation], bool]:
        """Make a player's move."""
        self.game.play(action, derive_seed(self.seed, "move", self.turn))
        self.turn += 1
        if self.game.over:
            return role, {}, True
        return *self._next(), False

    def rewards(self) -> dict[str, Reward]:
        """Return the reward of both players; see `Game.reward`."""
        return {role: self.game.reward(number, self.win_only) for number, role in enumerate(self.roles)}

    def play(self, role: str, player: str, seed: int) -> str:
        """Return a random legal move."""
        return self.game.random_move(random.Random(seed))

    def _next(self) -> tuple[str, dict[str, Observation]]:
        """Return who moves next, and what this player has not read yet."""
        role = self.roles[self.game.to_move]
        text, begun = self.game.read(), self.begun[role]
        self.begun[role] = True
        if self.chat:
            return role, {role: [{"role": "user", "content": text}] if begun else text}
        return role, {role: fill(self.shown, text) if begun else text}
