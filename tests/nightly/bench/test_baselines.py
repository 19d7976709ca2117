"""Speeds, as ratios, and the digits of 20 steps of configs/tiny.yaml against the committed tests/baselines."""

from __future__ import annotations

import json

import pytest
from baseline_figures import BENCHES, FOLDER, beyond, measure, tiny_steps, torch_build


@pytest.mark.parametrize("name", BENCHES)
def test_ratios_stay_near_their_baseline(name):
    baseline = json.loads((FOLDER / f"{name}.json").read_text())["ratios"]
    figures = measure(name)
    assert figures.keys() == baseline.keys()
    problems = {key: beyond(figure, baseline[key]["value"]) for key, figure in figures.items()}
    assert {key: problem for key, problem in problems.items() if problem} == {}


def test_tiny_losses_and_rewards_stay(tmp_path):
    """Digit by digit on the same build of torch and the same processor.

    On another one the policy, which is warmed up first, comes out as another policy: its mean reward is compared.
    """
    baseline = json.loads((FOLDER / "tiny.json").read_text())
    steps = tiny_steps(tmp_path)
    if baseline["build"] == torch_build():
        assert steps == baseline["steps"]
    else:
        mean, expected = (sum(step["reward/mean"] for step in run) / len(run) for run in (steps, baseline["steps"]))
        assert len(steps) == len(baseline["steps"])
        assert mean == pytest.approx(expected, abs=baseline["tolerance"])
