"""Prompts that are seeds of environments, and their own options."""

from __future__ import annotations

import pytest

from kray.config import load_config
from kray.config.prompts_schema import SourceConfig
from kray.environments import options_of
from kray.errors import ConfigError, DataError
from kray.launch.preflight import load_checked_prompts
from kray.prompts import load_prompts


def source(**settings) -> SourceConfig:
    return SourceConfig(kind="seeds", **settings)


def test_seeds_are_the_same_each_time_and_differ_by_prompt_split_and_source_seed():
    first = load_prompts(source(size=40), "exact")
    assert load_prompts(source(size=40), "exact") == first
    assert load_prompts(source(size=10), "exact") == first[:10]
    others = [load_prompts(source(size=40, **each), "exact") for each in ({"split": "test"}, {"seed": 1})]
    seeds = [prompt.metadata["seed"] for prompts in (first, *others) for prompt in prompts]
    assert len(set(seeds)) == 120
    assert len({prompt.id for prompts in (first, others[0]) for prompt in prompts}) == 80


def test_labels_alternate_and_carry_options():
    prompts = load_prompts(source(size=5, tasks={"easy": {"shown": "={}"}, "hard": None}), "exact")
    assert [prompt.metadata["kind"] for prompt in prompts] == ["easy", "hard", "easy", "hard", "easy"]
    assert [prompt.text for prompt in prompts[:2]] == ["easy\n", "hard\n"]
    assert options_of({"shown": "{}", "unclear": "?"}, prompts[0]) == {"shown": "={}", "unclear": "?"}
    assert options_of({"shown": "{}"}, prompts[1]) == {"shown": "{}"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size must be at least 1"),
        ({"split": "dev"}, 'split "dev"'),
        ({"tasks": {"easy": 3}}, "tasks.easy: keyword arguments"),
    ],
)
def test_invalid_sources_are_named(settings, message):
    with pytest.raises(DataError, match=message):
        load_prompts(source(**settings), "exact")


def test_options_of_prompts_are_checked_before_a_run():
    override = ["prompts.train.kind=seeds", "prompts.train.tasks={good: {}, bad: {shown: x}}"]
    with pytest.raises(ConfigError, match="shown must contain"):
        load_checked_prompts(load_config("configs/calculator.yaml", override))
