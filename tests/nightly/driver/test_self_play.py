"""Self-play that is resumed ends as self-play that was not interrupted, bit for bit."""

from __future__ import annotations

from tiny_runs import same_weights

from kray.config.players import Player
from kray.driver.past_policies import read
from kray.faults.compared import metrics
from kray.train.checkpoints import checkpoint_at_step, newest_checkpoint, read_state

PAST = Player("past", every=1)


def test_resumed_self_play_equals_uninterrupted_self_play(run_nim, tmp_path):
    """Also the older version that it is evaluated against, which is not the policy of the checkpoint."""
    settings = (
        "environment.evaluate_against={past: {opponent: past, every: 1}, start: {opponent: start}}",
        "evaluate.every=2",
    )
    run_nim("straight", *settings, "run.steps=3")
    run_nim("broken", *settings)
    run_nim("broken", *settings, "run.steps=3", checkpoint=newest_checkpoint(tmp_path / "broken"))
    straight, broken = (metrics(tmp_path / name) for name in ("straight", "broken"))
    assert [line["step"] for line in straight] == [0, 1, 2, 3]
    assert straight == broken
    one, other = (newest_checkpoint(tmp_path / name) for name in ("straight", "broken"))
    assert same_weights(one, other)
    for name in ("planner", "roles", "lengths", "calibration"):
        assert read_state(one)[name] == read_state(other)[name]
    held = [read(checkpoint, PAST) for checkpoint in (one, other)]
    assert [each.step for each in held] == [2, 2]
    assert held[0].published.checksum == held[1].published.checksum

    # an engine that gets the older version from the checkpoint plays as the one did that got it from the learner
    judged = run_nim("judged", *settings, checkpoint=checkpoint_at_step(tmp_path / "straight", 2), method="judge")
    (then,) = [line for line in straight if line["step"] == 2]
    found = {match.opponent: match.win_rate for match in judged.matches}
    assert {"past", "start"} <= found.keys()
    assert found == {opponent: then[f"eval/win_rate_{opponent}"] for opponent in found}
