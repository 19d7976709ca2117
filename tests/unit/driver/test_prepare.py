"""Prompts as the job hands them to the driver."""

from __future__ import annotations

import pickle

from kray.config import KrayConfig, SourceConfig
from kray.driver.prepare import LoadedPrompts, LoadedSource, load_prompts
from kray.records import Prompt


def test_loaded_prompts_survive_pickling():
    messages = ({"role": "user", "content": "2 + 2?"},)
    prompts = [
        Prompt("a", "4", "math", "p", text="1 + 3?"),
        Prompt("b", "4", "math", "p", None, messages, {"kind": "+"}),
    ]
    loaded = LoadedPrompts([LoadedSource("train", "prompts.train", SourceConfig(kind="jsonl"), prompts)], [])
    assert pickle.loads(pickle.dumps(loaded)) == loaded


def test_both_parts_are_loaded_and_test_sets_keep_their_keys():
    config = KrayConfig()
    config.prompts.train = config.prompts.test = SourceConfig(kind="arithmetic", size=16)
    config.prompts.more_tests = {"hard": {"size": 8}}
    loaded = load_prompts(config)
    assert [len(loaded.of(part)) for part in ("train", "test")] == [16, 24]
    assert [source.key for source in loaded.test] == ["prompts.test", "prompts.more_tests.hard"]
