"""Maximum-likelihood fits of Beta priors, and of discounts of old labels, to the labels of a population of prompts."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, digamma

# Bounds of each parameter of a prior: beyond them a prior is a pair of spikes, or outweighs any labels.
PRIOR_BOUNDS = (0.02, 50.0)

# Prompts on which discounts are fitted: four numbers need no more.
PERSISTENCE_PROMPTS = 4096

# (alpha, beta) at which a search begins that knows no better: far from the maximum the likelihood is nearly flat.
DEFAULT_STARTS = ((1.0, 1.0), (0.3, 0.6))


def fit_beta_binomial(
    successes: np.ndarray, trials: np.ndarray, *starts: tuple[float, float]
) -> tuple[float, float] | None:
    """Fit the Beta(a, b) that maximises the beta-binomial likelihood of the counts.

    log p = sum_i betaln(s_i + a, n_i - s_i + b) - betaln(a, b). A population without a single success, or without a failure,
    has no maximum inside the bounds: it is fitted together with one made-up prompt of either kind, one rollout each, so that
    labels can still outweigh its prior.

    Args:
        successes: (K,), may be fractional.
        trials: (K,) > 0.
        starts: (a, b) to search from; DEFAULT_STARTS where none are given.

    Returns:
        (a, b), each within PRIOR_BOUNDS; None if the search fails.
    """
    if successes.sum() <= 0 or (trials - successes).sum() <= 0:
        successes, trials = np.append(successes, [1.0, 0.0]), np.append(trials, [1.0, 1.0])
    # a population has few distinct counts; graded rewards are rounded to keep it so
    key = np.round(successes * 100).astype(np.int64) * (int(trials.max()) + 1) + np.round(trials).astype(np.int64)
    _, first, times = np.unique(key, return_index=True, return_counts=True)
    s = np.round(successes[first], 2)
    f = np.maximum(trials[first] - s, 0.0)

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = np.exp(logs)
        below = digamma(s + f + a + b) - digamma(a + b)
        slope_a = a * (times @ (digamma(s + a) - digamma(a) - below))
        slope_b = b * (times @ (digamma(f + b) - digamma(b) - below))
        slope = np.array([slope_a, slope_b])
        return -float(times @ (betaln(s + a, f + b) - betaln(a, b))) / len(successes), -slope / len(successes)

    best = None
    box = [tuple(np.log(PRIOR_BOUNDS))] * 2
    for guess in starts or DEFAULT_STARTS:
        at = np.log(np.clip(guess, *PRIOR_BOUNDS))
        found = minimize(loss, at, jac=True, method="L-BFGS-B", bounds=box)
        if np.isfinite(found.fun) and np.isfinite(found.x).all() and (best is None or found.fun < best.fun - 1e-12):
            best = found
    return None if best is None else (float(np.exp(best.x[0])), float(np.exp(best.x[1])))


def fit_persistence(
    known_successes: np.ndarray,
    known_failures: np.ndarray,
    successes: np.ndarray,
    trials: np.ndarray,
    start: tuple[float, float, float, float] = (1.0, 1.0, 0.5, 0.5),
) -> tuple[float, float, float, float] | None:
    """Fit the prior and the discounts under which earlier labels predict later ones best.

    Maximises the likelihood of s ~ BetaBinomial(n, a + r S, b + t F) with a and b within PRIOR_BOUNDS and r, t in [0, 1].
    There are two discounts because the failures of a policy that learns go out of date sooner than its successes. More than
    PERSISTENCE_PROMPTS prompts are thinned evenly.

    Args:
        known_successes: (K,) S >= 0, discounted successes before each prompt's latest visit.
        known_failures: (K,) F >= 0, the same for failures.
        successes: (K,) s of the latest visit.
        trials: (K,) n of the latest visit.
        start: (a, b, r, t) to search from.

    Returns:
        (a, b, r, t), the last two the discounts of successes and of failures; None if the search fails.
    """
    if len(trials) > PERSISTENCE_PROMPTS:
        some = np.linspace(0, len(trials) - 1, PERSISTENCE_PROMPTS).astype(np.int64)
        known_successes, known_failures, successes, trials = (
            x[some] for x in (known_successes, known_failures, successes, trials)
        )
    failures = trials - successes

    def loss(at: np.ndarray) -> float:
        a, b = np.exp(at[0]) + at[2] * known_successes, np.exp(at[1]) + at[3] * known_failures
        # one made-up prompt of either kind, not visited before, so that a population without a success has a maximum
        c, d = np.exp(at[:2])
        made_up = -np.log(c / (c + d)) - np.log(d / (c + d))
        return float((betaln(a, b) - betaln(a + successes, b + failures)).sum() + made_up) / len(trials)

    low, high = np.log(PRIOR_BOUNDS)
    box = [(low, high)] * 2 + [(0.0, 1.0)] * 2
    at = np.array([*np.clip(np.log(start[:2]), low, high), *np.clip(start[2:], 0.05, 0.95)])
    found = minimize(loss, at, method="L-BFGS-B", bounds=box)
    if not (np.isfinite(found.fun) and np.isfinite(found.x).all()):
        return None
    return (float(np.exp(found.x[0])), float(np.exp(found.x[1])), float(found.x[2]), float(found.x[3]))
