"""Games of textarena in which every player is a role."""

from __future__ import annotations

import pytest

from kray.environments import check_environment, gives_reward, role_turns, roles_of
from kray.environments.role_turns import Move, RoleTurn
from kray.environments.textarena import TextArena
from kray.environments.textarena_players import TextArenaPlayers
from kray.records import Prompt

NAME = "textarena_players"
GAMES = ("ConnectFour-v0", "KuhnPoker-v0-short", "Nim-v0", "Othello-v0-tiny", "PigDice-v0-short", "TicTacToe-v0")


def position(number: int) -> Prompt:
    return Prompt(f"start:{number}", "", "", "seeds", text="start\n", metadata={"seed": 1000 + number})


def played(game: str, number: int, seed: int = 0, **options) -> RoleTurn:
    """A game between two random players, pickled between turns as in a run."""
    turn = role_turns.begin("", (NAME, {"game": game, **options}, position(number), seed))
    return role_turns.step("", Move(turn.state, "", "", {"first": "random", "second": "random"}, seed))


@pytest.mark.parametrize("game", GAMES)
def test_random_games_end_with_the_rewards_of_both(game):
    for number in range(6):
        end = played(game, number)
        assert end.ended
        (first, _), (second, _) = end.rewards["first"], end.rewards["second"]
        assert first + second == pytest.approx(1)
        assert end == played(game, number)


def test_each_player_reads_its_own_view():
    game = TextArenaPlayers("TicTacToe-v0")
    role, seen = game.reset(position(0), 0)
    assert role == "first"
    assert set(seen) == {"first"}
    opening = seen["first"]
    assert isinstance(opening, str)
    assert "You are Player 0" in opening
    role, seen, done = game.step("first", "my secret plan: [4]")
    assert (role, done) == ("second", False)
    assert "You are Player 1" in seen["second"]
    assert "You are Player 0" not in seen["second"]
    role, seen, _ = game.step("second", "[0]")
    ((message,),) = seen.values()
    assert (role, message["role"]) == ("first", "user")
    assert "You are" not in message["content"]
    assert "my secret plan" not in message["content"]


def test_a_player_reads_what_the_only_player_reads():
    """A tiny policy practises with the one environment and plays the other."""
    alone = TextArena("TicTacToe-v0", player=1, random_moves=1, chat=False)
    both = TextArenaPlayers("TicTacToe-v0", random_moves=1, chat=False)
    role, seen = both.reset(position(3), 0)
    assert role == "second"
    assert seen["second"] == alone.reset(position(3), 0)


def test_the_winner_gets_one_and_an_invalid_move_loses():
    game = TextArenaPlayers("TicTacToe-v0")
    role, _ = game.reset(position(0), 0)
    for move in ("[0]", "[3]", "[1]", "[4]", "[2]"):
        assert role == ("first", "second")[game.turn % 2]
        role, _, done = game.step(role, move)
    assert done
    assert [game.rewards()[role].value for role in game.roles] == [1, 0]
    game = TextArenaPlayers("TicTacToe-v0", reward="win")
    role, _ = game.reset(position(0), 0)
    role, seen, done = game.step(role, "the middle")
    assert (role, done) == ("first", False)
    assert "invalid" in str(seen["first"])
    assert game.step(role, "again the middle")[2]
    assert [game.rewards()[role].value for role in game.roles] == [0, 1]


def test_an_unfinished_game_earns_nobody_anything():
    game = TextArenaPlayers("TicTacToe-v0")
    role, _ = game.reset(position(0), 0)
    game.step(role, "[4]")
    assert [reward.value for reward in game.rewards().values()] == [0, 0]


def test_it_is_an_environment_with_roles():
    options = {"game": "ConnectFour-v0"}
    check_environment(NAME, options)
    assert roles_of(NAME, options) == ("first", "second")
    assert gives_reward(NAME)  # prompts need no answer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game": "GuessTheNumber-v0"}, "is played alone: use environment.name: textarena"),
        ({"game": "TicTacToe-v0", "reward": "best"}, "reward must be one of graded, win"),
        ({"game": "TicTacToe-v0", "shown": "?"}, "shown must contain"),
        ({}, "missing 1 required positional argument: 'game'"),
    ],
)
def test_options_that_do_not_fit_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        check_environment(NAME, options)
