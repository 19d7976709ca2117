"""Games of GEM."""

from __future__ import annotations

import pickle
import random

import pytest

from kray.environments import check_environment
from kray.records import Prompt

pytest.importorskip("gem.envs", reason="`make test-all` installs gem-llm")

from kray.environments.gem import Gem


def position(number: int) -> Prompt:
    return Prompt(f"start:{number}", "", "exact", "seeds", text="start\n", metadata={"seed": 1000 + number})


GAMES = ("GuessTheNumber-v0-easy", "Mastermind-v0-easy", "Minesweeper-v0-easy", "Game2048-v0-easy", "Sokoban-v0-easy")


@pytest.mark.parametrize("name", GAMES)
def test_same_seed_gives_the_same_game(name):
    def play():
        environment = Gem(f"game:{name}")
        seen = [environment.reset(position(4), 3)]
        moves = random.Random(5)
        for _ in range(60):
            environment = pickle.loads(pickle.dumps(environment))
            random.seed(moves.random())
            observation, done = environment.step(environment.env.sample_random_action())
            seen.append(observation)
            if done:
                return seen, environment.reward().value
        raise AssertionError("the game did not end")

    first = play()
    assert play() == first
    assert 0 <= first[1] <= 1


def test_win_loss_and_invalid_moves():
    environment = Gem("game:GuessTheNumber-v0-easy")
    rules = environment.reset(position(0), 0)
    assert "between 1 and 10" in rules
    assert rules.endswith("Enter your next guess.")
    number = environment.env.game_number
    won, lost, invalid, unfinished = (pickle.loads(pickle.dumps(environment)) for _ in range(4))
    assert won.step(rf"\boxed{{{number}}}")[1]
    assert won.reward().value == 1
    assert invalid.step("seven")[1]
    assert invalid.reward().value == 0
    ((message,), done) = unfinished.step(rf"\boxed{{{number % 10 + 1}}}")
    assert not done
    assert "the target number is" in message["content"]
    assert unfinished.reward().value == 0
    wrong = [guess for guess in range(1, 11) if guess != number][:4]
    ends = [lost.step(rf"\boxed{{{guess}}}")[1] for guess in wrong]
    assert ends == [False, False, False, True]
    assert 0 < lost.reward().value < 1


def test_positions_differ_by_seed():
    numbers = set()
    for number in range(20):
        environment = Gem("game:GuessTheNumber-v0-easy", chat=False)
        environment.reset(position(number), 0)
        numbers.add(environment.env.game_number)
    assert len(numbers) > 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "math:GSM8K"}, "neither a game"),
        ({"env": "game:Go"}, "not among those of gem"),
        ({"env": "game:GuessTheNumber-v0-easy", "shown": ""}, "shown must contain"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        check_environment("gem", options)
