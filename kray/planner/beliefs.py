"""Beliefs about each prompt's success rate, from its own labels and a prior fitted to the population (empirical Bayes).

A belief is Beta(prior_alpha + S, prior_beta + F) with S and F the prompt's successes and failures, old ones discounted. The
policy changes between visits, so a visit begins BEFORE it is planned: after `begin_visit` the plan reads a `posterior` of
discounted S and F, then `observe` adds the new labels at full weight. The first of them makes the discount permanent: a
prompt that was offered and passed over has not been visited, however often. Labels of one visit are never discounted against
each other. A graded reward r in [0, 1] counts as r successes and 1 - r failures.

The prior is fitted to the whole population and, where visits begin with labels (source, difficulty), to each label's prompts
as well once there are PRIOR_PROMPTS of them; a prompt has the prior of its label, or the population's.

All state is in numpy arrays with one row per prompt seen; a dict gives each prompt's row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.plan_modes import PlanConfig
from kray.planner.columns import at_rows, discounted, read_counts
from kray.planner.priors import DEFAULT_STARTS, fit_beta_binomial, fit_persistence

# Prompts with rewards below which the prior of a population is not fitted.
PRIOR_PROMPTS = 20

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
# Version of the saved state.
VERSION = 4

# First version of the saved state that has a counter, where that is not 1.
_SINCE = {"prior_successes": 3, "prior_failures": 3}


class Beliefs:
    """Discounted Beta posteriors by prompt id, on an empirical-Bayes prior."""

    # All (capacity,) float64. Discounted counts:
    _successes: np.ndarray
    _failures: np.ndarray
    # Raw counts of the latest visit with labels:
    _last_successes: np.ndarray
    _last_trials: np.ndarray
    # Visits with labels:
    _visits: np.ndarray
    # 1 from begin_visit to the visit's first label:
    _awaiting: np.ndarray
    # Counts known when the latest visit with labels began, not yet discounted:
    _prior_successes: np.ndarray
    _prior_failures: np.ndarray

    def __init__(
        self,
        discount: float = PlanConfig.discount,
        prior_alpha: float = PlanConfig.prior_alpha,
        prior_beta: float = PlanConfig.prior_beta,
        fit_prior: bool = PlanConfig.fit_prior,
        fit_discount: bool = False,
    ):
        """Make beliefs without prompts.

        Args:
            discount: in [0, 1], factor on successes and failures at each new visit; the start value where fit_discount.
            prior_alpha: > 0, of the prior; the start value where fit_prior.
            prior_beta: > 0, of the prior; the start value where fit_prior.
            fit_prior: whether `refit_prior` fits the prior.
            fit_discount: whether it fits one discount of successes and one of failures as well.

        Raises:
            ValueError: a setting is out of range; the message names it.
        """
        if not 0 <= discount <= 1:
            raise ValueError(f"discount must lie in [0, 1]; got {discount}")
        for name, x in (("prior_alpha", prior_alpha), ("prior_beta", prior_beta)):
            if not 0 < x < 1e6:
                raise ValueError(f"{name} must be positive and finite; got {x}")
        self.fit_prior, self.fit_discount = bool(fit_prior), bool(fit_discount)
        # of successes, of failures
        self.discounts = (float(discount), float(discount))
        self.prior_alpha, self.prior_beta = float(prior_alpha), float(prior_beta)
        self._row: dict[str, int] = {}
        # prior label -> its number; "" is the population
        self._labels: dict[str, int] = {"": 0}
        # number of each label with enough prompts -> (alpha, beta)
        self._priors: dict[int, tuple[float, float]] = {}
        # (capacity,) label number of each row
        self._label_of = np.zeros(0, dtype=np.int64)
        self._capacity = 0
        # whether labels have come in since the prior was fitted
        self._stale = False
        # whether the population's prior has been fitted; until then it is the configured one
        self._fitted = False
        for name in _COUNTERS:
            setattr(self, f"_{name}", np.zeros(0))

    def __len__(self) -> int:
        """Return the number of prompts seen."""
        return len(self._row)

    def posterior(
        self, prompt_ids: Sequence[str], prior: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the beliefs, discounted where a visit has begun that has no labels yet.

        Args:
            prompt_ids: M of them; a prompt never seen has the prior, and stays unseen.
            prior: (alpha (M,), beta (M,)) to use instead of the fitted priors.

        Returns:
            (alpha (M,), beta (M,)) float64.
        """
        return self.posterior_at(self.find(prompt_ids), prior=prior)

    def posterior_at(
        self,
        rows: np.ndarray,
        labels: np.ndarray | None = None,
        prior: tuple[np.ndarray, np.ndarray] | None = None,
        visiting: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return `posterior` by rows.

        Args:
            rows: (M,) int64, -1 for a prompt never seen.
            labels: (M,) int64 of `label_numbers`; None: the label of each prompt's latest visit.
            prior: as in `posterior`.
            visiting: discount as `begin_visit` of all these prompts would.

        Returns:
            (alpha (M,), beta (M,)) float64.
        """
        if prior is None:
            priors = np.tile([self.prior_alpha, self.prior_beta], (len(self._labels), 1))
            for number, fitted in self._priors.items():
                priors[number] = fitted
            mine = priors[at_rows(self._label_of, rows) if labels is None else labels]
            prior = mine[:, 0], mine[:, 1]
        successes, failures = at_rows(self._successes, rows), at_rows(self._failures, rows)
        if visiting:
            successes, failures = discounted(successes, self.discounts[0]), discounted(failures, self.discounts[1])
        else:
            old = at_rows(self._awaiting, rows) > 0
            successes[old] = discounted(successes[old], self.discounts[0])
            failures[old] = discounted(failures[old], self.discounts[1])
        return prior[0] + successes, prior[1] + failures

    def label_numbers(self, labels: Sequence[str]) -> np.ndarray:
        """Return the number of each label, (M,) int64, for `posterior_at`. A label's number never changes."""
        return np.array([self._labels.setdefault(str(label), len(self._labels)) for label in labels], dtype=np.int64)

    def begin_visit(self, prompt_ids: Sequence[str], labels: Sequence[str] | None = None) -> None:
        """Begin a visit, before it is planned: earlier rewards of these prompts become old ones, to be discounted.

        Args:
            prompt_ids: M of them.
            labels: M names of the groups whose prior each prompt has from now on (its source, its difficulty).

        Raises:
            ValueError: an id is given twice, or there are not M labels.
        """
        if len(set(prompt_ids)) != len(prompt_ids):
            raise ValueError("prompt_ids holds an id twice; one visit begins once")
        if labels is not None and len(labels) != len(prompt_ids):
            raise ValueError(f"labels must be one for each of {len(prompt_ids)} prompts; got {len(labels)}")
        rows = self.rows(prompt_ids)
        if labels is not None:
            self._label_of[rows] = self.label_numbers(labels)
        # the last visit's labels stay readable until the first new one arrives
        self._awaiting[rows] = 1

    def observe(self, prompt_id: str, rewards: ArrayLike) -> None:
        """Add labels of one prompt.

        Args:
            prompt_id: of any prompt, also one not seen before.
            rewards: scalar or (N,) in [0, 1]; a reward r counts as r successes and 1 - r failures.

        Raises:
            ValueError: a reward is NaN or out of range; then none is added.
        """
        labels = np.atleast_1d(np.asarray(rewards, dtype=np.float64))
        if labels.ndim != 1 or not ((labels >= 0) & (labels <= 1)).all():
            raise ValueError(f"rewards of prompt {prompt_id} must be (N,) in [0, 1]; got {rewards!r}")
        if not len(labels):
            return
        self.add(int(self.rows([prompt_id])[0]), float(labels.sum()), len(labels))

    def add(self, row: int, passed: float, trials: int) -> None:
        """Add checked labels of the prompt in `row`: the sum of their rewards and their number."""
        if self._awaiting[row]:
            self._prior_successes[row], self._prior_failures[row] = self._successes[row], self._failures[row]
            self._successes[row] = discounted(self._successes[row], self.discounts[0])
            self._failures[row] = discounted(self._failures[row], self.discounts[1])
            self._visits[row] += 1
            self._awaiting[row] = self._last_successes[row] = self._last_trials[row] = 0
        self._successes[row] += passed
        self._failures[row] += trials - passed
        self._last_successes[row] += passed
        self._last_trials[row] += trials
        self._stale = True

    def last_visit(self, prompt_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (successes (M,), trials (M,)) float64, raw, of each prompt's latest visit that has labels.

        Right after `begin_visit` that is still the previous visit. NaN and 0 where there are no labels.
        """
        rows = self.find(prompt_ids)
        trials, successes = at_rows(self._last_trials, rows), at_rows(self._last_successes, rows)
        return np.where(trials > 0, successes, np.nan), trials

    def last_labels(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `last_visit` by rows (K,), with 0 successes and 0 trials where there are no labels."""
        return self._last_successes[rows], self._last_trials[rows]

    def known(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Return which of the prompts have been seen, (M,) bool."""
        return self.find(prompt_ids) >= 0

    def visits(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Return each prompt's number of visits with labels, (M,) int64."""
        return at_rows(self._visits, self.find(prompt_ids)).astype(np.int64)

    def snapshot(self, prompt_ids: Sequence[str]) -> dict[str, Any]:
        """Return what a visit of these prompts may change, for `restore`."""
        rows = self.find(prompt_ids)
        columns = {name: at_rows(getattr(self, f"_{name}"), rows) for name in _COUNTERS}
        prior = (self.prior_alpha, self.prior_beta, self._stale, self._fitted, dict(self._priors), self.discounts)
        return {"prompt_ids": list(prompt_ids), "columns": columns, "prior": prior}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Undo what has happened to the snapshot's prompts and to the prior since `snapshot`."""
        rows = self.rows(snapshot["prompt_ids"])
        for name, column in snapshot["columns"].items():
            getattr(self, f"_{name}")[rows] = column
        self.prior_alpha, self.prior_beta, self._stale, self._fitted, self._priors, self.discounts = snapshot["prior"]

    def refit_prior(self) -> bool:
        """Fit the prior to the population by beta-binomial maximum likelihood over the raw rewards of the latest visits.

        With fit_discount the prior and the discounts are fitted together (`fit_persistence`), by how well a prompt's own
        labels have predicted its next ones. Nothing changes where fit_prior is False, nothing new was observed, fewer than
        PRIOR_PROMPTS prompts have rewards, or the optimiser fails; the same holds for each label.

        Returns:
            Whether a new prior of the population was set.
        """
        trials = self._last_trials[: len(self)]
        seen = trials > 0
        if not (self.fit_prior and self._stale) or np.count_nonzero(seen) < PRIOR_PROMPTS:
            return False
        self._stale = False
        rows = np.flatnonzero(seen)
        successes, trials, labels = self._last_successes[rows], trials[rows], self._label_of[rows]
        enough = np.bincount(labels, minlength=len(self._labels)) >= PRIOR_PROMPTS
        population = (self.prior_alpha, self.prior_beta)
        for number in (np.flatnonzero(enough[1:]) + 1).tolist():
            mine = labels == number
            known = self._priors.get(number)
            starts = (known, population) if known else (population, *DEFAULT_STARTS)
            found = fit_beta_binomial(successes[mine], trials[mine], *starts)
            if found is not None:
                self._priors[number] = found
        if self.fit_discount:
            return self._refit_discounts(rows)
        fitted = fit_beta_binomial(successes, trials, population, *DEFAULT_STARTS)
        if fitted is None:
            return False
        self.prior_alpha, self.prior_beta = fitted
        self._fitted = True
        return True

    def _refit_discounts(self, rows: np.ndarray) -> bool:
        """Fit the population's prior and the discounts to the prompts of `rows`; return whether they were set."""
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
        """Return (alpha, beta) of the population, under "", and of each label that has its own prior."""
        names = {number: label for label, number in self._labels.items()}
        own = {names[number]: prior for number, prior in self._priors.items()}
        return {"": (self.prior_alpha, self.prior_beta)} | own

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain lists and floats, which JSON stores exactly."""
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
        """Restore the beliefs that `to_dict` of this or an older version wrote.

        Raises:
            ValueError: the version is unknown, or the numbers cannot be beliefs.
        """
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
        if len(beliefs) != len(ids):
            raise ValueError(f"beliefs are damaged: {len(ids)} prompts, of which {len(beliefs)} differ")
        beliefs._labels = {label: number for number, label in enumerate(state.get("labels", [""]))}
        beliefs._priors = {int(number): (a, b) for number, a, b in state.get("priors", [])}
        beliefs._label_of[rows] = state.get("label_of", 0)
        for name in _COUNTERS:
            if version < _SINCE.get(name, 0):
                continue
            getattr(beliefs, f"_{name}")[rows] = read_counts(name, state[name], len(ids))
        if version < 4:
            # a visit discounted when it began: the counts before the last labels are not known
            begun = rows[beliefs._awaiting[rows] > 0]
            for name in ("last_successes", "last_trials", "prior_successes", "prior_failures"):
                getattr(beliefs, f"_{name}")[begun] = 0
            beliefs._awaiting[rows] = 0
        beliefs._stale = bool(state["stale"])
        # older states lack "fitted"
        beliefs._fitted = bool(state.get("fitted", beliefs.fit_prior))
        return beliefs

    def adopt(self, settings: Beliefs) -> None:
        """Take over the settings of other beliefs, for a resume under another configuration.

        Fitted priors and discounts stay where `settings` fits them too; everything else becomes that of `settings`.
        """
        if not (settings.fit_discount and self.fit_discount and self._fitted):
            self.discounts = settings.discounts
        if not (settings.fit_prior and self._fitted):
            self.prior_alpha, self.prior_beta = settings.prior_alpha, settings.prior_beta
        if not settings.fit_prior:
            self._priors, self._fitted = {}, False
        self.fit_prior, self.fit_discount = settings.fit_prior, settings.fit_discount

    def relabel(self, labels: Mapping[str, str] | None) -> None:
        """Set again which label's prior each prompt seen has. Labels without prompts lose their prior.

        Args:
            labels: prompt id -> label; None: all prompts share the population's prior.
        """
        names = [""] * len(self) if labels is None else [labels.get(prompt_id, "") for prompt_id in self._row]
        numbers = [self._labels.setdefault(name, len(self._labels)) for name in names]
        self._label_of[: len(self)] = numbers
        self._priors = {number: prior for number, prior in self._priors.items() if number in set(numbers)}

    def find(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Return the rows of the prompts, -1 for those never seen, (M,) int64."""
        get = self._row.get
        return np.fromiter((get(i, -1) for i in prompt_ids), np.int64, len(prompt_ids))

    def rows(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Return the rows of the prompts, made where missing, (M,) int64. A prompt's row never changes."""
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
