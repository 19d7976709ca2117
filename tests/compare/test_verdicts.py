"""Rules that were fixed beforehand: what they call held, failed and undecided."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kray.compare.results import Results, Run
from kray.compare.stats import Interval
from kray.compare.verdicts import CLAIMS, FAILED, HELD, UNDECIDED, UNMEASURED, outcome, separates, verdicts


def run(method: str, seed: int, final: float, effective: float = 0.3) -> Run:
    curve = np.array([0.3, final])
    budgets = [8.0, 120.0] if method == "paper" else [8.0, 8.0]
    visit = {"ids": ["a", "b"], "budgets": budgets, "successes": [0, 1], "trials": [8, 8]}
    rates = np.array([[0.01, 0.9], [0.02 if method == "uniform" else 0.04, 0.9]])
    return Run(method, seed, np.array([0, 2]), curve, curve, curve, np.array([0, 32]), np.array([0, 90]),
               np.array([0.0, 3.0]), np.array([0.1, effective]), np.array([0.1, 0.3]), [visit, visit], rates,
               per_epoch=1.0)  # fmt: skip


def results(**finals: list[float]) -> Results:
    runs = {m: {s: run(m, s, x, 0.39 if m == "paper" else 0.3) for s, x in enumerate(f)} for m, f in finals.items()}
    return Results(SimpleNamespace(exact=True), runs, {})


def found(made: Results) -> dict[str, str]:
    return {verdict.claim: verdict.outcome for verdict in verdicts(made)}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.03, HELD), (-0.03, -0.01, FAILED), (-0.01, 0.03, UNDECIDED), (float("nan"), float("nan"), UNDECIDED)],
)
def test_an_outcome_is_where_the_whole_interval_lies(low, high, expected):
    assert outcome(Interval((low + high) / 2, low, high, 6), 0.0) == expected


def test_a_claim_that_fails_is_printed_as_failed_and_one_that_holds_as_held():
    made = results(
        uniform=[0.40, 0.41, 0.42], uniform_half=[0.38, 0.392, 0.40], uniform_twice=[0.45, 0.46, 0.47],
        paper=[0.41, 0.419, 0.43], kray=[0.43, 0.441, 0.45], exact_p=[0.44, 0.449, 0.46],
    )  # fmt: skip
    by_claim = found(made)
    judged = {c.text: by_claim[c.text] for c in CLAIMS}
    assert judged["The default is better than uniform"] == HELD
    assert judged["At least 2 points more accuracy than uniform (the paper: 2 to 4)"] == FAILED
    assert judged["The default with n is not below uniform with 2n (by more than 0.005)"] == FAILED
    assert judged["The default has at least 60 % of the gain of exact knowledge"] == HELD
    more = next(text for text in judged if text.startswith("At least 20 % more rollouts"))
    assert judged[more] == HELD  # .39 against .30, after the first epoch
    assert judged["The default is better than its loss weights on uniform budgets"] == UNMEASURED
    hard = next(text for text in judged if "hard held-out prompts" in text)
    assert judged[hard] == HELD  # .04 against .02
    assert separates(verdicts(made))


def test_one_seed_decides_nothing():
    made = results(uniform=[0.4], uniform_half=[0.3], uniform_twice=[0.5], kray=[0.6], exact_p=[0.7], paper=[0.1])
    assert set(found(made).values()) == {UNDECIDED, UNMEASURED}
    assert not separates(verdicts(made))


def test_a_setting_in_which_more_rollouts_do_not_help_is_said_not_to_separate():
    made = results(uniform=[0.40, 0.41], uniform_half=[0.42, 0.431], uniform_twice=[0.40, 0.409])
    assert not separates(verdicts(made))
