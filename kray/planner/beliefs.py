"""What is believed about each prompt's success rate, from its own labels and a prior fitted to the population.

A belief is Beta(prior_alpha + S, prior_beta + F), S and F the prompt's successes and failures with old ones discounted.
The policy moves between visits, so a visit begins BEFORE it is planned: after `begin_visit` the plan reads a `posterior`
of discounted S and F, then `observe` adds the new labels at full weight. The first of them makes the discount last: a prompt
that was offered and passed over has not been visited, however often. Labels of one visit are never discounted against
each other. All state is in numpy arrays with one row per prompt seen, found by a dict.

The prior is fitted to the whole population, and, where visits begin with labels (source, difficulty), to each label's
prompts as well once there are PRIOR_PROMPTS of them; a prompt has the prior of its label, or the population's.
A graded reward r in [0, 1] counts as r successes and 1 - r failures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.plan_modes import PlanConfig
from kray.planner.prior_fits import AFAR, fit_beta_binomial, fit_persistence

GRID = 2.0**20  # discounted counts are whole numbers of 1 / GRID: labels then add up exactly, in any order
MOST = 2.0**32  # of anything counted for one prompt: up to here a float64 tells multiples of 1 / GRID apart
PRIOR_PROMPTS = 20  # prompts with rewards below which a population cannot be fitted

_COUNTERS = (
    "successes",
    "failures",
    "last_successes",
    "last_trials",
    "visits",
    "awaiting",
    "prior_successes",
    "prior_failures",
)
VERSION = 4  # of the saved state
_SINCE = {"prior_successes": 3, "prior_failures": 3}  # version of the saved state from which a counter is there


class Beliefs:
    """Discounted Beta posteriors by prompt id; empirical-Bayes prior.

    discount in [0, 1]: of successes and failures until `refit_prior` has fitted one of each (fit_discount=True) or for
    good (False); prior_alpha, prior_beta > 0: the prior until `refit_prior` has fitted one (fit_prior=True) or
    for good (False). ValueError names what is out of range.
    """

    _successes: np.ndarray  # discounted; all six (capacity,) float64
    _failures: np.ndarray
    _last_successes: np.ndarray  # raw, of the latest visit with labels
    _last_trials: np.ndarray
    _visits: np.ndarray  # those with labels
    _awaiting: np.ndarray  # 1 from begin_visit to the visit's first label
    _prior_successes: np.ndarray  # what was known when the latest visit with labels began, not yet discounted
    _prior_failures: np.ndarray

    def __init__(
        self,
        discount: float = PlanConfig.discount,
        prior_alpha: float = PlanConfig.prior_alpha,
        prior_beta: float = PlanConfig.prior_beta,
        fit_prior: bool = PlanConfig.fit_prior,
        fit_discount: bool = False,
    ):
        if not 0 <= discount <= 1:
            raise ValueError(f"discount must lie in [0, 1]; got {discount}")
        for name, x in (("prior_alpha", prior_alpha), ("prior_beta", prior_beta)):
            if not 0 < x < 1e6:
                raise ValueError(f"{name} must be positive and finite; got {x}")
        self.fit_prior, self.fit_discount = bool(fit_prior), bool(fit_discount)
        self.discounts = (float(discount), float(discount))  # of successes, of failures
        self.prior_alpha, self.prior_beta = float(prior_alpha), float(prior_beta)
        self._row: dict[str, int] = {}
        self._labels: dict[str, int] = {"": 0}  # prior label -> its number; "" is the population
        self._priors: dict[int, tuple[float, float]] = {}  # of labels with enough prompts
        self._label_of = np.zeros(0, dtype=np.int64)  # (capacity,)
        self._capacity = 0
        self._stale = False  # labels have come in since the prior was fitted
        self._fitted = False  # the population's prior has been fitted; until then it is the configured one
        for name in _COUNTERS:
            setattr(self, f"_{name}", np.zeros(0))

    def __len__(self) -> int:
        """Prompts seen."""
        return len(self._row)

    def posterior(
        self, prompt_ids: Sequence[str], prior: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(alpha (M,), beta (M,)) float64; the prior for prompts never seen, which stay unseen.

        Discounted where a visit has begun that has no labels yet. prior: (alpha (M,), beta (M,)) to use instead of the
        fitted ones.
        """
        rows = self._find(prompt_ids)
        if prior is None:
            priors = np.tile([self.prior_alpha, self.prior_beta], (len(self._labels), 1))
            for number, fitted in self._priors.items():
                priors[number] = fitted
            mine = priors[_at(self._label_of, rows)]
            prior = mine[:, 0], mine[:, 1]
        old = _at(self._awaiting, rows) > 0
        successes, failures = _at(self._successes, rows), _at(self._failures, rows)
        successes[old] = _discounted(successes[old], self.discounts[0])
        failures[old] = _discounted(failures[old], self.discounts[1])
        return prior[0] + successes, prior[1] + failures

    def begin_visit(self, prompt_ids: Sequence[str], labels: Sequence[str] | None = None) -> None:
        """Makes earlier rewards of these prompts old ones, to be discounted; called before a visit is planned.

        labels: whose prior each prompt has (its source, its difficulty), from now on. Raises ValueError on an id given
        twice and on labels of another number.
        """
        if len(set(prompt_ids)) != len(prompt_ids):
            raise ValueError("prompt_ids holds an id twice; one visit begins once")
        if labels is not None and len(labels) != len(prompt_ids):
            raise ValueError(f"labels must be one for each of {len(prompt_ids)} prompts; got {len(labels)}")
        rows = self.rows(prompt_ids)
        if labels is not None:
            self._label_of[rows] = [self._labels.setdefault(str(label), len(self._labels)) for label in labels]
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
        self.add(int(self.rows([prompt_id])[0]), float(labels.sum()), len(labels))

    def add(self, row: int, passed: float, trials: int) -> None:
        """`observe` for callers that know the prompt's row and have checked its rewards: their sum and their number."""
        if self._awaiting[row]:
            self._prior_successes[row], self._prior_failures[row] = self._successes[row], self._failures[row]
            self._successes[row] = _discounted(self._successes[row], self.discounts[0])
            self._failures[row] = _discounted(self._failures[row], self.discounts[1])
            self._visits[row] += 1
            self._awaiting[row] = self._last_successes[row] = self._last_trials[row] = 0
        self._successes[row] += passed
        self._failures[row] += trials - passed
        self._last_successes[row] += passed
        self._last_trials[row] += trials
        self._stale = True

    def last_visit(self, prompt_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(successes (M,), trials (M,)) float64, raw and undiscounted, of each prompt's latest visit that has labels.

        Right after `begin_visit` that is still the previous visit. NaN and 0 where there are no labels.
        """
        rows = self._find(prompt_ids)
        trials, successes = _at(self._last_trials, rows), _at(self._last_successes, rows)
        return np.where(trials > 0, successes, np.nan), trials

    def last_labels(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(successes, trials) of the latest visit with labels, by row, (K,) each; 0 trials: none."""
        return self._last_successes[rows], self._last_trials[rows]

    def known(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Which of the prompts have a row, (M,) bool."""
        return self._find(prompt_ids) >= 0

    def visits(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Visits with labels, (M,) int64."""
        return _at(self._visits, self._find(prompt_ids)).astype(np.int64)

    def snapshot(self, prompt_ids: Sequence[str]) -> dict[str, Any]:
        """What a visit of these prompts may change, for `restore`."""
        rows = self._find(prompt_ids)
        columns = {name: _at(getattr(self, f"_{name}"), rows) for name in _COUNTERS}
        prior = (self.prior_alpha, self.prior_beta, self._stale, self._fitted, dict(self._priors), self.discounts)
        return {"prompt_ids": list(prompt_ids), "columns": columns, "prior": prior}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Undoes what has happened to the snapshot's prompts and to the prior since `snapshot`."""
        rows = self.rows(snapshot["prompt_ids"])
        for name, column in snapshot["columns"].items():
            getattr(self, f"_{name}")[rows] = column
        self.prior_alpha, self.prior_beta, self._stale, self._fitted, self._priors, self.discounts = snapshot["prior"]

    def refit_prior(self) -> bool:
        """Fits the prior to the population by beta-binomial maximum likelihood over the latest visits' raw rewards.

        With fit_discount the prior and the discounts are fitted together (fit_persistence), which says how well a prompt's
        own labels have foretold its next ones. Keeps what it has when fit_prior is False, nothing new was observed, fewer
        than PRIOR_PROMPTS prompts have rewards, or the optimiser fails; the same for each label. Returns whether a new
        prior of the population was set.
        """
        trials = self._last_trials[: len(self)]
        seen = trials > 0
        if not (self.fit_prior and self._stale) or np.count_nonzero(seen) < PRIOR_PROMPTS:
            return False
        self._stale = False
        successes, trials, labels = (
            self._last_successes[: len(self)][seen],
            trials[seen],
            self._label_of[: len(self)][seen],
        )
        enough = np.bincount(labels, minlength=len(self._labels)) >= PRIOR_PROMPTS
        population = (self.prior_alpha, self.prior_beta)
        for number in (np.flatnonzero(enough[1:]) + 1).tolist():
            mine = labels == number
            known = self._priors.get(number)
            starts = (known, population) if known else (population, *AFAR)
            found = fit_beta_binomial(successes[mine], trials[mine], *starts)
            if found is not None:
                self._priors[number] = found
        if self.fit_discount:
            return self._refit_discounts(seen)
        fitted = fit_beta_binomial(successes, trials, population, *AFAR)
        if fitted is None:
            return False
        self.prior_alpha, self.prior_beta = fitted
        self._fitted = True
        return True

    def _refit_discounts(self, seen: np.ndarray) -> bool:
        """seen (prompts,) bool: those with rewards. Whether the population's prior and discounts were set anew."""
        rows = np.flatnonzero(seen)
        before = (self.prior_alpha, self.prior_beta, *self.discounts)
        known = self._prior_successes[rows], self._prior_failures[rows]
        learned = fit_persistence(*known, self._last_successes[rows], self._last_trials[rows], before)
        if learned is None:
            return False
        self.prior_alpha, self.prior_beta = learned[:2]
        self.discounts = learned[2:]
        self._fitted = True
        return True

    def priors(self) -> dict[str, tuple[float, float]]:
        """(alpha, beta) of the population, under "", and of each label that has its own."""
        names = {number: label for label, number in self._labels.items()}
        own = {names[number]: prior for number, prior in self._priors.items()}
        return {"": (self.prior_alpha, self.prior_beta)} | own

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and floats: json round trips it exactly."""
        state: dict[str, Any] = {
            "version": VERSION,
            "discounts": list(self.discounts),
            "fit_discount": self.fit_discount,
            "fit_prior": self.fit_prior,
            "prior": [self.prior_alpha, self.prior_beta],
            "stale": self._stale,
            "fitted": self._fitted,
            "prompt_ids": list(self._row),
            "labels": list(self._labels),
            "label_of": self._label_of[: len(self)].tolist(),
            "priors": [[number, *prior] for number, prior in self._priors.items()],
        }
        for name in _COUNTERS:
            state[name] = getattr(self, f"_{name}")[: len(self)].tolist()
        return state

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Beliefs:
        """The beliefs that `to_dict` wrote; ValueError on another version or numbers that cannot be beliefs."""
        version = state.get("version")
        if not (isinstance(version, int) and 1 <= version <= VERSION):
            raise ValueError(f"beliefs of version {version!r} cannot be read; this is version {VERSION}")
        discounts = state.get("discounts") or [state["discount"]] * 2
        prior_alpha, prior_beta = state["prior"]
        beliefs = cls(discounts[0], prior_alpha, prior_beta, state["fit_prior"], state.get("fit_discount", False))
        beliefs.discounts = (float(discounts[0]), float(discounts[1]))
        if not 0 <= beliefs.discounts[1] <= 1:
            raise ValueError(f"beliefs are damaged: discounts must lie in [0, 1]; got {list(discounts)}")
        ids = state["prompt_ids"]
        rows = beliefs.rows(ids)
        beliefs._labels = {label: number for number, label in enumerate(state.get("labels", [""]))}
        beliefs._priors = {int(number): (a, b) for number, a, b in state.get("priors", [])}
        beliefs._label_of[rows] = state.get("label_of", 0)
        for name in _COUNTERS:
            if version < _SINCE.get(name, 0):
                continue
            if len(state[name]) != len(ids) or len(beliefs) != len(ids):
                raise ValueError(f"beliefs are damaged: {name} has {len(state[name])} entries for {len(ids)} prompts")
            column = np.asarray(state[name], dtype=np.float64)
            if column.ndim != 1 or not ((column >= 0) & (column <= MOST)).all():
                raise ValueError(f"beliefs are damaged: {name} must hold numbers in [0, {MOST:.0f}]")
            getattr(beliefs, f"_{name}")[rows] = column
        if version < 4:  # a visit discounted when it began: what was known before the last labels is not
            begun = beliefs._awaiting[rows] > 0
            for column in (
                beliefs._last_successes,
                beliefs._last_trials,
                beliefs._prior_successes,
                beliefs._prior_failures,
            ):
                column[rows[begun]] = 0
            beliefs._awaiting[rows] = 0
        beliefs._stale = bool(state["stale"])
        beliefs._fitted = bool(state.get("fitted", beliefs.fit_prior))  # older states do not tell
        return beliefs

    def adopt(self, settings: Beliefs) -> None:
        """Goes on with the settings of other beliefs: what was fitted stays where it is still to be fitted, all else is theirs.

        For a resume with another configuration than the one that these beliefs were learned under.
        """
        if not (settings.fit_discount and self.fit_discount and self._fitted):
            self.discounts = settings.discounts
        if not (settings.fit_prior and self._fitted):
            self.prior_alpha, self.prior_beta = settings.prior_alpha, settings.prior_beta
        if not settings.fit_prior:
            self._priors, self._fitted = {}, False
        self.fit_prior, self.fit_discount = settings.fit_prior, settings.fit_discount

    def relabel(self, labels: Mapping[str, str] | None) -> None:
        """Says anew whose prior each prompt seen has: prompt id -> label; None: all share the population's.

        Labels without prompts lose their prior.
        """
        names = [""] * len(self) if labels is None else [labels.get(prompt_id, "") for prompt_id in self._row]
        numbers = [self._labels.setdefault(name, len(self._labels)) for name in names]
        self._label_of[: len(self)] = numbers
        self._priors = {number: prior for number, prior in self._priors.items() if number in set(numbers)}

    def _find(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Rows of the prompts, -1 for those never seen, (M,) int64."""
        get = self._row.get
        return np.fromiter((get(i, -1) for i in prompt_ids), np.int64, len(prompt_ids))

    def rows(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Rows of the prompts, made where missing, (M,) int64; a row is for good."""
        rows = np.fromiter((self._row.setdefault(i, len(self._row)) for i in prompt_ids), np.int64, len(prompt_ids))
        if len(self._row) > self._capacity:
            self._capacity = max(1024, 2 * self._capacity, len(self._row))
            for name in _COUNTERS:
                grown = np.zeros(self._capacity)
                old = getattr(self, f"_{name}")
                grown[: len(old)] = old
                setattr(self, f"_{name}", grown)
            self._label_of = np.concatenate([self._label_of, np.zeros(self._capacity - len(self._label_of), np.int64)])
        return rows


def _discounted(counts: Any, discount: float) -> Any:
    return np.round(counts * (discount * GRID)) / GRID


def _at(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """column[rows], 0 where the row is -1, (M,)."""
    out = np.zeros(len(rows), dtype=column.dtype)
    seen = rows >= 0
    out[seen] = column[rows[seen]]
    return out


def calibration(predicted: ArrayLike, successes: ArrayLike, trials: ArrayLike, bins: int = 10) -> dict[str, Any]:
    """How well predicted success rates agree with labels that came after them.

    predicted (M,) in [0, 1]; successes, trials (M,); what is not finite is left out. Returns brier, the mean over rollouts of
    (label - predicted)^2 (NaN without rollouts), and per bin of width 1 / bins, (bins,) each: trials, predicted and
    observed success rate, weighted by trials (NaN where empty). Labels are counted as 0 or 1.
    """
    p, s, n = (np.asarray(x, dtype=np.float64) for x in (predicted, successes, trials))
    if not (p.ndim == 1 and p.shape == s.shape == n.shape):
        raise ValueError(f"predicted, successes, trials must be (M,) alike; got {p.shape}, {s.shape}, {n.shape}")
    keep = (n > 0) & np.isfinite(p) & np.isfinite(s) & np.isfinite(n)
    p, s, n = p[keep], s[keep], n[keep]
    total = n.sum()
    brier = float((s * (1 - p) ** 2 + (n - s) * p**2).sum() / total) if total else float("nan")
    bin_ = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(bin_, n, bins)
    with np.errstate(invalid="ignore"):
        expected, observed = np.bincount(bin_, n * p, bins) / count, np.bincount(bin_, s, bins) / count
    return {"brier": brier, "trials": count, "predicted": expected, "observed": observed}
