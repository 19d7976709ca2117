"""Exact success rates from log-probabilities."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from kray.compare.exact import ExactRates
from kray.errors import ConfigError
from kray.records import Prompt

STOPS = (7, 8)


class Characters:
    """A tokenizer of digits; "00" is one token of its own."""

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [9] if text == "00" else [int(character) for character in text]}


class Policy:
    """Digits have probability .1, stop 7 has .2 and stop 8 has .3, whatever came before, at temperature 1."""

    def __init__(self):
        self.calls = []

    async def logprobs(self, rows, temperature):
        self.calls.append(len(rows))
        chance = {7: 0.2, 8: 0.3}
        return [np.log([chance.get(token, 0.1) for token in response]).astype(np.float32) for _, response in rows]


def prompts(*answers):
    return [(Prompt(str(i), answer, "exact", "test", text="x"), (1, 2)) for i, answer in enumerate(answers)]


def rates(policy, *answers, max_tokens=3):
    return asyncio.run(ExactRates(policy, Characters(), STOPS, max_tokens).of(prompts(*answers), 1.0))


def test_exact_rate_counts_every_way_to_end():
    found = rates(Policy(), "1", "12", "123", "1234")
    assert found == pytest.approx([0.1 * 0.5, 0.01 * 0.5, 0.001, 0.0], rel=1e-5)


def test_many_prompts_are_asked_in_parts():
    policy = Policy()
    assert rates(policy, *["1"] * 700) == pytest.approx(np.full(700, 0.05), rel=1e-5)
    assert policy.calls == [512, 512, 376]


def test_an_answer_of_several_spellings_is_refused():
    with pytest.raises(ConfigError, match="needs a tokenizer of characters"):
        rates(Policy(), "00")
