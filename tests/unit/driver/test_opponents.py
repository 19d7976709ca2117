"""Opponents that are older versions of the policy: when they are refreshed, and what a checkpoint holds of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from coin_flip_training import CoinFlipOpponents, Ready, begin, configured, train
from logged_lines import logged_lines

from kray.config.players import Player
from kray.driver.past_policies import HeldPolicy, read, write
from kray.errors import KrayError, StorageError
from kray.rollout.pool_state import Published
from kray.train.checkpoints import find_damage, newest_checkpoint
from kray.weight_sync.flat_weights import FlatWeights

PAST = Player("past", every=3)


@pytest.fixture(autouse=True)
def put(monkeypatch):
    monkeypatch.setattr("ray.put", Ready)


def held(value=1.5, step=6):
    weights = FlatWeights.pack([("b", torch.tensor([value])), ("a", torch.ones(2, 3, dtype=torch.bfloat16))])
    logprobs = np.array([-0.25, -1.0], dtype=np.float32)
    return HeldPolicy(step, Published(4, Ready(weights), weights.checksum, (7, 8, 9), logprobs))


def begun(folder, *overrides, past):
    folder.mkdir(exist_ok=True)
    return begin(folder, configured(folder, "run.checkpoint_every=1", "run.keep_checkpoints=20", *overrides), past=past)


@pytest.mark.parametrize("start", [None, np.array([-1.5, -2.0], dtype=np.float32)])
def test_calibration_of_an_older_version_is_read_back(tmp_path, start):
    policy = held()
    policy = replace(policy, published=replace(policy.published, start=start))
    asyncio.run(write(tmp_path, {PAST: policy}, 10.0))
    found = read(tmp_path, PAST).published.start
    assert (found is None) if start is None else np.array_equal(found, start)
    # a checkpoint of an earlier version
    file = tmp_path / f"{PAST}.pt"
    content = torch.load(file, weights_only=True)
    del content["start"]
    torch.save(content, file)
    assert read(tmp_path, PAST).published.start is None


@pytest.mark.parametrize("staleness", [0, 2])
def test_older_version_is_the_policy_after_the_newest_earlier_multiple(tmp_path, staleness):
    steps, past = 9, (1, 2, 4, 20)
    training = begun(tmp_path, f"run.steps={steps}", f"async.max_staleness={staleness}", "train.tis=2", past=past)
    weights = [training.workers.learners.weight]
    training.workers.learners.after_update = lambda step: weights.append(training.workers.learners.weight)
    assert train(training) is None
    assert len(set(weights)) == steps + 1
    for every in past:
        expected = [every * ((step - 1) // every) if step else 0 for step in range(steps + 1)]
        player = Player("past", every=every)
        # each version was given to the engine once
        assert training.workers.opponents.given[str(player)] == [weights[step] for step in sorted(set(expected))]
        for step in range(1, steps + 1):
            found = read(tmp_path / f"checkpoints/step-{step:06d}", player)
            assert found.step == expected[step]
            assert found.published.weights.tensors()[0][1].item() == weights[expected[step]]


@pytest.mark.parametrize("ended", [1, 4, 5, 6, 7])
def test_resumed_run_plays_against_the_same_older_versions(tmp_path, ended):
    straight = begun(tmp_path / "straight", "run.steps=9", past=(3,))
    assert train(straight) is None
    first = begun(tmp_path / "broken", f"run.steps={ended}", past=(3,))
    assert train(first) is None
    second = begun(tmp_path / "broken", "run.steps=9", past=(3,))
    assert second.workers.opponents.held[PAST].step == 3 * ((ended - 1) // 3)
    assert train(second) is None
    before, after = (each.workers.opponents.given["past-3"] for each in (first, second))
    # what it had at the checkpoint is given again to the new engine
    assert before[-1] == after[0]
    assert before + after[1:] == straight.workers.opponents.given["past-3"]


def test_checkpoint_without_the_opponent_begins_it_as_the_policy_there(tmp_path):
    assert train(begun(tmp_path, "run.steps=5", past=())) is None
    with logged_lines() as lines:
        training = begun(tmp_path, "run.steps=7", past=(3,))
    assert training.workers.opponents.held[PAST].step == 5
    assert training.workers.opponents.given["past-3"] == [training.workers.learners.weight]
    assert any("step-000005 holds no opponent past-3, which begins as the policy there" in line for line in lines)
    assert train(training) is None
    assert read(newest_checkpoint(tmp_path), PAST).step == 6


def test_policy_of_an_opponent_is_read_as_it_was_written(tmp_path):
    policy = held()
    asyncio.run(write(tmp_path, {PAST: policy}, 10.0))
    found = read(tmp_path, PAST)
    assert (found.step, found.published.checksum, found.published.probe) == (6, policy.published.checksum, (7, 8, 9))
    assert found.published.logprobs.tolist() == [-0.25, -1.0]
    ours, theirs = found.published.weights.tensors(), policy.published.weights.value.tensors()
    assert [name for name, _ in ours] == [name for name, _ in theirs] == ["b", "a"]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(ours, theirs, strict=True))
    assert read(tmp_path, Player("past", every=4)) is None


def test_damaged_policy_of_an_opponent_is_refused(tmp_path):
    asyncio.run(write(tmp_path, {PAST: held()}, 10.0))
    file = tmp_path / "past-3.pt"
    content = torch.load(file, weights_only=True)
    content["weights"][0][1].add_(1)
    torch.save(content, file)
    with pytest.raises(StorageError, match=r"past-3\.pt: its weights are not those that were written"):
        read(tmp_path, PAST)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StorageError, match=r"past-3\.pt cannot be read: "):
        read(tmp_path, PAST)


def test_checkpoint_covers_the_policies_of_opponents(tmp_path):
    assert train(begun(tmp_path, "run.steps=2", past=(3,))) is None
    checkpoint = newest_checkpoint(tmp_path)
    assert find_damage(checkpoint) == ""
    (checkpoint / "past-3.pt").write_bytes(b"")
    assert "first past-3.pt" in find_damage(checkpoint)


def test_weights_that_do_not_arrive_fail_the_checkpoint_only(tmp_path):
    class Never:
        def __await__(self):
            return asyncio.sleep(60).__await__()

    policy = HeldPolicy(0, Published(0, Never(), "", (1,), np.zeros(0, np.float32)))
    with pytest.raises(StorageError, match="opponent past-3: its weights cannot be had: TimeoutError"):
        asyncio.run(write(tmp_path, {PAST: policy}, 0.01))


def test_errors_name_the_opponent(monkeypatch):
    opponents = CoinFlipOpponents((3,))

    async def publish(_):
        raise KrayError("pool: 0 of 1 engines serve (1 starting) after 120 s (rollout.start_timeout_s)")

    monkeypatch.setattr(opponents._frozen[PAST].pool, "publish", publish)
    with pytest.raises(KrayError, match="opponent past-3: pool: 0 of 1 engines serve"):
        asyncio.run(opponents.hold(PAST, held()))
