"""The lines with which a training opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from kray.config import KrayConfig, load_config
from kray.driver.prepare import LoadedPrompts, load_prompts
from kray.launch.opening import opening


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> tuple[KrayConfig, LoadedPrompts]:
    """configs/tiny.yaml with an empty cache of tiny policies."""
    monkeypatch.setenv("KRAY_CACHE", str(tmp_path))
    config = load_config("configs/tiny.yaml", [])
    return config, load_prompts(config)


def test_a_new_run_names_prompts_steps_and_duration(tiny):
    what, how_long, where = opening(*tiny, None, 0)
    assert "1,024 prompts (arithmetic): 40 steps of up to 512 prompts and 512 rollouts" in what
    assert "made first, once: about 2 min" in how_long
    assert "before training, every 10 steps and after training; about 3 min in all" in how_long
    assert "a new folder in ~/kray-runs; Ctrl-C saves" in where


def test_a_resumed_run_names_its_step_and_folder(tiny):
    what, how_long, where = opening(*tiny, Path("/runs/a"), 30)
    assert what.startswith("going on after step 30 of 40")
    assert "held-out prompts after training;" in how_long
    assert "in /runs/a;" in where


def test_no_duration_is_named_for_a_model_of_unknown_speed(tiny):
    config, prompts = tiny
    config.model.tiny, config.model.path = None, "org/model"
    what, how_long, _ = opening(config, prompts, None, 0)
    assert "training org/model on" in what
    assert how_long.endswith("the time left is printed with every step")
