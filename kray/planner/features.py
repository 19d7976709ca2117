"""Prior of the success rate from features of a prompt, used only while it predicts better than the population's prior.

A prompt with features x has the prior Beta(k m, k (1 - m)), m = sigmoid(c + w x): beta-binomial regression, fitted by maximum
likelihood with a ridge on w. It is off by default (plan.prior_features): in trials a prompt's own few labels predicted better.
So every fit is compared: the regression and the plain population prior are fitted to half of the prompts, and the regression
is used only if its log-likelihood on the other half is higher by more than two standard errors.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import betaln, digamma, expit

from kray.planner.priors import fit_beta_binomial

# Prompts with features and labels below which nothing is fitted.
LEAST_PROMPTS = 100

# Most prompts that a fit uses: the latest that were offered.
MOST_PROMPTS = 20_000


class FeaturePrior:
    """Features of the prompts that were offered, and the regression on them.

    Attributes:
        active: whether the regression is used.
        gain: held-out log-likelihood over the plain prior's at the last fit, in nats per prompt; NaN before.
    """

    def __init__(self, ridge: float = 1.0):
        """Make a prior without prompts.

        Args:
            ridge: weight of |w|^2 / 2 in the loss, for features scaled to unit variance.
        """
        self.ridge = ridge
        self.active = False
        self.gain = float("nan")
        # row of beliefs -> features, the latest last
        self._known: dict[int, np.ndarray] = {}
        self._centre = self._scale = self._weights = np.zeros(0)

    def remember(self, rows: np.ndarray, features: ArrayLike) -> np.ndarray:
        """Store features of prompts.

        Args:
            rows: (M,) int64, the prompts' rows in the beliefs.
            features: (M, d) finite numbers.

        Returns:
            (M, d) float64.

        Raises:
            ValueError: another shape than before, NaN or infinity.
        """
        x = np.asarray(features, dtype=np.float64)
        width = len(next(iter(self._known.values()))) if self._known else None
        fits = x.ndim == 2 and len(x) == len(rows) and width in (None, x.shape[1])
        if not fits or not np.isfinite(x).all():
            raise ValueError(f"features must be ({len(rows)}, {width or 'd'}) and finite; got {x.shape}")
        for row, values in zip(rows.tolist(), x, strict=True):
            self._known.pop(row, None)
            self._known[row] = values
        while len(self._known) > MOST_PROMPTS:
            del self._known[next(iter(self._known))]
        return x

    def rows(self) -> np.ndarray:
        """Return the rows of the prompts whose features are known, (K,) int64."""
        return np.fromiter(self._known, np.int64, len(self._known))

    def refit(self, successes: np.ndarray, trials: np.ndarray) -> bool:
        """Fit the regression, and activate it if it predicts better than the plain prior.

        Args:
            successes: (K,) of the prompts of `rows()`.
            trials: (K,) of the same; 0: no labels.

        Returns:
            Whether it is active now.
        """
        self.active = False
        use = trials > 0
        if np.count_nonzero(use) < LEAST_PROMPTS:
            return False
        x, s, n = np.array(list(self._known.values()))[use], successes[use], trials[use]
        self._centre, self._scale = x.mean(0), np.maximum(x.std(0), 1e-9)
        x = np.column_stack([np.ones(len(x)), (x - self._centre) / self._scale])
        train = self.rows()[use] % 2 == 0
        held = ~train
        if min(np.count_nonzero(train), np.count_nonzero(held)) < LEAST_PROMPTS // 4:
            return False
        plain = fit_beta_binomial(s[train], n[train])
        weights = self._fit(x[train], s[train], n[train])
        if plain is None or weights is None:
            return False
        a, b = _shape(weights, x[held])
        without = _likelihood(np.array(plain[0]), np.array(plain[1]), s[held], n[held])
        better = _likelihood(a, b, s[held], n[held]) - without
        self.gain = float(better.mean())
        if self.gain <= 2 * float(better.std(ddof=1)) / np.sqrt(len(better)):
            return False
        whole = self._fit(x, s, n)
        self.active = whole is not None
        self._weights = weights if whole is None else whole
        return self.active

    def shape(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the priors (alpha (M,), beta (M,)) of prompts with these features (M, d); only while active."""
        assert self.active
        x = np.column_stack([np.ones(len(features)), (features - self._centre) / self._scale])
        return _shape(self._weights, x)

    def snapshot(self) -> dict[str, Any]:
        """Return all that changes, for `restore`."""
        return vars(self) | {"_known": dict(self._known)}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Undo what has happened since `snapshot`."""
        vars(self).update(snapshot)

    def to_dict(self) -> dict[str, Any]:
        """Return the state, which JSON stores exactly; features (K, d) are little-endian float64, compressed, in base64."""
        known = np.array(list(self._known.values()), dtype="<f8")
        return {
            "version": 1,
            "active": self.active,
            "gain": None if math.isnan(self.gain) else self.gain,
            "rows": list(self._known),
            "width": known.shape[1] if self._known else 0,
            "features": base64.b64encode(zlib.compress(known.tobytes())).decode(),
            "centre": self._centre.tolist(),
            "scale": self._scale.tolist(),
            "weights": self._weights.tolist(),
        }

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_dict` returned.

        Raises:
            ValueError: the version is unknown, or the features do not fit the rows.
        """
        if state.get("version") != 1:
            raise ValueError(f"a prior of version {state.get('version')!r} cannot be read; this is version 1")
        rows, width = state["rows"], int(state["width"])
        values = np.frombuffer(zlib.decompress(base64.b64decode(state["features"])), dtype="<f8")
        if len(values) != len(rows) * width or not np.isfinite(values).all():
            raise ValueError(
                f"a prior's features are damaged: {len(values)} numbers, {width} of {len(rows)} prompts each"
            )
        known = values.astype(np.float64).reshape(len(rows), width)
        self._known = {int(row): x for row, x in zip(rows, known, strict=True)}
        self.active = bool(state["active"])
        self.gain = float("nan") if state["gain"] is None else float(state["gain"])
        self._centre, self._scale, self._weights = (np.array(state[key]) for key in ("centre", "scale", "weights"))

    def _fit(self, x: np.ndarray, s: np.ndarray, n: np.ndarray) -> np.ndarray | None:
        """Return (1 + d + 1,): constant, weights and log k; None if the search fails."""
        f = n - s

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            m, k = expit(x @ theta[:-1]), float(np.exp(theta[-1]))
            m = np.clip(m, 1e-6, 1 - 1e-6)
            a, b = k * m, k * (1 - m)
            below = digamma(a + b + n) - digamma(a + b)
            da = digamma(a + s) - digamma(a) - below
            db = digamma(b + f) - digamma(b) - below
            slope = np.append(((da - db) * k * m * (1 - m)) @ x, float((da * a + db * b).sum()))
            slope[1:-1] -= self.ridge * theta[1:-1]
            value = float(_likelihood(a, b, s, n).sum()) - self.ridge * float(theta[1:-1] @ theta[1:-1]) / 2
            return -value / len(s), -slope / len(s)

        start = np.zeros(x.shape[1] + 1)
        box = [(-12.0, 12.0)] * x.shape[1] + [(np.log(0.1), np.log(200.0))]
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=box)
        return found.x if np.isfinite(found.fun) and np.isfinite(found.x).all() else None


def _shape(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    m, k = np.clip(expit(x @ theta[:-1]), 1e-6, 1 - 1e-6), float(np.exp(theta[-1]))
    return k * m, k * (1 - m)


def _likelihood(a: np.ndarray, b: np.ndarray, s: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the log-likelihood of each prompt's labels under Beta(a, b), up to a constant, (K,) nats."""
    return betaln(s + a, n - s + b) - betaln(a, b)
