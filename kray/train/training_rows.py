"""Turns the groups of one step into the rows that the learner trains on, each with its weight in the loss.

Guarantees
- A group of weight 0 is left out as if it had not been sampled: it gives no rows and counts in no denominator. So
  dynamic_sampling trains exactly as a run does that is given only the groups it keeps.
- Of the other groups only rollouts whose advantage is not 0 become rows; every such rollout with at least one sampled
  token becomes exactly one row, in exactly one optimizer step of a pass. With train.thin below 1 a part of them is drawn,
  weighted by the inverse of the probability of being drawn.
- Every rollout of these groups counts in the denominator of the loss, whether or not it became a row. The denominator is
  one number for the whole step, contained in the rows' weights: sums over ranks and micro-batches need no correction.
- Tokens written by an environment are context: they have no loss, and no length counts them.

Shape suffixes: R rollouts, N sampled tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kray.config.train_schema import TrainConfig, advantage_of, aggregation_of
from kray.records import Rollout, RolloutGroup
from kray.train.advantages import batch_advantages, belief_advantages, group_advantages
from kray.train.thinning import draw, inclusion_probabilities

# 1, and a little more: a token that was certain may be drawn, too, so that thinning has no bias.
SURE = 1.01


@dataclass(slots=True)
class TrainingRows:
    """R rollouts as flat arrays, which travel between processes without being copied.

    Attributes:
        tokens: (sum of lengths,) int32; of each row the prompt, then the response.
        prompt_lengths: (R,) int64.
        response_lengths: (R,) int64.
        logprobs: (sum of response_lengths,) float32 log-probabilities recorded by the engine, nats.
        sampled: (sum of response_lengths,) bool; False for an environment's tokens.
        advantages: (R,) float32.
        weights: (R,) float64 loss weight of each of the row's sampled tokens, global denominator included.
        group: (R,) int64; rows of one group have the same prompt tokens and are adjacent within an update.
        update: (R,) int64 optimizer step of the row, 0 <= update < updates.
        updates: Number of optimizer steps.
        groups: Number of the step's groups that are not left out.
        effective_groups: Number of groups that carry a gradient.
        advantage_max: Largest magnitude of an advantage before clipping.
        advantage_mean: Mean magnitude of the advantages of all rollouts that are not left out.
        effective_size: (sum |A|)^2 / sum A^2 over the same rollouts: as many rollouts of equal |A| would give as precise a
            gradient.
        effective_share: Mean over the same rollouts of min(1, (A / a)^2), where a is the advantage of a rollout at even odds: 0
            for rewards that were expected, 1 for those that nothing was known of.
        cut_groups: Number of groups in which the advantage clip changed a rollout.
        rollouts: Number of rollouts that are not left out.
        candidates: Number of rollouts with an advantage, of which R were drawn.
        seed: Of the order of the optimizer steps in a second pass and later ones.
    """

    tokens: np.ndarray
    prompt_lengths: np.ndarray
    response_lengths: np.ndarray
    logprobs: np.ndarray
    sampled: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray
    group: np.ndarray
    update: np.ndarray
    updates: int
    groups: int
    effective_groups: int
    advantage_max: float = 0.0
    advantage_mean: float = 0.0
    effective_size: float = 0.0
    effective_share: float = 0.0
    cut_groups: int = 0
    rollouts: int = 0
    candidates: int = 0
    seed: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """(R,) int64 tokens of prompt and response together."""
        return self.prompt_lengths + self.response_lengths

    def __len__(self) -> int:
        return len(self.prompt_lengths)


def split_updates(groups: Sequence[int], updates: int) -> list[list[int]]:
    """Deal the groups evenly over at most `updates` optimizer steps.

    Neighbours go to different steps, because a sampler may put similar prompts side by side.

    Returns:
        The groups of each step: sizes differ by at most one, no step is empty; [] when there is no group.
    """
    count = min(updates, len(groups))
    return [list(groups[start::count]) for start in range(count)]


def token_weights(groups: Sequence[RolloutGroup], aggregation: str, constant_tokens: int = 0) -> list[np.ndarray]:
    """Compute the loss weight of each sampled token of each rollout.

    Each weight is multiplied by group.weight / len(group.rollouts), which is 1 by default. "All groups" and numbers of
    groups or rollouts are those of groups whose weight is not 0.

    Args:
        groups: The step's groups.
        aggregation: One of
            token_mean: 1 / sampled tokens of all groups (DAPO, arXiv 2503.14476, equation 8);
            sequence_mean: 1 / the rollout's tokens / number of rollouts (GRPO, arXiv 2402.03300, equation 3);
            prompt_mean: 1 / the group's tokens / number of groups. This removes the factor by which a larger group has
                more tokens, not all of its size: the group's gradient is then the mean of A grad log p over its
                rollouts, and with rewards 0 and 1 of success rate p the expected mean is E[f(k / N)], k ~
                Binomial(N, p), times what does not depend on N; f(x) = sqrt(x (1 - x)) for advantages divided by the
                group's standard deviation, x (1 - x) for others, whose mean is p (1 - p) (N - 1) / N. At p = 1/2 the
                first is .25 for N = 2 and .49 for N = 32;
            constant: 1 / constant_tokens / number of rollouts (Dr. GRPO, arXiv 2503.20783, section 3.2 and listing 1:
                one length for all, so that a long wrong answer is not punished less for each token than a short one).
        constant_tokens: Length used by `constant`.

    Returns:
        For each group (rollouts,) float64.

    Raises:
        ValueError: The aggregation is unknown.
    """
    counted = [group for group in groups if group.weight]
    tokens = max(1, sum(group.tokens for group in counted))
    rollouts = max(1, sum(len(group.rollouts) for group in counted))

    def weights(group: RolloutGroup) -> np.ndarray:
        lengths = np.array([rollout.sampled_tokens for rollout in group.rollouts], dtype=np.float64)
        if aggregation == "token_mean":
            each = np.full(len(lengths), 1 / tokens)
        elif aggregation == "sequence_mean":
            each = 1 / np.maximum(lengths, 1) / rollouts
        elif aggregation == "prompt_mean":
            each = np.full(len(lengths), 1 / max(1, lengths.sum()) / max(1, len(counted)))
        elif aggregation == "constant":
            each = np.full(len(lengths), 1 / constant_tokens / rollouts)
        else:
            raise ValueError(f"aggregation is {aggregation!r}; known: token_mean, sequence_mean, prompt_mean, constant")
        return each * (group.weight / max(1, len(lengths)))

    return [weights(group) for group in groups]


def step_rows(groups: Sequence[RolloutGroup], train: TrainConfig, seed: int = 0) -> TrainingRows:
    """Return the rows that one update trains on.

    Args:
        groups: The step's groups, every rollout with a reward.
        train: The run's `train` section.
        seed: Of what is drawn: rows where train.thin is below 1, and the order of optimizer steps.

    Raises:
        ValueError: A rollout is unusable; the message names it.
    """
    beliefs = torch.tensor([group.belief for group in groups if group.weight], dtype=torch.float64).reshape(-1, 2)
    scale = advantage_of(train) == "std"

    def compute(rewards: np.ndarray, group: np.ndarray) -> np.ndarray:
        rewards_R, group_R = torch.from_numpy(rewards), torch.from_numpy(group)
        if train.baseline == "belief":
            return belief_advantages(rewards_R, group_R, beliefs, scale, train.advantage_floor).numpy()
        if train.baseline == "batch":
            return batch_advantages(rewards_R, scale, train.advantage_floor).numpy()
        return group_advantages(rewards_R, group_R, scale).numpy()

    # A reward of 0 or 1 is 1/2 away from what is expected of it at even odds, which is its standard deviation there.
    even_odds = 1.0 if scale else 0.5
    aggregation = aggregation_of(train)
    averaging = Averaging(
        aggregation, train.updates, train.constant_tokens, train.advantage_clip, train.thin, even_odds
    )
    return make_rows(groups, compute, averaging, seed)


@dataclass(frozen=True, slots=True)
class Averaging:
    """How the rollouts of a step make up its loss.

    Attributes:
        aggregation: See `token_weights`.
        updates: Largest number of optimizer steps of a pass.
        constant_tokens: See `token_weights`.
        advantage_clip: Largest magnitude of an advantage; 0 for no limit.
        thin: Share of the rollouts with an advantage that become rows.
        even_odds: Magnitude of the advantage of a rollout whose reward is 0 or 1 at even odds.
    """

    aggregation: str
    updates: int = 1
    constant_tokens: int = 0
    advantage_clip: float = 0.0
    thin: float = 1.0
    even_odds: float = 1.0


def make_rows(
    groups: Sequence[RolloutGroup],
    advantages: Callable[[np.ndarray, np.ndarray], np.ndarray],
    averaging: Averaging,
    seed: int = 0,
) -> TrainingRows:
    """Return the rows of one step.

    With U optimizer steps the groups are spread over them and each step's weights grow by U, so that every optimizer step
    has a gradient of the size that a single step over all groups would have had.

    Args:
        groups: The step's groups.
        advantages: (rewards (R,) float64, group (R,) int64) -> (R,) float32.
        averaging: How they make up the loss.
        seed: Of what is drawn.

    Raises:
        ValueError: A rollout has no reward, or its tokens and log-probabilities differ in number.
    """
    _check_groups(groups)
    groups = [group for group in groups if group.weight]
    sizes = [len(group.rollouts) for group in groups]
    rewards = np.concatenate([np.zeros(0), *(group.rewards for group in groups)])
    group_of = np.repeat(np.arange(len(groups)), sizes)
    all_advantages = advantages(rewards, group_of)
    all_rollouts = [rollout for group in groups for rollout in group.rollouts]
    all_weights = np.concatenate(
        [np.zeros(0), *token_weights(groups, averaging.aggregation, averaging.constant_tokens)]
    )
    bound = averaging.advantage_clip or np.inf
    written = np.array([rollout.sampled_tokens > 0 for rollout in all_rollouts], dtype=bool)
    candidates = np.flatnonzero((all_advantages != 0) & written)
    magnitude = np.abs(all_advantages).astype(np.float64)
    kept_rows, weight_of = candidates, all_weights
    if averaging.thin < 1:
        sizes_of_gradients = (magnitude * weight_of)[candidates] * [gradient_size(all_rollouts[i]) for i in candidates]
        probability = inclusion_probabilities(sizes_of_gradients, averaging.thin)
        kept_rows = candidates[draw(probability, seed)]
        weight_of[candidates] /= probability
    steps = split_updates(np.unique(group_of[kept_rows]).tolist(), averaging.updates)
    step_of = {g: u for u, step in enumerate(steps) for g in step}
    update = np.array([step_of[g] for g in group_of[kept_rows].tolist()], dtype=np.int64)
    order = np.argsort(update, kind="stable")
    rows = kept_rows[order]
    arrays = _arrays([groups[g].prompt_tokens for g in group_of[rows]], [all_rollouts[row] for row in rows])
    return TrainingRows(
        **arrays,
        advantages=all_advantages[rows].astype(np.float32).clip(-bound, bound),
        weights=weight_of[rows] * len(steps),
        group=group_of[rows],
        update=update[order],
        updates=len(steps),
        groups=len(groups),
        effective_groups=len(np.unique(group_of[candidates])),
        **_figures(magnitude, group_of, bound, averaging.even_odds),
        rollouts=len(all_rollouts),
        candidates=len(candidates),
        seed=seed,
    )


def _arrays(prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return what TrainingRows holds of the tokens of each row."""
    parts = [part for prompt, rollout in zip(prompts, rollouts, strict=True) for part in (prompt, rollout.tokens)]
    logprobs = np.concatenate([np.zeros(0, np.float32), *(rollout.logprobs for rollout in rollouts)])
    return {
        "tokens": np.concatenate([np.zeros(0, np.int32), *(np.asarray(part, np.int32) for part in parts)]),
        "prompt_lengths": np.array([len(prompt) for prompt in prompts], dtype=np.int64),
        "response_lengths": np.array([len(rollout.tokens) for rollout in rollouts], dtype=np.int64),
        "logprobs": logprobs.astype(np.float32),
        "sampled": np.concatenate([np.zeros(0, bool), *map(_sampled_mask, rollouts)]),
    }


def _figures(magnitude: np.ndarray, group_of: np.ndarray, bound: float, even_odds: float) -> dict[str, Any]:
    """Return what TrainingRows holds of the magnitudes (R,) of all advantages, of which those above `bound` are cut."""
    some = bool(magnitude.any())
    shares = np.minimum(1.0, (magnitude / even_odds) ** 2)
    return {
        "advantage_max": float(magnitude.max(initial=0)),
        "advantage_mean": float(magnitude.mean()) if some else 0.0,
        "effective_size": float(magnitude.sum() ** 2 / (magnitude**2).sum()) if some else 0.0,
        "effective_share": float(shares.mean()) if some else 0.0,
        "cut_groups": len(np.unique(group_of[magnitude > bound])),
    }


def gradient_size(rollout: Rollout) -> float:
    """Estimate the norm of the gradient of a rollout's log-probability with respect to the logits.

    At a token of probability pi it is at least 1 - pi, the part of the token's own logit; the tokens' parts are added as if
    they were orthogonal.
    """
    logprobs = rollout.logprobs[_sampled_mask(rollout)].astype(np.float64)
    return float(np.sqrt(((SURE - np.exp(np.minimum(logprobs, 0.0))) ** 2).sum()))


def _sampled_mask(rollout: Rollout) -> np.ndarray:
    return np.ones(len(rollout.tokens), bool) if rollout.sampled is None else rollout.sampled


def _check_groups(groups: Sequence[RolloutGroup]) -> None:
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
            if rollout.sampled is not None and len(rollout.tokens) != len(rollout.sampled):
                raise ValueError(
                    f"{where}: {len(rollout.tokens)} tokens but {len(rollout.sampled)} entries that mark sampled ones"
                )


def unscored_rows(token_rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TrainingRows:
    """Return (prompt tokens, response tokens) pairs as rows without rewards; equal adjacent prompts are one group."""
    prompts = [tuple(prompt) for prompt, _ in token_rows]
    sizes = np.array([len(response) for _, response in token_rows], dtype=np.int64)
    count = len(prompts)
    changes = [i > 0 and prompts[i] != prompts[i - 1] for i in range(count)]
    parts = [np.asarray(part, dtype=np.int32) for row in token_rows for part in row]
    return TrainingRows(
        tokens=np.concatenate([np.zeros(0, np.int32), *parts]),
        prompt_lengths=np.array([len(prompt) for prompt in prompts], dtype=np.int64),
        response_lengths=sizes,
        logprobs=np.zeros(int(sizes.sum()), dtype=np.float32),
        sampled=np.ones(int(sizes.sum()), dtype=bool),
        advantages=np.zeros(count, dtype=np.float32),
        weights=np.zeros(count),
        group=np.cumsum(changes, dtype=np.int64),
        update=np.zeros(count, dtype=np.int64),
        updates=1,
        groups=0,
        effective_groups=0,
    )
