"""Laws of micro-batches, and packed attention against attention over each rollout alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kray.train.attention import packed_attention
from kray.train.context_parallel import ContextRanks
from kray.train.packed_layout import length_buckets, packed_layout
from kray.train.packing import collate, own_part, split_ranks
from kray.train.training_rows import step_rows, unscored_rows

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


@st.composite
def some_rows(draw):
    """Rows of some groups; a group's rows have one prompt."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for size in draw(st.lists(st.integers(1, 9), max_size=8)):
        prompt = tuple(rng.integers(0, 30, rng.integers(1, 9)).tolist())
        found += [(prompt, rng.integers(0, 30, rng.integers(1, 12)).tolist()) for _ in range(size)]
    return unscored_rows(found)


@given(some_rows(), st.integers(1, 80), st.integers(1, 5), st.booleans())
def test_every_row_is_in_one_microbatch_within_the_bound(rows, bound, ranks, packed):
    chosen = np.arange(len(rows))
    split = split_ranks(rows, chosen, bound, ranks, packed)
    assert len(split) == ranks
    assert len({len(batches) for batches in split}) == 1
    assert sorted(row for batches in split for batch in batches for row in batch.tolist()) == chosen.tolist()
    for batches in split:
        for indices in batches:
            batch = collate(rows, indices, packed)
            assert batch.input_ids.numel() <= bound or len(indices) <= 1
            assert batch.rows == len(indices)
            if packed:
                assert batch.filled == (batch.input_ids.numel() if len(indices) else 0)


@given(some_rows(), st.integers(2, 9))
def test_parts_of_a_batch_add_up_to_it(rows, size):
    whole = collate(rows, np.arange(len(rows)), True)
    parts = [own_part(whole, ContextRanks(size, rank)) for rank in range(size)]
    tokens = whole.input_ids.shape[1]
    (each,) = {part.input_ids.shape[1] for part in parts}
    assert tokens <= each * size < tokens + size
    for name in ("input_ids", "positions"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1)[:, :tokens], getattr(whole, name))
    assert torch.equal(torch.cat([part.keep + rank * each for rank, part in enumerate(parts)]), whole.keep)
    predicting = [part.keep[part.source] + rank * each for rank, part in enumerate(parts)]
    assert torch.equal(torch.cat(predicting), whole.keep[whole.source])
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    for rank, part in enumerate(parts):
        assert part.parts is not None
        assert part.parts.counts == tuple(len(other.targets) for other in parts)
        assert (part.layout.ranks.rank, part.computed_tokens, part.filled) == (rank, each * size, whole.filled)
        # What the loss needs stays whole.
        assert torch.equal(part.weights, whole.weights)
        assert torch.equal(part.rollout, whole.rollout)


def test_what_is_not_packed_is_not_divided(some_groups, train):
    rows = step_rows(some_groups(0, [[0, 1, 0]]), train)
    padded = collate(rows, np.arange(len(rows)), False)
    assert own_part(padded, ContextRanks(4, 1)) is padded
    packed = collate(rows, np.arange(len(rows)), True)
    assert own_part(packed, ContextRanks()) is packed


def test_ranks_are_balanced_with_one_dominant_group():
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, 30, 12).tolist()) for _ in range(20)]
    sizes = [200] + [2] * 19
    rows = unscored_rows(
        [
            (p, rng.integers(0, 30, rng.integers(3, 9)).tolist())
            for p, n in zip(prompts, sizes, strict=True)
            for _ in range(n)
        ]
    )
    for ranks in (2, 4):
        split = split_ranks(rows, np.arange(len(rows)), 4096, ranks, True)
        tokens = [sum(collate(rows, batch, True).filled for batch in batches) for batches in split]
        assert max(tokens) < 1.15 * min(tokens)


@given(some_rows(), st.booleans(), st.randoms(use_true_random=False))
def test_a_batch_knows_what_predicts_each_response_token(rows, packed, random):
    chosen = sorted(random.sample(range(len(rows)), random.randint(1, len(rows)))) if len(rows) else []
    batch = collate(rows, np.array(chosen, dtype=np.int64), packed)
    if not chosen:
        assert len(batch.targets) == 0
        return
    assert (batch.source.diff() >= 0).all()
    ends = np.cumsum(rows.lengths)
    expected = np.concatenate([rows.tokens[ends[i] - rows.response_lengths[i] : ends[i]] for i in chosen])
    targets = np.empty_like(expected)
    targets[batch.order.numpy()] = batch.targets.numpy()
    np.testing.assert_array_equal(targets, expected)
    before = np.concatenate([rows.tokens[ends[i] - rows.response_lengths[i] - 1 : ends[i] - 1] for i in chosen])
    places = np.empty_like(expected)
    places[batch.order.numpy()] = batch.input_ids.flatten()[batch.keep][batch.source].numpy()
    np.testing.assert_array_equal(places, before)  # the token before a response token is what predicts it
    positions = np.concatenate([np.arange(rows.prompt_lengths[i] - 1, rows.lengths[i] - 1) for i in chosen])
    at = np.empty_like(positions)
    at[batch.order.numpy()] = batch.positions.flatten()[batch.keep][batch.source].numpy()
    np.testing.assert_array_equal(at, positions)


@given(LENGTHS, st.integers(0, 60))
def test_buckets_are_the_cheapest_split(lengths, overhead):
    """Against every split of the sorted lengths, by dynamic programming without any shortcut."""
    lengths = np.array(lengths, dtype=np.int64)
    found = length_buckets(lengths, overhead)
    assert sorted(np.concatenate([np.zeros(0, int), *found]).tolist()) == list(range(len(lengths)))
    ordered = np.sort(lengths)
    best = [0]
    for end in range(1, len(ordered) + 1):
        best.append(min(best[s] + (end - s) * int(ordered[end - 1]) + overhead for s in range(end)))
    assert sum(len(b) * int(lengths[b].max()) + overhead for b in found) == best[-1]


def test_the_padding_of_real_lengths_is_small():
    """GSM8K-like lengths, without packing: under five percent."""
    rng = np.random.default_rng(0)
    prompts = rng.normal(110, 35, 512).clip(40, 300).astype(int)
    responses = rng.lognormal(5.3, 0.5, 512).clip(20, 1024).astype(int)
    rows = unscored_rows([([1] * p, [1] * r) for p, r in zip(prompts.tolist(), responses.tolist(), strict=True)])
    batches = split_ranks(rows, np.arange(512), 16384, 1, False)[0]
    padded = [collate(rows, batch, False) for batch in batches]
    assert 1 - sum(b.filled for b in padded) / sum(b.input_ids.numel() for b in padded) < 0.05


class Module(torch.nn.Module):
    is_causal = True
    num_key_value_groups = 2


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 2.0), (4, 2.0)])
@pytest.mark.parametrize("heads", [(2, 1), (4, 4)])
def test_packed_attention_equals_attention_over_each_rollout(window, softcap, heads):
    rng = np.random.default_rng(1)
    groups = [(int(rng.integers(1, 7)), rng.integers(1, 9, rng.integers(0, 5)).tolist()) for _ in range(6)]
    segments, sequences, end = [], [], 0
    for prompt, responses in groups:
        root, end = end, end + prompt
        segments.append((root, prompt, 0, 0))
        sequences.append((root, list(range(root, end))))
        for size in responses:
            segments.append((end, size, root, prompt))
            sequences.append((end, [*range(root, root + prompt), *range(end, end + size)]))
            end += size
    d = 8
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, n, end, d, dtype=torch.float64, requires_grad=True) for n in (heads[0], heads[1], heads[1])
    )
    out, _ = packed_attention(
        Module(), query, key, value, None, sliding_window=window, softcap=softcap, layout=packed_layout(segments, end)
    )
    expected = torch.zeros_like(out)
    for first, places in sequences:
        k, v = (part[0, :, places].repeat_interleave(heads[0] // heads[1], 0) for part in (key, value))
        scores = query[0, :, places] @ k.transpose(1, 2) / d**0.5
        scores = torch.tanh(scores / softcap) * softcap if softcap else scores
        n = len(places)
        distance = torch.arange(n)[:, None] - torch.arange(n)
        seen = (distance >= 0) & (distance < (window or n + 1))
        rows = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1)
        own = [i for i, place in enumerate(places) if place >= first]
        expected[0, [places[i] for i in own]] = rows[own]
    torch.testing.assert_close(out, expected)
    direction = torch.randn(out.shape, dtype=out.dtype)
    for got, wanted in zip(
        torch.autograd.grad((out * direction).sum(), (query, key, value)),
        torch.autograd.grad((expected * direction).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
