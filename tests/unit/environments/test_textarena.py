"""Whole games of textarena, alone and against the environment's player."""

from __future__ import annotations

import pickle
import random

import pytest

from kray.environments import check_environment
from kray.environments.textarena import TextArena
from kray.environments.textarena_game import Game
from kray.environments.textarena_moves import MOVES
from kray.records import Prompt

# One small game of each class whose moves are known.
GAMES = (
    "2048-v0-ultra-easy",
    "Blackjack-v0",
    "ConnectFour-v0",
    "FrozenLake-v0",
    "GuessTheNumber-v0",
    "IteratedMatchingPennies-v0",
    "IteratedRockPaperScissors-v0",
    "KuhnPoker-v0-short",
    "LightsOut-v0",
    "Mastermind-v0",
    "Nim-v0",
    "Othello-v0-tiny",
    "PigDice-v0-short",
    "SimpleTak-v0",
    "TicTacToe-v0",
    "TowerOfHanoi-v0",
    "WildTicTacToe-v0",
)


def position(number: int) -> Prompt:
    return Prompt(f"start:{number}", "", "exact", "seeds", text="start\n", metadata={"seed": 1000 + number})


def last_move(game: Game, rng: random.Random) -> str:
    """Return the legal move with the largest text; tests name this function as an opponent."""
    return max(game.legal_moves(rng))


def invalid_move(game: Game, rng: random.Random) -> str:
    return "I pass"


def play(name: str, number: int, seed: int, **options) -> tuple[list, float, str]:
    """Play a game at random; the environment is pickled between turns, as in a run."""
    environment = TextArena(name, player="either", **options)
    rng, seen = random.Random(number), [environment.reset(position(number), seed)]
    for _ in range(200):
        environment = pickle.loads(pickle.dumps(environment))
        move = environment.random_move(rng)
        observation, done = environment.step(move)
        seen.append((move, observation))
        if done:
            return seen, environment.reward().value, environment.reward().detail
    raise AssertionError("the game did not end in 200 turns")


@pytest.mark.parametrize("name", GAMES)
def test_random_games_end_with_a_reward(name):
    rewards = {play(name, number, 0)[1] for number in range(8)}
    assert all(0 <= reward <= 1 for reward in rewards)
    assert max(rewards) > 0 or name == "LightsOut-v0"


@pytest.mark.parametrize("name", GAMES)
def test_same_seed_gives_the_same_game(name):
    assert play(name, 3, 5) == play(name, 3, 5)


def test_every_known_game_is_tested():
    assert {type(Game(name, {})._game).__name__ for name in GAMES} == set(MOVES)


def test_seeds_of_prompts_make_positions_and_seeds_of_groups_make_luck():
    assert TextArena("FrozenLake-v0").reset(position(1), 0) != TextArena("FrozenLake-v0").reset(position(2), 0)
    assert TextArena("FrozenLake-v0").reset(position(1), 0) == TextArena("FrozenLake-v0").reset(position(1), 1)
    replies = set()
    for seed in range(8):
        game = TextArena("TicTacToe-v0")
        game.reset(position(1), seed)
        replies.add(game.step("[4]")[0][0]["content"])
    assert len(replies) > 1


def test_copies_of_one_reset_play_on_independently():
    first = TextArena("TicTacToe-v0", opponent=f"{__name__}:last_move")
    first.reset(position(0), 0)
    second = pickle.loads(pickle.dumps(first))
    first.step("[0]")
    # Square 0 is still free in the copy.
    observation, done = second.step("[0]")
    assert not done
    assert "invalid" not in observation[0]["content"]
    assert second.step("[1]")[1] is False


def test_copies_that_move_alike_get_alike_replies():
    start = TextArena("KuhnPoker-v0-short")
    start.reset(position(0), 7)
    copies = [pickle.loads(pickle.dumps(start)) for _ in range(2)]
    # What happens to the process's own generators in between has no influence.
    first = copies[0].step("[check]")
    random.seed(12345)
    assert copies[1].step("[check]") == first


def test_chance_does_not_touch_the_process_generators():
    random.seed(1)
    expected = random.Random(1).random()
    play("2048-v0-ultra-easy", 0, 0)
    assert random.random() == expected


def test_win_loss_and_draw():
    def tictactoe(*moves):
        environment = TextArena("TicTacToe-v0", opponent=f"{__name__}:last_move")
        environment.reset(position(0), 0)
        for move in moves:
            _, done = environment.step(move)
        assert done
        return environment.reward()

    # The opponent takes the free square with the largest number.
    assert tictactoe("[4]", "[2]", "[6]").value == 1  # against 8, 7
    assert tictactoe("[0]", "[1]", "[3]").value == 0  # against 8, 7, 6
    draws = [play("TicTacToe-v0", number, number) for number in range(40)]
    assert {reward for _, reward, _ in draws} == {0.0, 0.5, 1.0}
    assert all(("draw" in why) == (reward == 0.5) for _, reward, why in draws)


def test_invalid_moves():
    environment = TextArena("TicTacToe-v0")
    environment.reset(position(0), 0)
    observation, done = environment.step("the middle")
    assert not done
    assert "invalid move" in observation[0]["content"]
    # A valid move makes up for it; two invalid ones in a row lose.
    assert not environment.step("[4]")[1]
    assert not environment.step("[4]")[1]
    assert environment.step("[4]")[1]
    assert environment.reward().value == 0
    assert environment.reward().detail


def test_invalid_end_of_a_solitaire_game_earns_nothing():
    """textarena gives a share of the reward here: the last guess was close."""
    environment = TextArena("GuessTheNumber-v0")
    environment.reset(position(0), 0)
    number = environment.game.state.game_state["game_number"]
    environment.step(f"[{number + 1 if number < 20 else number - 1}]")
    environment.step("?")
    assert environment.step("?")[1]
    assert environment.game.state.rewards[0] > 0.9
    assert environment.reward().value == 0


def test_unfinished_games_earn_nothing():
    for name in ("GuessTheNumber-v0", "TicTacToe-v0", "2048-v0"):
        environment = TextArena(name)
        environment.reset(position(0), 0)
        environment.step(environment.random_move(random.Random(0)))
        assert environment.reward().value == 0
        assert environment.reward().detail == "the game has not ended"


def test_graded_rewards_and_wins():
    def guess(reward):
        environment = TextArena("GuessTheNumber-v0", {"max_turns": 1}, reward=reward)
        environment.reset(position(0), 0)
        number = environment.game.state.game_state["game_number"]
        guesses = [guess for guess in range(1, 21) if guess != number]
        environment.step(f"[{guesses[0]}]")
        assert environment.step(f"[{guesses[1]}]")[1]
        return environment.reward().value

    assert 0 < guess("graded") < 1
    assert guess("win") == 0
    assert {play("TicTacToe-v0", number, number, reward="win")[1] for number in range(40)} == {0.0, 1.0}


def test_roles():
    first, second = TextArena("ConnectFour-v0"), TextArena("ConnectFour-v0", player=1)
    assert "[Player 1]" not in first.reset(position(0), 0)
    assert "[Player 0]" in second.reset(position(0), 0)
    players = set()
    for number in range(20):
        environment = TextArena("ConnectFour-v0", player="either")
        environment.reset(position(number), 0)
        players.add(environment.player)
    assert players == {0, 1}


def test_own_moves_and_old_boards_are_not_repeated():
    environment = TextArena("TicTacToe-v0")
    environment.reset(position(0), 0)
    ((message,), _) = environment.step("I think [4] is best")
    assert message["role"] == "user"
    assert "I think" not in message["content"]
    assert message["content"].count("Current Board") == 1
    text = TextArena("TicTacToe-v0", chat=False, shown="<{}>")
    text.reset(position(0), 0)
    observation, _ = text.step("4")  # brackets are added, as textarena does
    assert observation.startswith("<[GAME] Player 0 placed")
    assert observation.endswith(">")


def test_random_moves_make_positions_differ():
    boards = {TextArena("TicTacToe-v0", random_moves=2).reset(position(number), 0) for number in range(12)}
    assert len(boards) > 6
    with pytest.raises(ValueError, match="random_moves"):
        TextArena("TicTacToe-v0", random_moves=9).reset(position(0), 0)


def test_legal_moves_are_those_that_the_game_lists():
    game = Game("TicTacToe-v0", {})
    game.start(0)
    game.play("[4]", 0)
    game.play("[0]", 0)
    assert sorted(game.legal_moves(random.Random(0))) == ["[1]", "[2]", "[3]", "[5]", "[6]", "[7]", "[8]"]


def test_moves_of_other_games_are_given():
    with pytest.raises(ValueError, match="list them in the option moves"):
        TextArena("Chopsticks-v0", player=1).reset(position(0), 0)
    environment = TextArena("Chopsticks-v0", player=1, moves=["nothing"])
    with pytest.raises(ValueError, match="none of the moves"):
        environment.reset(position(0), 0)
    environment = TextArena("Chopsticks-v0", player=1, moves=["[attack 0 0]", "[attack 1 1]"])
    assert "[Player 0]" in environment.reset(position(0), 0)


def test_invalid_move_of_an_opponent_is_an_error():
    environment = TextArena("TicTacToe-v0", opponent=f"{__name__}:invalid_move")
    environment.reset(position(0), 0)
    with pytest.raises(ValueError, match="the opponent's move 'I pass' is invalid"):
        environment.step("[4]")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game": "TicTacTo-v0"}, "did you mean TicTacToe-v0"),
        ({"game": "TwentyQuestions-v0"}, "cannot be created: .*API key"),
        ({"game": "TicTacToe-v0", "player": 2}, "player must be 0, 1 or either"),
        ({"game": "TicTacToe-v0", "reward": "best"}, "reward must be one of graded, win"),
        ({"game": "TicTacToe-v0", "opponent": "nobody"}, "pkg.module:name"),
        ({"game": "TicTacToe-v0", "shown": "?"}, "shown must contain"),
        ({"game": "TicTacToe-v0", "arguments": {"size": 4}}, "unexpected keyword argument 'size'"),
        ({}, "missing 1 required positional argument: 'game'"),
    ],
)
def test_invalid_options_are_named(options, message, monkeypatch):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(ValueError, match=message):
        check_environment("textarena", options)


def test_games_for_more_players_are_refused():
    with pytest.raises(ValueError, match="more than two players"):
        Game("ThreePlayerTicTacToe-v0", {}).start(0)
