"""Self-play with real engines, learner and driver: a tiny policy that has seen a few games of Nim, interrupted and not."""

from __future__ import annotations

import json
import math

import pytest
from tiny_runs import same_weights

from kray.config.players import Player
from kray.driver.past_policies import read
from kray.faults.compared import metrics
from kray.metrics import documented
from kray.planner import Beliefs
from kray.train.checkpoints import checkpoint_at_step, newest_checkpoint, read_state

PAST = Player("past", every=1)
OPPONENTS = "{random: {opponent: random}, past: {opponent: past, every: 1}, start: {opponent: start}}"
SETTINGS = (f"environment.evaluate_against={OPPONENTS}", "evaluate.every=2")


def test_self_play_learns_from_both_roles_and_resumes_exactly(run_nim, tmp_path):
    """Also the older version that it is evaluated against, which is not the policy of the checkpoint."""
    run_nim("straight", *SETTINGS, "run.steps=3")
    summary = run_nim("broken", *SETTINGS)
    assert (summary.steps, summary.rollouts) == (2, 2 * 24)
    run_nim("broken", *SETTINGS, "run.steps=3", checkpoint=newest_checkpoint(tmp_path / "broken"))
    straight, broken = (metrics(tmp_path / name) for name in ("straight", "broken"))
    assert [line["step"] for line in straight] == [0, 1, 2, 3]
    assert straight == broken
    check_training(broken)
    check_evaluations(broken)
    check_saved(tmp_path / "broken")
    one, other = (newest_checkpoint(tmp_path / name) for name in ("straight", "broken"))
    assert same_weights(one, other)
    for name in ("planner", "roles", "lengths", "calibration"):
        assert read_state(one)[name] == read_state(other)[name]
    held = [read(checkpoint, PAST) for checkpoint in (one, other)]
    assert [each.step for each in held] == [2, 2]
    assert held[0].published.checksum == held[1].published.checksum

    # an engine that gets the older version from the checkpoint plays as the one did that got it from the learner
    judged = run_nim("judged", *SETTINGS, checkpoint=checkpoint_at_step(tmp_path / "straight", 2), method="judge")
    (then,) = [line for line in straight if line["step"] == 2]
    found = {match.opponent: match.win_rate for match in judged.matches}
    assert {"past", "start"} <= found.keys()
    assert found == {opponent: then[f"eval/win_rate_{opponent}"] for opponent in found}


def check_training(lines):
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


def check_evaluations(lines):
    judged = [line for line in lines if "eval/accuracy" in line]
    assert [line["step"] for line in judged] == [0, 2, 3]
    for line in judged:
        assert line["eval/accuracy"] == line["eval/win_rate_random"]
        for opponent in ("random", "past"):
            sides = [line[f"eval/win_rate_{opponent}_{role}"] for role in ("first", "second")]
            assert line[f"eval/win_rate_{opponent}"] == pytest.approx(sum(sides) / 2)
            assert math.isfinite(line[f"eval/elo_{opponent}"])


def check_saved(folder):
    for step in (1, 2, 3):
        checkpoint = checkpoint_at_step(folder, step)
        # the older version that it was played against after each step
        assert read(checkpoint, PAST).step == step - 1
        # the beliefs about the second role go on from the checkpoint
        state = read_state(checkpoint)
        beliefs = Beliefs.from_dict(state["roles"]["second"]["beliefs"])
        assert beliefs.to_dict()["visits"] == Beliefs.from_dict(state["planner"]["beliefs"]).to_dict()["visits"]
        assert state["roles"]["second"]["visits"] == step
    table = json.loads((folder / "samples/step-000002.json").read_text())
    assert {row[table["columns"].index("role")] for row in table["data"]} == {"first", "second"}
