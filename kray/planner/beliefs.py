"""What is believed about each prompt's success rate, from its own labels and a prior fitted to the population.

A belief is Beta(prior_alpha + S, prior_beta + F), S and F the prompt's successes and failures with old ones discounted.
The policy moves between visits, so a visit begins BEFORE it is planned: `begin_visit` multiplies S and F by `discount`
once, then the plan reads `posterior`, then `observe` adds the new labels at full weight. Labels of one visit are never
discounted against each other. All state is in numpy arrays with one row per prompt seen, found by a dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import betaln

PRIOR_BOUNDS = (0.02, 50.0)  # of each prior parameter: beyond, a prior outweighs any labels or is a pair of spikes
PRIOR_PROMPTS = 20  # labelled prompts below which a population cannot be fitted

_COUNTERS = ("successes", "failures", "last_successes", "last_trials", "visits", "awaiting")


class Beliefs:
    """Discounted Beta posteriors by prompt id; empirical-Bayes prior.

    discount in [0, 1]; prior_alpha, prior_beta > 0: the prior until `refit_prior` has fitted one (fit_prior=True) or
    for good (False). ValueError names what is out of range.
    """

    _successes: np.ndarray  # discounted; all six (capacity,) float64
    _failures: np.ndarray
    _last_successes: np.ndarray  # raw, of the latest visit with labels
    _last_trials: np.ndarray
    _visits: np.ndarray
    _awaiting: np.ndarray  # 1 from begin_visit to the visit's first label

    def __init__(
        self, discount: float = 0.5, prior_alpha: float = 1.0, prior_beta: float = 1.0, fit_prior: bool = True
    ):
        if not 0 <= discount <= 1:
            raise ValueError(f"discount must lie in [0, 1]; got {discount}")
        for name, x in (("prior_alpha", prior_alpha), ("prior_beta", prior_beta)):
            if not 0 < x < 1e6:
                raise ValueError(f"{name} must be positive and finite; got {x}")
        self.discount, self.fit_prior = float(discount), bool(fit_prior)
        self.prior_alpha, self.prior_beta = float(prior_alpha), float(prior_beta)
        self._row: dict[str, int] = {}
        self._capacity = 0
        self._stale = False  # labels have come in since the prior was fitted
        for name in _COUNTERS:
            setattr(self, f"_{name}", np.zeros(0))

    def __len__(self) -> int:
        """Prompts seen."""
        return len(self._row)

    def posterior(self, prompt_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(alpha (M,), beta (M,)) float64; the prior for prompts never seen, which stay unseen."""
        return (
            self.prior_alpha + self._read(self._successes, prompt_ids, 0.0),
            self.prior_beta + self._read(self._failures, prompt_ids, 0.0),
        )

    def begin_visit(self, prompt_ids: Sequence[str]) -> None:
        """Discounts all earlier labels of these prompts; called once for each visit, before it is planned.

        Raises ValueError on an id given twice: its labels would be discounted twice.
        """
        if len(set(prompt_ids)) != len(prompt_ids):
            raise ValueError("prompt_ids holds an id twice; one visit begins once")
        rows = self._rows(prompt_ids)
        self._successes[rows] *= self.discount
        self._failures[rows] *= self.discount
        self._visits[rows] += 1
        self._awaiting[rows] = 1  # the last visit's labels stay readable until the first new one arrives

    def observe(self, prompt_id: str, rewards: ArrayLike) -> None:
        """Adds labels of one prompt: rewards, scalar or (N,), in [0, 1].

        A reward r counts as r successes and 1 - r failures. Raises ValueError on NaN or a reward out of range, and
        then adds none of them.
        """
        labels = np.atleast_1d(np.asarray(rewards, dtype=np.float64))
        if labels.ndim != 1 or not ((labels >= 0) & (labels <= 1)).all():
            raise ValueError(f"rewards of prompt {prompt_id} must be (N,) in [0, 1]; got {rewards!r}")
        if not len(labels):
            return
        row = self._rows([prompt_id])[0]
        if self._awaiting[row]:
            self._awaiting[row] = self._last_successes[row] = self._last_trials[row] = 0
        passed = float(labels.sum())
        self._successes[row] += passed
        self._failures[row] += len(labels) - passed
        self._last_successes[row] += passed
        self._last_trials[row] += len(labels)
        self._stale = True

    def last_visit(self, prompt_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(successes (M,), trials (M,)) float64, raw and undiscounted, of each prompt's latest visit that has labels.

        Right after `begin_visit` that is still the previous visit. NaN and 0 where there are no labels.
        """
        trials = self._read(self._last_trials, prompt_ids, 0.0)
        successes = self._read(self._last_successes, prompt_ids, 0.0)
        return np.where(trials > 0, successes, np.nan), trials

    def visits(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Visits begun, (M,) int64."""
        return self._read(self._visits, prompt_ids, 0.0).astype(np.int64)

    def snapshot(self, prompt_ids: Sequence[str]) -> dict[str, Any]:
        """What a visit of these prompts may change, for `restore`."""
        columns = {name: self._read(getattr(self, f"_{name}"), prompt_ids, 0.0) for name in _COUNTERS}
        prior = (self.prior_alpha, self.prior_beta, self._stale)
        return {"prompt_ids": list(prompt_ids), "columns": columns, "prior": prior}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Undoes what has happened to the snapshot's prompts and to the prior since `snapshot`."""
        rows = self._rows(snapshot["prompt_ids"])
        for name, column in snapshot["columns"].items():
            getattr(self, f"_{name}")[rows] = column
        self.prior_alpha, self.prior_beta, self._stale = snapshot["prior"]

    def refit_prior(self) -> bool:
        """Fits the prior to the population by beta-binomial maximum likelihood over the latest visits' raw labels.

        Keeps the prior when fit_prior is False, nothing new was observed, fewer than PRIOR_PROMPTS prompts have labels,
        or the optimiser fails. Returns whether a new prior was set.
        """
        trials = self._last_trials[: len(self)]
        if not (self.fit_prior and self._stale) or np.count_nonzero(trials) < PRIOR_PROMPTS:
            return False
        self._stale = False
        seen = trials > 0
        fitted = fit_beta_binomial(
            self._last_successes[: len(self)][seen], trials[seen], start=(self.prior_alpha, self.prior_beta)
        )
        if fitted is None:
            return False
        self.prior_alpha, self.prior_beta = fitted
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and floats: json round trips it exactly."""
        state: dict[str, Any] = {
            "version": 1,
            "discount": self.discount,
            "fit_prior": self.fit_prior,
            "prior": [self.prior_alpha, self.prior_beta],
            "stale": self._stale,
            "prompt_ids": list(self._row),
        }
        for name in _COUNTERS:
            state[name] = getattr(self, f"_{name}")[: len(self)].tolist()
        return state

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Beliefs:
        """The beliefs that `to_dict` wrote; ValueError on another version or arrays that do not match."""
        if state.get("version") != 1:
            raise ValueError(f"beliefs of version {state.get('version')!r} cannot be read; this is version 1")
        beliefs = cls(state["discount"], state["prior"][0], state["prior"][1], state["fit_prior"])
        ids = state["prompt_ids"]
        rows = beliefs._rows(ids)
        for name in _COUNTERS:
            if len(state[name]) != len(ids) or len(beliefs) != len(ids):
                raise ValueError(f"beliefs are damaged: {name} has {len(state[name])} entries for {len(ids)} prompts")
            getattr(beliefs, f"_{name}")[rows] = state[name]
        beliefs._stale = bool(state["stale"])
        return beliefs

    def _read(self, column: np.ndarray, prompt_ids: Sequence[str], missing: float) -> np.ndarray:
        rows = np.fromiter((self._row.get(i, -1) for i in prompt_ids), np.int64, len(prompt_ids))
        out = np.full(len(rows), missing)
        out[rows >= 0] = column[rows[rows >= 0]]
        return out

    def _rows(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Rows of the prompts, made where missing, (M,) int64."""
        rows = np.fromiter((self._row.setdefault(i, len(self._row)) for i in prompt_ids), np.int64, len(prompt_ids))
        if len(self._row) > self._capacity:
            self._capacity = max(1024, 2 * self._capacity, len(self._row))
            for name in _COUNTERS:
                grown = np.zeros(self._capacity)
                old = getattr(self, f"_{name}")
                grown[: len(old)] = old
                setattr(self, f"_{name}", grown)
        return rows


def fit_beta_binomial(
    successes: np.ndarray, trials: np.ndarray, start: tuple[float, float] = (1.0, 1.0)
) -> tuple[float, float] | None:
    """Beta(a, b) that maximises the likelihood of the counts, a and b within PRIOR_BOUNDS; None if it cannot be found.

    successes (K,), may be fractional; trials (K,) > 0. log p = sum_i betaln(s_i + a, n_i - s_i + b) - betaln(a, b).
    """
    # a population has few distinct counts; graded rewards are rounded to keep it so
    pairs, times = np.unique(np.stack([np.round(successes, 2), trials]), axis=1, return_counts=True)
    s, f = pairs[0], np.maximum(pairs[1] - pairs[0], 0.0)

    def loss(logs: np.ndarray) -> float:
        a, b = np.exp(logs)
        return -float(times @ (betaln(s + a, f + b) - betaln(a, b))) / len(successes)

    best = None
    box = [tuple(np.log(PRIOR_BOUNDS))] * 2
    for guess in (start, (1.0, 1.0), (0.3, 0.6)):  # from afar the likelihood is nearly flat: more than one start
        at = np.log(np.clip(guess, *PRIOR_BOUNDS))
        found = minimize(loss, at, method="L-BFGS-B", bounds=box)
        if np.isfinite(found.fun) and np.isfinite(found.x).all() and (best is None or found.fun < best.fun - 1e-12):
            best = found
    return None if best is None else (float(np.exp(best.x[0])), float(np.exp(best.x[1])))


def calibration(predicted: ArrayLike, successes: ArrayLike, trials: ArrayLike, bins: int = 10) -> dict[str, Any]:
    """How well predicted success rates agree with labels that came after them.

    predicted (M,) in [0, 1] (NaN: left out); successes, trials (M,). Returns brier, the mean over rollouts of
    (label - predicted)^2 (NaN without rollouts), and per bin of width 1 / bins, (bins,) each: trials, predicted and
    observed success rate, weighted by trials (NaN where empty). Labels are counted as 0 or 1.
    """
    p, s, n = (np.asarray(x, dtype=np.float64) for x in (predicted, successes, trials))
    if not (p.ndim == 1 and p.shape == s.shape == n.shape):
        raise ValueError(f"predicted, successes, trials must be (M,) alike; got {p.shape}, {s.shape}, {n.shape}")
    keep = (n > 0) & ~np.isnan(p)
    p, s, n = p[keep], s[keep], n[keep]
    total = n.sum()
    brier = float((s * (1 - p) ** 2 + (n - s) * p**2).sum() / total) if total else float("nan")
    bin_ = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(bin_, n, bins)
    with np.errstate(invalid="ignore"):
        expected, observed = np.bincount(bin_, n * p, bins) / count, np.bincount(bin_, s, bins) / count
    return {"brier": brier, "trials": count, "predicted": expected, "observed": observed}
