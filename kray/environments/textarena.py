"""Games of textarena (PyPI: textarena): played alone, or against a player that the environment provides.

Where the policy plays both players: kray/environments/textarena_players.py.

A prompt is a starting position: its seed (prompts.train.kind: seeds), or its id, decides what textarena draws when the game is
set up. Chance and the opponent's moves follow from the seed of the group, so rollouts that play the same moves get the same
answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kray.config.templates import fill
from kray.environments.chance import numbered
from kray.environments.registry import load_object
from kray.environments.textarena_game import Game, check_shape, open_game
from kray.records import Prompt, derive_seed
from kray.rewards.verifiers import Reward

# Moves of the opponent between two turns of the policy after which the game is taken to be stuck.
_MOST_REPLIES = 1000


class TextArena:
    """One player of a game of textarena; done when the game is."""

    stops: tuple[str, ...] = ()
    gives_reward = True

    def __init__(
        self,
        game: str,
        arguments: Mapping[str, Any] | None = None,
        player: int | str = 0,
        opponent: str = "random",
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
            player: In a game for two, whom the policy plays: 0, who moves first in most games, 1, or "either", drawn from the
                position's seed.
            opponent: random: a legal move, each equally likely; or pkg.module:function of (Game, random.Random), which
                returns a move.
            moves: All moves that may be legal, where kray does not know them; see kray/environments/textarena_moves.py.
            random_moves: Random legal moves of all players before the policy's first turn, so that positions differ.
            reward: graded: textarena's reward in [0, 1]; win: 1 for a win or a solved game, otherwise 0.
            chat: Observations are chat messages of the user. false: text, for policies without a chat template.
            shown: With chat: false, the text of an observation, with {} for what the game says.

        Raises:
            ImportError: textarena is not installed.
            ValueError: An option is invalid, or the game cannot be created.
        """
        if player not in (0, 1, "either"):
            raise ValueError(f"player must be 0, 1 or either, not {player!r}")
        check_shape(reward, shown)
        self.player, self.opponent, self.random_moves = player, opponent, random_moves
        self.win_only, self.chat, self.shown = reward == "win", chat, shown
        self.game = Game(game, arguments or {}, moves)
        self._opponent()
        self.seed, self.turn = 0, 0

    def reset(self, prompt: Prompt, seed: int) -> str:
        """Set up the prompt's position and return what the game tells the policy, as a part of the prompt."""
        self.seed = seed
        position = numbered(prompt)
        open_game(self.game, position, self.random_moves)
        if self.player == "either" or self.game.players == 1:
            self.player = position % self.game.players
        self._reply()
        if self.game.over:
            raise ValueError("the game ended before the policy's first turn")
        return self.game.read()

    def step(self, action: str) -> tuple[str | list[dict[str, str]], bool]:
        """Make the policy's move, then the opponent's moves until the policy is to move or the game has ended."""
        self.game.play(action, derive_seed(self.seed, "move", self.turn))
        self.turn += 1
        self._reply()
        if self.game.over:
            return "", True
        text = self.game.read()
        return [{"role": "user", "content": text}] if self.chat else fill(self.shown, text), False

    def reward(self) -> Reward:
        """Return the policy's reward; see `Game.reward`."""
        assert isinstance(self.player, int)
        return self.game.reward(self.player, self.win_only)

    def random_move(self, rng: random.Random) -> str:
        """Return a legal move of the policy's player, drawn at random."""
        return self.game.random_move(rng)

    def _reply(self) -> None:
        for number in range(_MOST_REPLIES):
            if self.game.over or self.game.to_move == self.player:
                return
            rng = random.Random(derive_seed(self.seed, "opponent", self.turn, number))
            move = self._opponent()(self.game, rng)
            mover = self.game.to_move
            self.game.play(move, derive_seed(self.seed, "reply", self.turn, number))
            if self.game.lost_by_invalid(mover):
                raise ValueError(f"the opponent's move {move!r:.60} is invalid")
        raise ValueError(f"the opponent moved {_MOST_REPLIES} times without a turn of the policy")

    def _opponent(self) -> Callable[[Game, random.Random], str]:
        if self.opponent == "random":
            return Game.random_move
        found: Callable[[Game, random.Random], str] = load_object(self.opponent)
        return found
