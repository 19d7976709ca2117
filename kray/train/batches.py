"""From the rollouts of one step to padded micro-batches. Pure numpy.

Promises
- Only rollouts whose advantage is not 0 become rows, and every such rollout with at least one token becomes exactly one
  row, in exactly one optimizer step, on exactly one rank, in exactly one micro-batch.
- Every rollout of the step counts in the denominator of the loss, whether or not it became a row. The denominator is
  one number for the whole step, folded into the rows' weights: sums over ranks and micro-batches need no further care.
- Every rank gets the same number of micro-batches, because FSDP's collectives must match; missing ones are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kray.records import RolloutGroup


@dataclass(slots=True)
class Rows:
    """R rollouts as flat arrays, which travel between processes without being copied.

    tokens (sum of lengths,) int32: each row's prompt, then its response; prompt_lengths, response_lengths (R,) int64;
    logprobs (sum of response_lengths,) float32 as the engine sampled them; advantages (R,) float32;
    weights (R,) float64 of each of the row's response tokens, the denominator included;
    update (R,) int64: the optimizer step that the row belongs to, 0 <= update < updates.
    """

    tokens: np.ndarray
    prompt_lengths: np.ndarray
    response_lengths: np.ndarray
    logprobs: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray
    update: np.ndarray
    updates: int
    groups: int  # groups of the step
    effective_groups: int  # groups that carry a gradient

    @property
    def lengths(self) -> np.ndarray:
        return self.prompt_lengths + self.response_lengths

    def __len__(self) -> int:
        return len(self.prompt_lengths)


@dataclass(slots=True)
class Batch:
    """One padded micro-batch of B rows and T tokens. Position t predicts token t + 1, so arrays about targets are T - 1.

    input_ids (B, T) int64, padded to the right with 0; attention_mask (B, T) bool, true on tokens;
    target_mask (B, T - 1) bool, true where token t + 1 is a response token; and (N,) float32 over the N true entries of
    target_mask in row-major order: logprobs (the engine's), advantages, weights.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    target_mask: np.ndarray
    logprobs: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray

    @property
    def first_target(self) -> int:
        """The smallest t with a target in any row; logits before it are not needed."""
        columns = np.flatnonzero(self.target_mask.any(axis=0))
        return int(columns[0]) if len(columns) else self.target_mask.shape[1] - 1


def split_updates(groups: Sequence[int], updates: int) -> list[list[int]]:
    """The groups dealt evenly over at most `updates` optimizer steps, none of them empty; [] when there is no group.

    Sizes differ by at most one. Neighbours go to different steps: a sampler may put like prompts side by side.
    """
    count = min(updates, len(groups))
    return [list(groups[start::count]) for start in range(count)]


def token_weights(groups: Sequence[RolloutGroup], aggregation: str) -> list[np.ndarray]:
    """The loss weight of each response token of each rollout: one (N,) float64 for each group.

    token_mean: 1 / response tokens of all groups (DAPO, arXiv 2503.14476, section 3.3);
    sequence_mean: 1 / the rollout's tokens / number of rollouts (GRPO, arXiv 2402.03300, equation 3);
    prompt_mean: 1 / the group's tokens / number of groups.
    Each times group.weight / len(group.rollouts): with the default weight, the number of rollouts, the factor is 1.
    """
    tokens = max(1, sum(group.tokens for group in groups))
    rollouts = max(1, sum(len(group.rollouts) for group in groups))

    def weights(group: RolloutGroup) -> np.ndarray:
        lengths = np.array([len(rollout.tokens) for rollout in group.rollouts], dtype=np.float64)
        if aggregation == "token_mean":
            each = np.full(len(lengths), 1 / tokens)
        elif aggregation == "sequence_mean":
            each = 1 / np.maximum(lengths, 1) / rollouts
        elif aggregation == "prompt_mean":
            each = np.full(len(lengths), 1 / max(1, lengths.sum()) / len(groups))
        else:
            raise ValueError(f"aggregation is {aggregation!r}; known: token_mean, sequence_mean, prompt_mean")
        return each * (group.weight / max(1, len(lengths)))

    return [weights(group) for group in groups]


def make_rows(
    groups: Sequence[RolloutGroup],
    advantages: Callable[[np.ndarray, np.ndarray], np.ndarray],
    aggregation: str,
    updates: int = 1,
) -> Rows:
    """The rows of one step.

    advantages: (rewards (R,) float64, group (R,) int64) -> (R,) float32.
    With U optimizer steps a step's groups are spread over them and each step's weights grow by U, so that every optimizer
    step sees a gradient of the size that one step over all groups would have had.
    Raises ValueError on a rollout without a reward, or whose tokens and logprobs differ in number.
    """
    _check(groups)
    sizes = [len(group.rollouts) for group in groups]
    rewards = np.concatenate([np.zeros(0), *(group.rewards for group in groups)])
    all_advantages = advantages(rewards, np.repeat(np.arange(len(groups)), sizes))
    advantage_of = np.split(all_advantages, np.cumsum(sizes)[:-1]) if groups else []
    weight_of = token_weights(groups, aggregation)
    kept = [
        [i for i, rollout in enumerate(group.rollouts) if advantage_of[g][i] != 0 and len(rollout.tokens)]
        for g, group in enumerate(groups)
    ]
    steps = split_updates([g for g in range(len(groups)) if kept[g]], updates)
    picked = [(u, g, i) for u, step in enumerate(steps) for g in step for i in kept[g]]
    rollouts = [groups[g].rollouts[i] for _, g, i in picked]
    parts = [
        part for (_, g, _), r in zip(picked, rollouts, strict=True) for part in (groups[g].prompt_tokens, r.tokens)
    ]
    return Rows(
        tokens=np.concatenate([np.zeros(0, np.int32), *(np.asarray(part, np.int32) for part in parts)]),
        prompt_lengths=np.array([len(groups[g].prompt_tokens) for _, g, _ in picked], dtype=np.int64),
        response_lengths=np.array([len(rollout.tokens) for rollout in rollouts], dtype=np.int64),
        logprobs=np.concatenate([np.zeros(0, np.float32), *(rollout.logprobs for rollout in rollouts)]).astype(
            np.float32
        ),
        advantages=np.array([advantage_of[g][i] for _, g, i in picked], dtype=np.float32),
        weights=np.array([weight_of[g][i] * len(steps) for _, g, i in picked], dtype=np.float64),
        update=np.array([u for u, _, _ in picked], dtype=np.int64),
        updates=len(steps),
        groups=len(groups),
        effective_groups=sum(map(len, steps)),
    )


def _check(groups: Sequence[RolloutGroup]) -> None:
    for group in groups:
        if not group.prompt_tokens:
            raise ValueError(f"prompt {group.prompt.id} has no tokens: a response's first token would have no context")
        for rollout in group.rollouts:
            where = f"prompt {group.prompt.id}, rollout {rollout.index}"
            if rollout.reward is None or not np.isfinite(rollout.reward):
                raise ValueError(
                    f"{where}: the reward is {rollout.reward}; every rollout must be scored before training"
                )
            if len(rollout.tokens) != len(rollout.logprobs):
                raise ValueError(f"{where}: {len(rollout.tokens)} tokens but {len(rollout.logprobs)} logprobs")


def microbatches(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Indices of the rows of each micro-batch, longest rows first; rows of like length share one, so little is padding.

    rows * longest <= max_tokens in each; a row that alone is longer goes alone. lengths (R,) int.
    """
    batches: list[list[int]] = []
    for index in np.argsort(-np.asarray(lengths), kind="stable"):
        # Rows come longest first, so a micro-batch's first row is its longest.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(int(index))
        else:
            batches.append([int(index)])
    return [np.array(batch, dtype=np.int64) for batch in batches]


def split_ranks(lengths: np.ndarray, max_tokens: int, ranks: int) -> list[list[np.ndarray]]:
    """The micro-batches of each rank: equally many for every rank, the k-th of all ranks about equally large.

    Rows are dealt longest first, back and forth (0 1 2 2 1 0 ...), so that ranks differ by about one row. Ranks with
    fewer micro-batches than others get empty ones.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    place = np.arange(len(order)) % (2 * ranks)
    rank_of = np.minimum(place, 2 * ranks - 1 - place)
    split = []
    for rank in range(ranks):
        rows = order[rank_of == rank]
        split.append([rows[batch] for batch in microbatches(np.asarray(lengths)[rows], max_tokens)])
    longest = max(len(batches) for batches in split)
    return [batches + [np.zeros(0, dtype=np.int64)] * (longest - len(batches)) for batches in split]


def collate(rows: Rows, indices: np.ndarray) -> Batch:
    """The chosen rows as one padded micro-batch; no rows give one row of two padding tokens without a target."""
    lengths, prompts = rows.lengths[indices], rows.prompt_lengths[indices]
    starts = (np.cumsum(rows.lengths) - rows.lengths)[indices]
    response_starts = (np.cumsum(rows.response_lengths) - rows.response_lengths)[indices]
    shape = (max(1, len(indices)), int(lengths.max(initial=2)))
    input_ids = np.zeros(shape, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=bool)
    target_mask = np.zeros((shape[0], shape[1] - 1), dtype=bool)
    for b, (start, length, prompt) in enumerate(zip(starts, lengths, prompts, strict=True)):
        input_ids[b, :length] = rows.tokens[start : start + length]
        attention_mask[b, :length] = True
        target_mask[b, prompt - 1 : length - 1] = True
    responses = rows.response_lengths[indices]
    spans = [rows.logprobs[start : start + n] for start, n in zip(response_starts, responses, strict=True)]
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        target_mask=target_mask,
        logprobs=np.concatenate([np.zeros(0, np.float32), *spans]),
        advantages=np.repeat(rows.advantages[indices], responses).astype(np.float32),
        weights=np.repeat(rows.weights[indices], responses).astype(np.float32),
    )
