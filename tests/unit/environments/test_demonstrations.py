"""Games of random legal moves, which tiny policies imitate."""

from __future__ import annotations

import pytest

from kray.config import TinyPolicyConfig
from kray.environments.demonstrations import common_lines, play_games
from kray.errors import ConfigError
from kray.train.tiny_files import check_tiny, digest, games_of, tokenizer_of
from kray.train.tiny_policy import IGNORED, _batches, _games

GUESS = {"guess": {"game": "GuessTheNumber-v0", "arguments": {"max_number": 20, "max_turns": 5}}}
BOTH = {**GUESS, "cross": {"game": "TicTacToe-v0", "player": "either"}}


def test_same_seed_gives_the_same_games():
    assert play_games(BOTH, 12, 3) == play_games(BOTH, 12, 3)
    assert play_games(BOTH, 6, 3) == play_games(BOTH, 12, 3)[:6]
    assert play_games(BOTH, 12, 4) != play_games(BOTH, 12, 3)


def test_moves_and_observations_alternate():
    for game in play_games(BOTH, 40, 0):
        assert [part.sampled for part in game] == [number % 2 == 1 for number in range(len(game))]
        assert all(part.ends_turn == part.sampled for part in game)
        assert not any("invalid" in part.text for part in game)
        assert game[-1].sampled


def test_rules_are_a_few_tokens():
    games = play_games(BOTH, 200, 0)
    lines = common_lines(games)
    assert "[GAME] The target number is higher." in lines
    tokenizer = tokenizer_of(TinyPolicyConfig(games=BOTH), [], games)
    rules = games[0][0].text
    tokens = tokenizer(rules)["input_ids"]
    assert len(tokens) < 20 < len(rules) / 10
    assert tokenizer.decode(tokens) == rules


def test_policy_learns_to_write_moves_only():
    tiny = TinyPolicyConfig(games=GUESS, batch_size=8, warmup_steps=3)
    games = games_of(tiny, 20)
    tokenizer = tokenizer_of(tiny, [], games)
    for input_ids, labels in _batches(tokenizer, tiny, _games(games, 0)):
        for row, target in zip(input_ids.tolist(), labels.tolist(), strict=True):
            learned = tokenizer.decode([token for token, label in zip(row, target, strict=True) if label != IGNORED])
            moves = learned.split("<eos>")[:-1]
            assert moves
            assert all(1 <= int(move[1:-1]) <= 20 for move in moves)
        assert (labels[labels != IGNORED] == input_ids[labels != IGNORED]).all()


def test_invalid_settings_are_named():
    with pytest.raises(ConfigError, match=r'model\.tiny\.games: game "Chess960" is not among'):
        games_of(TinyPolicyConfig(games={"x": {"game": "Chess960"}}), 1)
    with pytest.raises(ConfigError, match=r"model\.tiny\.games: unset tasks"):
        check_tiny(TinyPolicyConfig(games=GUESS, tool_share=0.5))


def test_games_have_folders_of_their_own():
    assert len({digest(TinyPolicyConfig(games=games)) for games in ({}, GUESS, BOTH)}) == 3
