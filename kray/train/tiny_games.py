"""The warm-up of a tiny policy on games of Nim: whole games between two players who move at random.

The policy learns the rules, not to win: it moves at random among the legal moves, from which self-play then begins.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kray.config.schema import TinyPolicyConfig
from kray.environments.nim import Nim, moves, position
from kray.prompts.arithmetic import in_test
from kray.prompts.positions import all_positions

# Label of tokens without a loss, as torch's cross_entropy expects it.
IGNORED = -100


def view_of_game(heaps: tuple[int, ...], rng: random.Random) -> list[tuple[str, bool]]:
    """Play one game and return what one of the players, drawn at random, read and wrote.

    Returns:
        (text, whether the player wrote it) in order.
    """
    game, mine = Nim(), rng.choice(Nim.roles)
    game.heaps = list(heaps)
    view, role, done = [(position(heaps), False)], "first", False
    while not done:
        move = rng.choice(moves(game.heaps))
        if role == mine:
            view.append((move, True))
        role, seen, done = game.step(role, move)
        view += [(text, False) for reader, text in seen.items() if reader == mine]
    return view


def game_batches(tokenizer: PreTrainedTokenizerFast, tiny: TinyPolicyConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (input_ids, labels) of each step, (B, T) int64 each; labels are IGNORED where the policy writes nothing."""
    rng, starts = random.Random(tiny.seed), _starts(tiny.nim)
    for _ in range(tiny.warmup_steps):
        rows = [_tokens(view_of_game(rng.choice(starts), rng), tokenizer) for _ in range(tiny.batch_size)]
        longest = max(len(tokens) for tokens, _ in rows)
        input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        labels = torch.full((len(rows), longest), IGNORED)
        for b, (tokens, targets) in enumerate(rows):
            input_ids[b, : len(tokens)] = torch.tensor(tokens)
            labels[b, : len(tokens)] = torch.tensor(targets)
        yield input_ids, labels


def _starts(nim: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Return the training positions of all labels."""
    found = (heaps for label, options in nim.items() for heaps in all_positions(label, options))
    return [heaps for heaps in found if not in_test(position(heaps))]


def _tokens(view: list[tuple[str, bool]], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    labels: list[int] = []
    for text, written in view:
        part = [*tokenizer(text)["input_ids"], *([tokenizer.eos_token_id] if written else [])]
        tokens += part
        labels += part if written else [IGNORED] * len(part)
    return tokens, labels
