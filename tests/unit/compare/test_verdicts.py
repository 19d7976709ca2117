"""Rules that were fixed beforehand: what they call held, failed and undecided."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kray.compare.costs import FlopsModel, Work
from kray.compare.page import cards
from kray.compare.results import Results, Run
from kray.compare.rules import FAILED, HELD, NEVER, UNDECIDED, UNMEASURED, decided, needed_share, outcome
from kray.compare.stats import Interval, holm, interval
from kray.compare.summary import finite
from kray.compare.teaching_claims import TEACHING_CLAIMS
from kray.compare.verdicts import CLAIMS, line, separates, verdicts


def run(method: str, seed: int, final: float, effective: float = 0.3) -> Run:
    curve = np.array([0.3, final])
    steps = np.array([0.0, 2.0])
    work = Work(16 * steps, 2 * steps, 16 * steps * (2 if method == "kray" else 1), 2 * steps, 0 * steps, 0 * steps)
    budgets = [8.0, 120.0] if method == "paper" else [8.0, 8.0]
    visit = {"ids": ["a", "b"], "budgets": budgets, "successes": [0, 1], "trials": [8, 8]}
    rates = np.array([[0.01, 0.9], [0.02 if method == "uniform" else 0.04 + 1e-4 * seed, 0.9]])
    effective += 1e-4 * seed * (method != "uniform")
    return Run(method, seed, np.array([0, 2]), curve, curve, curve, np.array([0, 32]), np.array([0, 90]),
               np.array([0.0, 3.0]), np.array([0.1, effective]), np.array([0.1, 0.3]), [visit, visit], rates,
               per_epoch=1.0, work=work, eval_entropy=np.array([0.4, 0.2 + 1e-3 * final]))  # fmt: skip


def results(**finals: list[float]) -> Results:
    runs = {m: {s: run(m, s, x, 0.39 if m == "paper" else 0.3) for s, x in enumerate(f)} for m, f in finals.items()}
    return Results(SimpleNamespace(exact=True, flops=FlopsModel()), runs, {})


def found(made: Results, of: str = "outcome") -> dict[str, str]:
    return {verdict.claim: getattr(verdict, of) for verdict in verdicts(made)}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.03, HELD), (-0.03, -0.01, FAILED), (-0.01, 0.03, UNDECIDED), (float("nan"), float("nan"), UNDECIDED)],
)
def test_an_outcome_is_where_the_whole_interval_lies(low, high, expected):
    assert outcome(Interval((low + high) / 2, low, high, 6), 0.0) == expected


def test_failed_and_held_claims_are_printed_as_such():
    made = results(
        uniform=[0.40, 0.41, 0.42], uniform_half=[0.38, 0.392, 0.40], uniform_twice=[0.45, 0.4605, 0.47],
        paper=[0.41, 0.419, 0.43], kray=[0.43, 0.441, 0.45], exact_p=[0.44, 0.449, 0.46],
        static_2x=[0.43, 0.441, 0.45],
    )  # fmt: skip
    by_claim = found(made)
    judged = {c.text: by_claim[c.text] for c in CLAIMS}
    assert judged["The default is better than uniform"] == HELD
    assert judged["At least 2 points more accuracy than uniform (the paper: 2 to 4)"] == FAILED
    assert judged["The default with n is not below uniform with 2n (by more than 0.005)"] == FAILED
    assert judged["The knapsack over twice as many prompts has at least 60 % of the gain of exact knowledge"] == HELD
    more = next(text for text in judged if text.startswith("At least 20 % more rollouts"))
    assert judged[more] == HELD  # .39 against .30, after the first epoch
    assert (
        judged["The knapsack over twice as many prompts is better than its loss weights on uniform budgets"]
        == UNMEASURED
    )
    hard = next(text for text in judged if "hard held-out prompts" in text)
    assert judged[hard] == HELD  # .04 against .02
    assert separates(verdicts(made))


SPREAD = [0.0, 0.001, -0.002, 0.003]  # of one method's seeds


def test_a_claim_that_its_interval_holds_may_be_undecided():
    base = np.array([0.40, 0.41, 0.42, 0.43])
    near = base + np.array([0.004, 0.012, 0.006, 0.010])  # p .017 against uniform: alone that is enough
    made = results(uniform=base, uniform_half=base - 0.1 + SPREAD, uniform_twice=near, kray=near + SPREAD,
                   exact_p=base + np.array([-0.01, 0.02, 0.01, -0.02]), paper=base + SPREAD)  # fmt: skip
    claim = "Twice the rollouts are better than n: uniform"
    verdict = next(v for v in verdicts(made) if v.claim == claim)
    assert (verdict.alone, verdict.outcome) == (HELD, UNDECIDED)
    assert verdict.p < 0.05 < verdict.p_holm
    told = line(verdict)
    assert "with Holm" in told
    assert "held by its own interval" in told
    page = cards(verdicts(made))
    assert "held by its own interval" in page
    assert "with Holm" in page
    assert found(made)["Half the rollouts are worse than n: uniform"] == HELD
    assert not separates(verdicts(made))


def test_equal_differences_decide_nothing():
    made = results(uniform=[0.40, 0.41], kray=[0.50, 0.51], uniform_half=[0.3, 0.31], uniform_twice=[0.6, 0.61])
    judged = {v.claim: v for v in verdicts(made)}
    verdict = judged["The default is better than uniform"]
    assert (verdict.outcome, verdict.alone, verdict.interval) == (UNDECIDED, UNDECIDED, "no spread in 2 seeds")
    assert "no spread in 2 seeds" in line(verdict)
    assert finite({"p": verdict.p, "p_holm": verdict.p_holm}) == {"p": None, "p_holm": None}
    assert not separates(list(judged.values()))


def test_one_claim_alone_is_judged_by_its_interval():
    numbers = [0.01, 0.02, 0.015, 0.012]
    found = interval(numbers)
    for least in (0.0, 0.01, 0.014, 0.05):
        assert decided(found, least, holm([found.p_value(least)])[0]) == outcome(found, least)


@pytest.mark.parametrize("seeds", [2, 3, 6])
@pytest.mark.parametrize("step", [0.0, 0.5])  # numbers as they come, and counts of few samples
def test_few_studies_of_nothing_hold_a_claim(seeds, step):
    rng = np.random.default_rng(seeds)
    claims, studies = 16, 800
    lucky = {"alone": 0, "holm": 0}
    for _ in range(studies):
        drawn = rng.normal(size=(claims + 1, seeds))
        drawn = np.round(drawn / step) * step if step else drawn
        spans = [interval(x - drawn[0]) for x in drawn[1:]]  # all against one baseline, as in a study
        adjusted = holm([span.p_value(0.0) for span in spans])
        lucky["alone"] += any(outcome(span, 0.0) == HELD for span in spans)
        lucky["holm"] += any(decided(span, 0.0, p) == HELD for span, p in zip(spans, adjusted, strict=True))
    assert lucky["holm"] <= 0.05 * studies
    assert lucky["alone"] > 2 * lucky["holm"]


def test_few_whole_studies_of_equal_methods_hold_a_claim():
    """Through every claim of a study; those that are true of equal methods ("not below") are left out."""
    rng = np.random.default_rng(0)
    methods = sorted({name for claim in CLAIMS for name in claim.needs})
    untrue = {claim.text for claim in CLAIMS if claim.least >= 0 and not claim.unit}
    lucky = 0
    for _ in range(200):
        made = results(**{name: rng.normal(0.5, 0.01, 6).tolist() for name in methods})
        lucky += any(verdict.outcome == HELD and verdict.claim in untrue for verdict in verdicts(made))
    assert lucky <= 0.05 * 200


def test_one_seed_decides_nothing():
    made = results(uniform=[0.4], uniform_half=[0.3], uniform_twice=[0.5], kray=[0.6], exact_p=[0.7], paper=[0.1])
    assert set(found(made).values()) == {UNDECIDED, UNMEASURED}
    assert not separates(verdicts(made))


def test_setting_without_effect_does_not_separate():
    made = results(uniform=[0.40, 0.41], uniform_half=[0.42, 0.431], uniform_twice=[0.40, 0.409])
    assert not separates(verdicts(made))


def judged(made: Results) -> dict[str, str]:
    """Return the outcome of each claim of the second family, by the first words that tell it apart."""
    return {v.claim: v.outcome for v in verdicts(made) if v.claim in {claim.text for claim in TEACHING_CLAIMS}}


def test_the_claims_that_every_rollout_teaches_are_judged_by_their_rules():
    base = np.array([0.40, 0.41, 0.42, 0.43, 0.40, 0.41])
    wobble = np.array([0.0, 0.001, -0.002, 0.003, 0.001, -0.001])
    made = results(
        uniform=base, uniform_4x=base + 0.1 + wobble, grpo_best=base + 0.05 + wobble[::-1], grpo_best_twice=base + 0.2,
        kray=base + 0.12, breadth_reuse=base + 0.1 + wobble, exact_both=base + 0.13, belief=base + 0.03,
        reinforce=base + wobble, reinforce_reuse=base + 0.15 + 3 * wobble,
    )  # fmt: skip
    found = judged(made)
    expected = {
        "At equal rollouts the default is not below uniform with four": HELD,
        "At equal rollouts the default is not below GRPO at its best with twice": UNDECIDED,  # equal differences
        "At equal rollouts the default is better than GRPO at its best": HELD,
        "The default reaches the final accuracy of uniform with at most 40% of its rollouts": FAILED,  # at about half
        "The default reaches the final accuracy of uniform with at most 100% of its modelled FLOPs": HELD,
        "The default reaches the final accuracy of GRPO at its best with at most 60% of its rollouts": FAILED,
        "The default has at least half of what exact": HELD,
        "The default is better than its budgets": HELD,
        "A baseline for each prompt is better than one for all, one epoch": HELD,
        "A baseline for each prompt is better than one for all, with reuse": FAILED,
        "Greedy accuracy": UNDECIDED,
        "Entropy": HELD,
        "The share of test prompts above .9": UNDECIDED,
    }
    for start, outcome_ in expected.items():
        (claim,) = [claim for claim in found if claim.startswith(start)]
        assert found[claim] == outcome_, claim
    note = next(
        v for v in verdicts(made) if v.claim.startswith("The default reaches the final accuracy of uniform with")
    )
    assert note.measured.startswith("reached in 6 of 6 seeds: ")
    assert "%" in note.interval


def test_methods_that_were_not_run_leave_the_new_claims_unmeasured():
    assert set(judged(results(uniform=[0.4, 0.41], paper=[0.4, 0.42])).values()) == {UNMEASURED}


def test_a_seed_that_never_reaches_the_rival_counts_against_the_claim():
    made = results(uniform=[0.5, 0.5, 0.5], kray=[0.7, 0.69, 0.4])
    found = needed_share("kray", "uniform", "rollouts")(made)
    assert found.seeds == 3
    assert found.mean == pytest.approx((0.2 / 0.4 + 0.2 / 0.39 + NEVER) / 3)


@pytest.mark.parametrize(("low", "high", "expected"), [(0.3, 0.39, HELD), (0.41, 0.5, FAILED), (0.3, 0.5, UNDECIDED)])
def test_a_claim_of_at_most_is_held_below_its_threshold(low, high, expected):
    found = Interval((low + high) / 2, low, high, 6)
    assert outcome(found, 0.4, below=True) == expected
    assert decided(found, 0.4, holm([found.p_value(0.4)])[0], below=True) == expected
