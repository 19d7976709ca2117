"""What must not change an update, and what each option changes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from state_digest import state_digest

from kray.config.advice import first_cut
from kray.config.schema import LoraConfig
from kray.train.packing import collate, split_ranks
from kray.train.training_rows import TrainingRows, step_rows


def differences(a, b) -> float:
    return max(float((x - y).abs().max()) for (_, x), (_, y) in zip(a, b, strict=True))


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
@pytest.mark.parametrize("tied", [True, False])
def test_padding_splits_and_order_do_not_change_an_update(
    models, make, train, some_groups, some_conversations, ragged, loss, tied
):
    """Packed in one micro-batch = padded = rows one by one = prompts in any order; two optimizer steps, TIS and KL.

    Of single responses (tied) and of conversations (untied).
    """
    train = replace(train, loss=loss, constant_tokens=12, tis=1.5, kl=0.05, microbatch_tokens=10**6)
    groups = (some_groups if tied else some_conversations)(0, ragged)

    def learned(groups, **changes):
        setting = replace(train, **changes)
        learner = make(models[tied], setting)
        assert learner.layout.packed is setting.packing
        metrics = [learner.update(step_rows(groups, setting)) for _ in range(2)]
        return learner.state(), metrics

    state, metrics = learned(groups)
    assert metrics[0]["train/padding_ratio"] == 0
    order = np.random.default_rng(1).permutation(len(groups))
    for what, other, changes in [
        ("padded to packed", groups, {"packing": False}),
        ("row by row to one micro-batch", groups, {"microbatch_tokens": 1}),
        ("several micro-batches to one", groups, {"microbatch_tokens": 40}),
        ("padded micro-batches to one packed", groups, {"packing": False, "microbatch_tokens": 30}),
        ("prompts permuted", [groups[i] for i in order], {}),
        ("activations computed again", groups, {"activation_checkpointing": True}),
    ]:
        got, others = learned(other, **changes)
        difference = differences(got, state)
        print(f"\nlargest difference of a weight, {what}: {difference:.1e} ({loss})")
        assert difference < 2e-6, what
        for name in ("loss", "grad_norm", "entropy", "kl", "reference_kl", "tis_ratio", "clip_ratio", "tokens"):
            assert others[1][f"train/{name}"] == pytest.approx(metrics[1][f"train/{name}"], rel=1e-4, abs=1e-6), name


def turns_of(rows: TrainingRows) -> TrainingRows:
    """Each turn of the rows as a row of its own, with all that came before it as its prompt."""
    parts = []
    ends, starts = np.cumsum(rows.lengths), np.cumsum(rows.response_lengths) - rows.response_lengths
    for r in range(len(rows)):
        sampled = rows.sampled[starts[r] :][: rows.response_lengths[r]]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], sampled, [False]]).astype(int)))
        tokens = rows.tokens[ends[r] - rows.lengths[r] : ends[r]]
        for first, last in edges.reshape(-1, 2):
            prompt = int(rows.prompt_lengths[r]) + int(first)
            parts.append((r, tokens[: prompt + last - first], prompt, last - first, starts[r] + first))
    of = np.array([part[0] for part in parts])
    return replace(
        rows,
        tokens=np.concatenate([part[1] for part in parts]),
        prompt_lengths=np.array([part[2] for part in parts]),
        response_lengths=np.array([part[3] for part in parts]),
        logprobs=np.concatenate([rows.logprobs[at : at + n] for _, _, _, n, at in parts]),
        sampled=np.ones(sum(part[3] for part in parts), bool),
        advantages=rows.advantages[of],
        weights=rows.weights[of],
        group=np.arange(len(parts)),
        update=rows.update[of],
    )


def test_a_conversation_is_learned_from_as_its_turns_would_be(models, make, train, some_conversations, ragged):
    """What an environment wrote is read, and adds nothing to the gradient, the loss or any other sum over tokens."""
    train = replace(train, tis=1.5, kl=0.05)
    rows = step_rows(some_conversations(0, ragged), train)
    turns = turns_of(rows)
    assert len(turns) > len(rows)
    assert len(turns.sampled) == rows.sampled.sum() < len(rows.sampled)
    found = []
    for each in (rows, turns):
        learner = make(models[True], train)
        metrics = [learner.update(each) for _ in range(2)][1]
        found.append((learner.state(), metrics))
    assert differences(found[0][0], found[1][0]) < 2e-6
    for name in ("loss", "grad_norm", "entropy", "kl", "reference_kl", "tis_ratio", "tokens", "logprob_gap_mean"):
        assert found[0][1][f"train/{name}"] == pytest.approx(found[1][1][f"train/{name}"], rel=1e-4, abs=1e-6), name
    # nor does it matter what stands there in place of an engine's log-probability
    learner = make(models[True], train)
    for _ in range(2):
        learner.update(replace(rows, logprobs=np.where(rows.sampled, rows.logprobs, -7.0).astype(np.float32)))
    assert state_digest(learner.state()) == state_digest(found[0][0])


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "prompt_mean", "constant"])
def test_no_length_counts_what_an_environment_wrote(train, some_groups, some_conversations, ragged, aggregation):
    """The same turns with and without answers between them weigh the same."""
    train = replace(train, aggregation=aggregation, constant_tokens=12)
    plain, talked = (step_rows(some(0, ragged), train) for some in (some_groups, some_conversations))
    np.testing.assert_array_equal(talked.weights, plain.weights)
    np.testing.assert_array_equal(talked.logprobs[talked.sampled], plain.logprobs)


def test_a_conversation_of_one_turn_is_a_response_bit_for_bit(models, make, train, some_groups, ragged):
    groups = some_groups(0, ragged)
    digests = []
    for _ in range(2):
        learner = make(models[True])
        learner.update(step_rows(groups, train))
        digests.append(state_digest(learner.state()))
        for rollout in (rollout for group in groups for rollout in group.rollouts):
            rollout.sampled = np.ones(len(rollout.tokens), bool)
    assert digests[0] == digests[1]


def test_groups_without_gradient_only_change_the_denominator(models, make, train, some_groups):
    mixed, equal = some_groups(0, [[0, 1, 0], [1, 0]]), some_groups(1, [[1, 1, 1], [0, 0], [0]])
    rows = step_rows(mixed, train)
    more = step_rows([*equal, *mixed], train)
    assert len(more) == len(rows)
    scale = sum(g.tokens for g in mixed) / sum(g.tokens for g in [*mixed, *equal])
    np.testing.assert_allclose(more.weights, rows.weights * scale)
    learner = make(models[True])
    computed = learner.update(more)["train/computed_tokens"]
    state = state_digest(learner.state())
    learner = make(models[True])
    assert learner.update(replace(rows, weights=more.weights))["train/computed_tokens"] == computed
    assert state_digest(learner.state()) == state  # bit for bit


def test_a_groups_prompt_is_computed_once(some_groups, train):
    (group,) = some_groups(0, [[0, 1] * 20])
    rows = step_rows([group], train)
    (indices,) = split_ranks(rows, np.arange(40), 10**6, 1, True)[0]
    batch = collate(rows, indices, True)
    assert batch.input_ids.numel() == len(group.prompt_tokens) + sum(len(r.tokens) - 1 for r in group.rollouts)


def test_the_reference_is_the_start_model(models, make, train, some_groups, ragged):
    rows = step_rows(some_groups(0, ragged), train)
    for lora in (None, LoraConfig(rank=2)):
        learner = make(models[True], replace(train, kl=0.1), lora=lora)
        first = learner.update(rows)
        assert first["train/reference_kl"] == pytest.approx(0, abs=1e-9)
        assert learner.update(rows)["train/reference_kl"] > 1e-6
    half = make(models[True], replace(train, kl=0.1), dtype="bfloat16")
    for (name, theirs), (_, mine) in zip(half.reference.named_buffers(), half.model.named_buffers(), strict=True):
        assert theirs.dtype == mine.dtype == torch.float32, name
        assert torch.equal(theirs, mine), name  # rotary frequencies rounded to bfloat16 are other positions
    assert half.update(rows)["train/reference_kl"] == pytest.approx(0, abs=1e-9)
    moved = {}
    for kl in (0.0, 30.0):
        learner = make(models[True], replace(train, kl=kl))
        for _ in range(4):
            learner.update(rows)
        learned = learner._row_logprobs(rows)
        start = make(models[True], train)
        moved[kl] = float(np.square(learned - start._row_logprobs(rows)).sum())
    assert moved[30.0] < 0.7 * moved[0.0]


def test_importance_weights_follow_the_engines_gap(models, make, train, some_groups, ragged):
    groups = some_groups(0, ragged)
    plain = make(models[True])
    for group in groups:
        rows = [(group.prompt_tokens, rollout.tokens) for rollout in group.rollouts]
        for rollout, logprobs in zip(group.rollouts, plain.logprobs(rows), strict=True):
            rollout.logprobs = logprobs - np.float32(math.log(3))  # the engine drew every token three times as rarely
    rows = step_rows(groups, train)
    norm = plain.update(rows)["train/grad_norm"]
    capped = make(models[True], replace(train, tis=2.0)).update(rows)
    assert capped["train/tis_ratio"] == 1
    assert capped["train/grad_norm"] == pytest.approx(2 * norm, rel=1e-4)
    free = make(models[True], replace(train, tis=5.0)).update(rows)
    assert free["train/tis_ratio"] == 0
    assert free["train/grad_norm"] == pytest.approx(3 * norm, rel=1e-4)


def test_the_learning_rate_follows_the_informative_prompts(models, make, train, some_groups):
    rows = step_rows(some_groups(0, [[0, 1], [1, 1], [0, 0], [0]]), train)
    for scaling, factor in (("none", 1), ("sqrt", 0.5), ("linear", 0.25)):
        learner = make(models[True], replace(train, lr_scaling=scaling))
        assert learner.update(rows)["train/lr"] == pytest.approx(train.lr * factor)


def test_an_advantage_clip_that_cuts_says_so(train, some_groups):
    groups = some_groups(0, [[1] + [0] * 29, [1, 0]])
    rows = step_rows(groups, replace(train, advantage_clip=3.0))
    assert rows.advantage_max == pytest.approx(math.sqrt(29), rel=1e-4)
    assert rows.cut_groups == 1
    assert rows.advantages.max() == 3
    assert step_rows(groups, train).advantages.max() == pytest.approx(math.sqrt(29), rel=1e-4)


@pytest.mark.parametrize(("advantage", "clips"), [("std", (0.5, 1.5, 2.0, 3.0, 4.4)), ("mean", (0.3, 0.7, 0.9, 1.0))])
def test_advantage_clip_warning_names_the_smallest_cut_group(train, some_groups, advantage, clips):
    for clip in clips:
        setting = replace(train, advantage=advantage, advantage_clip=clip)
        sizes = range(2, 40)
        cut = [size for size in sizes if step_rows(some_groups(0, [[1] + [0] * (size - 1)]), setting).cut_groups]
        assert min(cut, default=math.inf) == max(2, first_cut(clip, advantage == "std")), clip


@pytest.mark.parametrize("background", [False, True])
def test_what_is_saved_is_the_state_at_the_call(models, make, train, some_groups, ragged, tmp_path, background):
    first, second = (step_rows(some_groups(seed, ragged), train) for seed in range(2))
    learner = make(models[True])
    learner.update(first)
    expected = state_digest(learner.state())
    learner.save(tmp_path / "one", background)
    learner.update(second)
    after = state_digest(learner.state())
    learner.save(tmp_path / "two", background)  # waits for the one under way
    while not learner.saved():
        pass
    learner = make(models[True])
    learner.load(tmp_path / "one")
    assert state_digest(learner.state()) == expected
    learner.update(second)
    assert state_digest(learner.state()) == after
    learner.load(tmp_path / "two")
    assert state_digest(learner.state()) == after


def test_failed_background_write_raises_where_awaited(models, make, tmp_path):
    learner = make(models[True])
    (tmp_path / "file").write_text("in the way")
    learner.save(tmp_path / "file" / "learner", background=True)
    learner.writer.thread.join()
    with pytest.raises(Exception, match="rank 0 could not write"):
        learner.saved()
    assert learner.saved()
