"""A game of textarena as plain data: its moves, what a player reads, legal moves, and rewards in [0, 1].

Nothing here knows who plays. Guarantees: a game can be pickled between two moves; equal seeds and moves give equal games in
any process, since chance is drawn from the seed that is passed with each move; legal moves are found by trying them on a copy.

The wrappers under which textarena registers a game are not used for observations: they repeat the whole game in every turn,
which a conversation already holds. Those that rewrite actions (brackets around a move without them) are.
"""

from __future__ import annotations

import difflib
import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kray.config.templates import check_template
from kray.environments.chance import seeded
from kray.environments.live import held_reward
from kray.environments.textarena_moves import MOVES
from kray.records import derive_seed
from kray.rewards.verifiers import Reward

try:
    import textarena as library
except ImportError:
    library = None

REWARDS = ("graded", "win")
MISSING = 'the environment textarena needs the package textarena: pip install "textarena>=0.7,<0.8"'


class Game:
    """A game that is being played.

    Attributes:
        players: Number of players.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], moves: Sequence[str] = ()):
        """Create a game, which `start` then sets up.

        Args:
            name: textarena's id of the game.
            arguments: Keyword arguments of the game in place of those that it is registered with.
            moves: All moves that may be legal in some position; empty: those that kray knows of this game.

        Raises:
            ImportError: textarena is not installed.
            ValueError: There is no such game, or it cannot be created here.
        """
        if library is None:
            raise ImportError(MISSING)
        known = library.envs.registration.ENV_REGISTRY
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f'game "{name}" is not among those of textarena{f" (did you mean {near[0]}?)" if near else ""}'
            )
        try:
            game = library.make(name, **arguments)
        # Some games need word lists, others accounts, others a newer Python.
        except (Exception, SyntaxError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f'game "{name}" cannot be created: {type(error).__name__}: {why:.200}') from error
        self._formats: list[Any] = []
        while isinstance(game, library.Wrapper):
            if isinstance(game, library.ActionWrapper):
                self._formats.append(type(game))
            game = game.env
        self.name, self.players, self._game, self._moves = name, 0, game, tuple(moves)

    def start(self, seed: int) -> None:
        """Set up the game for one player, or for two if it cannot be played alone.

        Args:
            seed: Seed of the position, in which hidden numbers and cards are included.

        Raises:
            ValueError: It is a game for more than two players.
        """
        refused: Exception | None = None
        for players in (1, 2):
            try:
                with seeded(seed):
                    self._game.reset(num_players=players, seed=seed)
            except (AssertionError, ValueError) as error:
                refused = error
                continue
            # Not every game checks the number of its players.
            if players == 2 or isinstance(self.state, library.SinglePlayerState):
                self.players = players
                return
        raise ValueError(f'game "{self.name}" is for more than two players: {refused}')

    @property
    def state(self) -> Any:
        """textarena's state of the game."""
        return self._game.state

    @property
    def to_move(self) -> int:
        """Player whose move is next."""
        return int(self.state.current_player_id)

    @property
    def over(self) -> bool:
        """Whether the game has ended."""
        return bool(self.state.done)

    def read(self) -> str:
        """Return what the player to move has not read yet; boards before the latest one are left out."""
        player, messages = self._game.get_observation()
        return as_text(messages, player, self.state.role_mapping)

    def play(self, move: str, seed: int) -> None:
        """Make a move for the player whose turn it is; textarena answers an invalid one or ends the game.

        Args:
            move: Text with the move.
            seed: Seed of chance in this move.
        """
        for wrapper in self._formats:
            move = wrapper(self._game).action(move)
        with seeded(seed):
            self._game.step(move)

    def legal_moves(self, rng: random.Random) -> Iterator[str]:
        """Yield the legal moves of the player to move in random order.

        Args:
            rng: Source of the order.

        Raises:
            ValueError: The candidates for moves of this game are not known.
        """
        kind = type(self._game).__name__
        moves = list(self._moves or (MOVES[kind](self._game) if kind in MOVES else ()))
        if not moves:
            raise ValueError(f'which moves "{self.name}" has is not known; list them in the option moves')
        rng.shuffle(moves)
        position = pickle.dumps(self)
        for move in moves:
            trial: Game = pickle.loads(position)
            player = trial.to_move
            trial.play(move, 0)
            invalid_moves: int = getattr(trial.state, "error_count", 0)
            if not trial.lost_by_invalid(player) and not invalid_moves:
                yield move

    def random_move(self, rng: random.Random) -> str:
        """Return a legal move, each equally likely.

        Raises:
            ValueError: No candidate is legal, or none is known.
        """
        for move in self.legal_moves(rng):
            return move
        raise ValueError(f'"{self.name}": none of the moves that are known for it is legal')

    def reward(self, player: int, win_only: bool = False) -> Reward:
        """Return a player's reward.

        Args:
            player: The player.
            win_only: 1 for a win or a solved game, otherwise 0.

        Returns:
            0 for a game that has not ended or that the player ended by an invalid move. Otherwise, alone: textarena's reward,
            at least 0 and at most 1. Against another player, where textarena gives -1, 0 or 1: 0 for a loss, 0.5 for a
            draw, 1 for a win.
        """
        info, rewards = self.state.game_info.get(player, {}), self.state.rewards
        if not self.over or rewards is None:
            return Reward(0.0, "the game has not ended")
        reason = str(info.get("reason") or "")
        if self.lost_by_invalid(player):
            return Reward(0.0, reason or "invalid move")
        value = float(rewards[player])
        if win_only:
            return Reward(float(value >= 1), reason)
        return Reward(held_reward(value if self.players == 1 else (value + 1) / 2), reason)

    def lost_by_invalid(self, player: int) -> bool:
        """Return whether a player ended the game by an invalid move."""
        return bool(self.state.game_info.get(player, {}).get("invalid_move"))


def check_shape(reward: str, shown: str) -> None:
    """Check the options that say how games are rewarded and shown.

    Raises:
        ValueError: One is invalid.
    """
    if reward not in REWARDS:
        raise ValueError(f"reward must be one of {', '.join(REWARDS)}, not {reward!r}")
    try:
        check_template(shown)
    except ValueError as error:
        raise ValueError(f"shown {error}") from None


def open_game(game: Game, position: int, random_moves: int) -> None:
    """Set up a position.

    Args:
        game: The game.
        position: Seed of the position.
        random_moves: Number of random legal moves with which it begins, so that positions differ.

    Raises:
        ValueError: It is for more than two players, or ended within these moves.
    """
    game.start(position)
    rng = random.Random(derive_seed(position, "random_moves"))
    for number in range(random_moves):
        game.play(game.random_move(rng), derive_seed(position, "move", number))
        if game.over:
            raise ValueError(f"the game ended within its {random_moves} random_moves")


def as_text(messages: Sequence[tuple[int, str, Any]], player: int, roles: Mapping[int, str]) -> str:
    """Return textarena's messages to a player as text, with their senders.

    Args:
        messages: (sender, text, type) of each.
        player: Whose messages they are. Its own moves are left out: its conversation holds them.
        roles: Sender -> name.
    """
    types = library.ObservationType
    boards = [place for place, (_, _, kind) in enumerate(messages) if kind == types.GAME_BOARD]
    shown = [
        f"[{roles.get(sender, f'Player {sender}')}] {text.strip()}"
        for place, (sender, text, kind) in enumerate(messages)
        if not (kind == types.PLAYER_ACTION and sender == player)
        and not (kind == types.GAME_BOARD and place != boards[-1])
    ]
    return "\n".join(shown)
