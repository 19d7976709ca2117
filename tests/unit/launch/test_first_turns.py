"""`--check` begins some episodes, so that what an environment adds to a prompt is shown and counted."""

from __future__ import annotations

import re
import sys
import time

import pytest
from inline_jobs import run_job

from kray.config import load_config
from kray.errors import ConfigError
from kray.launch.check import inspect
from kray.launch.first_turns import BEGUN

CALCULATOR = "configs/calculator.yaml"


def test_what_is_read_before_the_first_turn_is_shown():
    pytest.importorskip("textarena")
    done = run_job("train", "--config", "configs/tictactoe.yaml", "--check")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"start:train:0, \d+ tokens with what first reads before the first turn\n  \| start\n", done.stdout
    )
    assert "You are Player 0 in Tic Tac Toe" in done.stdout


def opening(monkeypatch, tmp_path, body: str):
    (tmp_path / "opening_env.py").write_text(
        f"class Opening:\n"
        f"    def __init__(self, **options):\n        pass\n"
        f"    def reset(self, prompt, seed):\n        {body}\n"
        f"    def step(self, action):\n        return '', True\n"
        f"    def reward(self):\n        return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "opening_env", raising=False)
    return load_config(CALCULATOR, ["environment.name=opening_env:Opening"])


def test_a_prompt_too_long_with_what_is_read_first_is_refused(monkeypatch, tmp_path):
    # Not the first prompt, but the last of those that are begun.
    body = f"return '1' * 500 if prompt.id.endswith('/{BEGUN - 1}') else ''"
    config = opening(monkeypatch, tmp_path, body)
    with pytest.raises(ConfigError, match=rf"prompts\.max_tokens is \d+, but prompt \S+/{BEGUN - 1} has 5\d\d tokens"):
        inspect(config)


def test_an_environment_that_does_not_begin_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"environment: no episode of prompt \S+ begins: KeyError: 'board'"):
        inspect(opening(monkeypatch, tmp_path, "raise KeyError('board')"))


def test_an_environment_without_an_opening_shows_none(monkeypatch, tmp_path):
    seen = inspect(opening(monkeypatch, tmp_path, "return ''"))
    assert not [line for line in seen.samples if "first turn" in line]


def test_an_environment_that_hangs_is_refused_in_time(monkeypatch, tmp_path):
    config = opening(monkeypatch, tmp_path, "__import__('time').sleep(600)")
    config.environment.step_timeout_s = 1.5
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        inspect(config)
    assert time.monotonic() - began < 30
    assert "no episode of prompt" in str(caught.value)
    assert "opening_env:Opening did not answer to its creation and reset within 1.5 s" in str(caught.value)
    assert "environment.step_timeout_s" in str(caught.value)


def test_an_environment_that_ends_its_process_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"environment: no episode of prompt \S+ begins: .*died twice"):
        inspect(opening(monkeypatch, tmp_path, "__import__('os')._exit(3)"))
