"""Self-play with real engines, learner and driver: a tiny policy that has seen a few games of Nim."""

from __future__ import annotations

import json
import math

import pytest

from kray.config.players import Player
from kray.driver.past_policies import read
from kray.faults.compared import metrics
from kray.metrics import documented
from kray.planner import Beliefs
from kray.train.checkpoints import newest_checkpoint, read_state


def test_self_play_learns_from_both_roles_and_resumes(run_nim, tmp_path):
    folder = tmp_path / "run"
    summary = run_nim("run")
    assert (summary.steps, summary.rollouts) == (2, 2 * 24)
    before = read_state(newest_checkpoint(folder))
    run_nim("run", "run.steps=3", checkpoint=newest_checkpoint(folder))
    lines = metrics(folder)
    assert {name for line in lines for name in line if name != "step" and not documented(name)} == set()
    steps = [line for line in lines if "reward/mean" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["reward/mean"] == line["reward/mean_first"]
        assert line["reward/mean_first"] + line["reward/mean_second"] == pytest.approx(1)
        assert line["environment/failed"] == 0
        # the learner computes what the engine sampled, also after tokens that were read before the first turn
        assert line["train/logprob_gap_max"] < 1e-3
        # a role that never spoke, because the first move was illegal, has no row
        assert 24 < line["train/rows"] <= 48
        assert line["train/prompts"] <= 16

    # the beliefs about the second role go on from the checkpoint
    after = read_state(newest_checkpoint(folder))
    for state, number in ((before, 2), (after, 3)):
        beliefs = Beliefs.from_dict(state["roles"]["second"]["beliefs"])
        assert beliefs.to_dict()["visits"] == Beliefs.from_dict(state["planner"]["beliefs"]).to_dict()["visits"]
        assert state["roles"]["second"]["visits"] == number

    judged = [line for line in lines if "eval/accuracy" in line]
    assert [line["step"] for line in judged] == [0, 2, 3]
    for line in judged:
        assert line["eval/accuracy"] == line["eval/win_rate_random"]
        for opponent in ("random", "past"):
            sides = [line[f"eval/win_rate_{opponent}_{role}"] for role in ("first", "second")]
            assert line[f"eval/win_rate_{opponent}"] == pytest.approx(sum(sides) / 2)
            assert math.isfinite(line[f"eval/elo_{opponent}"])
    # the older version that it was played against after each step
    for step in (1, 2, 3):
        assert read(folder / f"checkpoints/step-{step:06d}", Player("past", every=1)).step == step - 1
    table = json.loads((folder / "samples/step-000002.json").read_text())
    assert {row[table["columns"].index("role")] for row in table["data"]} == {"first", "second"}
