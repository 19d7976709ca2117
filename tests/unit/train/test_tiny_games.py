"""The warm-up on games: legal play from one side's view, with a loss on its own moves only."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.config import TinyPolicyConfig
from kray.environments.nim import HEAPS, after, moves, position, read_position
from kray.errors import ConfigError
from kray.train.tiny_files import check_tiny, digest, folder_of, tokenizer_of
from kray.train.tiny_games import IGNORED, game_batches, view_of_game

NIM = {"three": {"heaps": 3, "largest": 4}}
HEAPS_OF_A_GAME = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(HEAPS_OF_A_GAME, st.integers(0, 10**6))
def test_views_are_legal_games(heaps, seed):
    view = view_of_game(heaps, random.Random(seed))
    assert view[0] == (position(heaps), False)
    for (before, _), (text, written) in itertools.pairwise(view):
        if written:
            assert text in moves(read_position(before)), "a move follows the position in which it is made"
        else:
            assert read_position(text)
    written = [text for text, mine in view if mine]
    # a game that the other side ends with its first move has none of mine
    seen = [read_position(text) for text, mine in view if not mine][-len(written) or len(view) :]
    # the other side's move lies between mine and the next position
    for left, move, right in zip(seen, written, seen[1:], strict=False):
        here = after(left, move)
        assert any(after(here, reply) == right for reply in moves(here))


def test_only_moves_are_learned():
    tiny = TinyPolicyConfig(nim=NIM, warmup_steps=2, batch_size=8)
    tokenizer = tokenizer_of(tiny, [])
    batches = list(game_batches(tokenizer, tiny))
    assert len(batches) == 2
    for input_ids, labels in batches:
        learned = labels != IGNORED
        assert (labels[learned] == input_ids[learned]).all()
        for row, which in zip(input_ids.tolist(), learned.tolist(), strict=True):
            text = tokenizer.decode([token for token, on in zip(row, which, strict=True) if on])
            assert all(turn[0] in HEAPS and turn[1:].isdigit() for turn in text.split("<eos>") if turn)
            assert text.endswith("<eos>") or not text
    again = list(game_batches(tokenizer, tiny))
    assert all((a == b).all() for one, two in zip(batches, again, strict=True) for a, b in zip(one, two, strict=True))


def test_games_make_another_policy_and_leave_older_ones_alone(tmp_path):
    plain = TinyPolicyConfig()
    assert digest(plain) == digest(TinyPolicyConfig(nim={}))
    assert len({digest(plain), digest(TinyPolicyConfig(nim=NIM)), digest(TinyPolicyConfig(nim={"a": {}}))}) == 3
    assert folder_of(plain, tmp_path).name == digest(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nim": {"a": {"heaps": 0}}}, r"model\.tiny\.nim: tasks\.a\.heaps must be"),
        ({"nim": NIM, "tool_share": 0.5}, "practises one thing"),
        ({"nim": NIM, "kinds": ["add1"]}, "practises one thing|is not one of"),
    ],
)
def test_settings_of_games_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_tiny(TinyPolicyConfig(**settings))
