"""The simulated policy: one logit per prompt, updated by the advantages of a step's rollouts.

A rollout of prompt i has an advantage A_j, which depends on `train.baseline` (kray/train/advantages.py), and counts w_i / N_i
in the loss. A unique right answer is assumed: along the prompt's own logit the score (gradient of the log-probability) of a
success is 1 - p, that of a failure -p. So the gradient along the logit is

    g_i = (w_i / N_i) sum_j A_j (r_j - p),

for GRPO's advantages (w_i / N_i) sqrt(S (N - S)) with S successes. Each rollout also adds noise in directions that improve no
prompt, of variance noise^2 (w_i / N_i)^2 A_j^2. The update has a bounded length, as under gradient clipping and Adam:

    dz = rate * sqrt(prompts a step) * g / sqrt(sum g^2 + noise variance)    and all z gain `transfer` * mean dz

So small mixed groups improve the policy less than large ones (the signal grows like N, the noise like sqrt N), and a length
that is spread over many prompts raises their logits more than one that is spent on few.

Reuse (`epochs`): each pass is such an update, of the gradient at the policy that the passes before have left, with PPO's clip:
rollouts whose probability ratio has passed it lose their signal. Their noise is the same in every pass and adds up. A step
that is longer than one pass overshoots, and all prompts pay for it: z -= `overshoot` * (|D|^2 - |d|^2) / prompts a step, where
D is the sum of all passes, noise included, and d one pass. So further passes pay where signal is left, and cost where the
first pass has used it up. With one pass nothing of this paragraph applies.

Learning rates are not modelled: a longer single pass only learns faster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# PPO's clip of the probability ratio: the defaults of train.clip_low and train.clip_high.
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
# The default of train.advantage_floor.
ADVANTAGE_FLOOR = 0.1
BASELINES = ("group", "belief", "batch")


@dataclass(frozen=True)
class StepGroups:
    """What a step has drawn, for M distinct prompts.

    Attributes:
        rows: (M,) int, of the prompts among all logits.
        budgets: (M,) rollouts.
        passed: (M,) successes among them.
        weights: (M,) in the loss; a group's rollouts share them.
        beliefs: (M, 2) alpha and beta of each prompt before these labels.
    """

    rows: np.ndarray
    budgets: np.ndarray
    passed: np.ndarray
    weights: np.ndarray
    beliefs: np.ndarray


@dataclass(frozen=True)
class Update:
    """How the policy learns.

    Attributes:
        length: of one pass, in logits: the root of the sum of squares over all directions.
        noise: of a rollout's gradient in other directions, in units of its advantage.
        transfer: change of every logit for one logit of summed change.
        baseline: one of BASELINES, as train.baseline.
        epochs: passes over the rollouts, as train.epochs.
        overshoot: loss of every logit for one squared logit by which a step of several passes is longer than one pass.
    """

    length: float
    noise: float
    transfer: float
    baseline: str = "group"
    epochs: int = 1
    overshoot: float = 0.0


def advantages(baseline: str, groups: StepGroups) -> tuple[np.ndarray, np.ndarray]:
    """Compute the advantages of 0/1 rewards, divided by their standard deviation, as kray/train/advantages.py does.

    Args:
        baseline: one of BASELINES.
        groups: of the step.

    Returns:
        (of a success (M,), of a failure (M,)) float64, whether or not the group has one; 0 without rollouts.

    Raises:
        ValueError: the baseline is unknown.
    """
    n, s = np.asarray(groups.budgets, dtype=np.float64), np.asarray(groups.passed, dtype=np.float64)
    if baseline == "belief":
        alpha, beta = groups.beliefs.T
        others = alpha + beta + n - 1
        mean = np.divide(alpha + s, alpha + beta + n, out=np.zeros_like(s), where=others > 0)
        scale = np.maximum(np.sqrt(mean * (1 - mean)), ADVANTAGE_FLOOR) * others
        on = (n > 0) & (others > 0)
        success = np.divide(beta + n - s, scale, out=np.zeros_like(s), where=on)
        return success, np.divide(-(alpha + s), scale, out=np.zeros_like(s), where=on)
    if baseline == "group":
        mixed = (s > 0) & (s < n)
        success = np.sqrt(np.divide(n - s, s, out=np.zeros_like(s), where=mixed))
        return success, -np.divide(1.0, success, out=np.zeros_like(s), where=mixed)
    if baseline != "batch":
        raise ValueError(f"baseline {baseline} is not one of {', '.join(BASELINES)}")
    mean_all = float(s.sum() / max(1.0, n.sum()))
    if not 0 < mean_all < 1:
        return np.zeros_like(s), np.zeros_like(s)
    std = max(float(np.sqrt(mean_all * (1 - mean_all))), ADVANTAGE_FLOOR)
    return np.where(n > 0, (1 - mean_all) / std, 0.0), np.where(n > 0, -mean_all / std, 0.0)


def learn(z: np.ndarray, groups: StepGroups, update: Update) -> None:
    """Update the logits z in place, as the docstring of the module has it. Logits that are not finite never change."""
    rows, moving = groups.rows, np.isfinite(z)
    share = np.divide(groups.weights, groups.budgets, out=np.zeros(len(rows)), where=groups.budgets > 0)
    of_success, of_failure = advantages(update.baseline, groups)
    # summed advantages of the group's successes and failures
    won, lost = groups.passed * of_success, (groups.budgets - groups.passed) * of_failure
    noise = update.noise**2 * float((share**2 * (won * of_success + lost * of_failure)).sum())
    before = _sigmoid(z[rows])
    moved, noise_moved = np.zeros(len(rows)), 0.0
    for number in range(update.epochs):
        p = _sigmoid(z[rows])
        up, down = _kept_ratios(before, p) if number else (1.0, 1.0)
        gradient = share * (won * up * (1 - p) - lost * down * p)
        size = max(float(np.sqrt((gradient**2).sum() + noise)), 1e-9)
        step = np.where(moving[rows], update.length * gradient / size, 0.0)
        z[rows] += step
        z[moving] += update.transfer * float(step.sum())
        moved += step
        noise_moved += update.length * float(np.sqrt(noise)) / size
    if update.epochs > 1:
        longer = float((moved**2).sum()) + noise_moved**2 - update.length**2
        z[moving] -= update.overshoot * max(longer, 0.0)


def _kept_ratios(before: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability ratios of a success and of a failure at success rate p (M,), 0 where the clip is active."""
    up = np.divide(p, before, out=np.ones(len(p)), where=before > 0)
    down = np.divide(1 - p, 1 - before, out=np.ones(len(p)), where=before < 1)
    return np.where(up <= 1 + CLIP_HIGH, up, 0.0), np.where(down >= 1 - CLIP_LOW, down, 0.0)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))
