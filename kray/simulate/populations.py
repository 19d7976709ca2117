"""True success rates of the simulated prompts: synthetic distributions, or those that a real run has observed.

A population is a function (prompts, rng) -> (prompts,) success rates in [0, 1]; every seed draws its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kray.errors import DataError
from kray.planner.priors import fit_beta_binomial

Population = Callable[[int, np.random.Generator], np.ndarray]


def logit_normal(prompts: int, rng: np.random.Generator) -> np.ndarray:
    """Draw logit p ~ N(-0.8, 2.6^2), and 8 % of prompts that never succeed."""
    p = _sigmoid(rng.normal(-0.8, 2.6, prompts))
    return np.where(rng.random(prompts) < 0.08, 0.0, p)


def u_shaped(prompts: int, rng: np.random.Generator) -> np.ndarray:
    """Draw 10 % below .003, 40 % .003-.05, 10 % .05-.3, 10 % .3-.9, 30 % above .9; log-uniform in the first three cells."""
    low = np.array([3e-4, 3e-3, 0.05, 0.3, 0.9])
    high = np.array([3e-3, 0.05, 0.3, 0.9, 0.999])
    cell = rng.choice(5, prompts, p=[0.1, 0.4, 0.1, 0.1, 0.3])
    u = rng.random(prompts)
    return np.where(cell < 3, low[cell] * (high[cell] / low[cell]) ** u, low[cell] + (high[cell] - low[cell]) * u)


def hard(prompts: int, rng: np.random.Generator) -> np.ndarray:
    """Draw logit p ~ N(-2, 2^2), and 25 % of prompts that never succeed."""
    p = _sigmoid(rng.normal(-2.0, 2.0, prompts))
    return np.where(rng.random(prompts) < 0.25, 0.0, p)


SHAPES: dict[str, Population] = {"logit_normal": logit_normal, "u_shaped": u_shaped, "hard": hard}


def find_population(name: str) -> Population:
    """Return a population.

    Args:
        name: one of SHAPES, a file or run folder (`read_counts`), or `mlflow:<run id>`.

    Raises:
        DataError: it does not exist, or holds no labels.
    """
    if name in SHAPES:
        return SHAPES[name]
    if name.startswith("mlflow:"):
        return seen_population(*_of_mlflow(name.removeprefix("mlflow:")))
    path = Path(name).expanduser()
    if not path.exists():
        raise DataError(f"--population {name} is neither one of {', '.join(SHAPES)} nor a file or run folder")
    successes, trials = read_counts(path)
    return seen_population(successes, trials)


def seen_population(successes: np.ndarray, trials: np.ndarray) -> Population:
    """Return the population of prompts like those that were observed.

    Each draw picks prompts (all once before any twice) and draws each rate from its posterior under the prior fitted to all of
    them, so that eight failures do not make a prompt impossible.

    Args:
        successes: (K,) of each prompt; the success rate where trials is infinite.
        trials: (K,); infinite where the rate is known.
    """
    known = np.isinf(trials)
    prior = None if known.all() else fit_beta_binomial(successes[~known], trials[~known])
    a, b = prior or (1.0, 1.0)

    def draw(prompts: int, rng: np.random.Generator) -> np.ndarray:
        whole, rest = divmod(prompts, len(trials))
        rows = np.concatenate([np.tile(np.arange(len(trials)), whole), rng.permutation(len(trials))[:rest]])
        n = np.where(known, 0, trials)[rows]
        s = np.where(known, 0, successes)[rows]
        return np.where(known[rows], successes[rows], rng.beta(a + s, b + n - s))

    return draw


def read_counts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the labels of a previous run.

    Args:
        path: a run folder, a checkpoint folder or its state.json, of which each prompt's latest visit counts; or a JSONL file
            with one prompt a line, a bare number or an object with `success_rate`, `group_success`, or `successes` and
            `trials`, or with one rollout a line, an object with `prompt_id` and `reward`.

    Returns:
        (successes (K,), trials (K,)) float64; trials are infinite where successes are success rates instead.

    Raises:
        DataError: nothing usable is there; the message names the file and line.
    """
    if path.is_dir():
        states = [path / "state.json"] if (path / "state.json").is_file() else sorted(path.glob("**/state.json"))
        if not states:
            raise DataError(f"{path}: no checkpoint here (no state.json)")
        path = states[-1]
    return _of_state(path) if path.name == "state.json" else _of_lines(path)


def _of_lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rates: list[float] = []
    counts: list[tuple[float, float]] = []
    rollouts: dict[str, list[float]] = {}
    with path.open() as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if isinstance(row, dict) and "trials" in row:
                    counts.append((float(row["successes"]), float(row["trials"])))
                    valid = 0 <= counts[-1][0] <= counts[-1][1] and counts[-1][1] >= 1
                elif isinstance(row, dict) and "prompt_id" in row and "reward" in row:
                    rollouts.setdefault(row["prompt_id"], []).append(float(row["reward"]))
                    valid = 0 <= rollouts[row["prompt_id"]][-1] <= 1
                else:
                    rates.append(float(_rate(row)))
                    valid = 0 <= rates[-1] <= 1
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{path}:{number}: not a success rate, counts or a rollout ({error!r})") from None
            if not valid:
                raise DataError(f"{path}:{number}: success rates and rewards lie in [0, 1], successes in [0, trials]")
    counts += [(sum(rewards), len(rewards)) for rewards in rollouts.values()]
    if not rates and not counts:
        raise DataError(f"{path}: no success rates")
    s = np.array(rates + [s for s, _ in counts], dtype=np.float64)
    return s, np.array([np.inf] * len(rates) + [n for _, n in counts], dtype=np.float64)


def _rate(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    for name in ("success_rate", "group_success", "p"):
        if name in row:
            return row[name]
    raise KeyError("success_rate")


def _of_state(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        state = json.loads(path.read_text())
        beliefs = (state.get("planner") or state)["beliefs"]
        s, n = (np.array(beliefs[key], dtype=np.float64) for key in ("last_successes", "last_trials"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: holds no beliefs of a planner ({error!r})") from None
    if not (n > 0).any():
        raise DataError(f"{path}: the run has seen no labels yet")
    return s[n > 0], n[n > 0]


def _of_mlflow(run_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the newest table beliefs/step-<n>.json of the run at MLFLOW_TRACKING_URI."""
    from kray.tracking.mlflow_store import newest_table

    table = newest_table(run_id, "beliefs")
    counts = [(row["successes"], row["trials"]) for row in table if row["trials"]]
    if not counts:
        raise DataError(f"mlflow:{run_id}: the run has seen no labels")
    s, n = np.array(counts, dtype=np.float64).T
    return s, n


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))
