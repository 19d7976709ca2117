"""Claims about how the rollouts of a step are planned, fixed before anything was measured; see kray/compare/verdicts.py.

`n` is the rollouts a step that all methods have.
"""

from __future__ import annotations

from kray.compare.results import Run
from kray.compare.rules import (
    DEFAULT,
    KRAY,
    MARGIN,
    PAPER,
    RIVAL,
    SETTING,
    Claim,
    beyond_share,
    gain,
    late_prompts,
    late_rollouts,
    relative,
    share_note,
)
from kray.compare.stats import interval

# The knapsack for the group baseline: every prompt that a step offers is visited; twice as many are offered as in uniform.
KNAPSACK, KNAPSACK_2X = "static", "static_2x"

PLAN_CLAIMS = (
    Claim(
        "Half the rollouts are worse than n: uniform",
        SETTING,
        ("uniform", "uniform_half"),
        gain("uniform", "uniform_half"),
    ),
    Claim(
        "Twice the rollouts are better than n: uniform",
        SETTING,
        ("uniform", "uniform_twice"),
        gain("uniform_twice", "uniform"),
    ),
    Claim(
        "Exact knowledge of success rates gains accuracy", SETTING, ("uniform", "exact_p"), gain("exact_p", "uniform")
    ),
    Claim(
        "Exact knowledge gains accuracy with twice as many prompts a step, too",
        SETTING,
        ("uniform_wide", "exact_p_wide"),
        gain("exact_p_wide", "uniform_wide"),
    ),
    Claim(
        "At least 20 % more rollouts carry a gradient (the paper: 20 to 40 %)",
        PAPER,
        ("paper", "uniform"),
        relative("paper", "uniform", late_rollouts),
        1.2,
        "x",
    ),
    Claim("More prompts teach, too", PAPER, ("paper", "uniform"), gain("paper", "uniform", late_prompts), 0.0, "%"),
    Claim(
        "Some prompts get 11.6 times the mean budget (the paper: up to 93 rollouts of a mean of 8)",
        PAPER,
        ("paper",),
        lambda results: interval(list(results.seeds("paper", Run.largest_budget).values())),
        93 / 8,
        "x",
    ),
    Claim(
        "At least 2 points more accuracy than uniform (the paper: 2 to 4)",
        PAPER,
        ("paper", "uniform"),
        gain("paper", "uniform"),
        0.02,
    ),
    Claim(
        f"Half the compute: with n not below uniform with 2n (by more than {MARGIN})",
        PAPER,
        ("paper", "uniform_twice"),
        gain("paper", "uniform_twice"),
        -MARGIN,
    ),
    Claim("The default is better than uniform", KRAY, (DEFAULT, "uniform"), gain(DEFAULT, "uniform")),
    Claim("The default is better than the paper's rule", KRAY, (DEFAULT, "paper"), gain(DEFAULT, "paper")),
    Claim(
        "The knapsack over twice as many prompts has at least 60 % of the gain of exact knowledge",
        KRAY,
        (KNAPSACK_2X, "uniform", "exact_p"),
        beyond_share(KNAPSACK_2X, 0.6),
        0.0,
        "",
        share_note(KNAPSACK_2X, 0.6),
    ),
    Claim(
        f"The default with n is not below uniform with 2n (by more than {MARGIN})",
        KRAY,
        (DEFAULT, "uniform_twice"),
        gain(DEFAULT, "uniform_twice"),
        -MARGIN,
    ),
    Claim(
        "The knapsack over twice as many prompts is better than its loss weights on uniform budgets",
        KRAY,
        (KNAPSACK_2X, "weight_only"),
        gain(KNAPSACK_2X, "weight_only"),
    ),
    Claim(
        "The default solves hard held-out prompts (p under .05 at first) at least 1.3 times as often as uniform",
        KRAY,
        (DEFAULT, "uniform"),
        relative(DEFAULT, "uniform", Run.hard_rate),
        1.3,
        "x",
    ),
    Claim(
        "The knapsack over twice as many prompts is better than uniform budgets for as many prompts",
        KRAY,
        (KNAPSACK_2X, "uniform_wide"),
        gain(KNAPSACK_2X, "uniform_wide"),
    ),
    Claim(
        "Planning for twice as many prompts is better than for a step's own",
        KRAY,
        (KNAPSACK_2X, KNAPSACK),
        gain(KNAPSACK_2X, KNAPSACK),
    ),
    Claim(
        "Passing prompts over (at least 4 rollouts for those visited) is better than giving each of them 2",
        KRAY,
        ("kray_deep", KNAPSACK_2X),
        gain("kray_deep", KNAPSACK_2X),
    ),
    Claim(
        "For a step's own prompts, the knapsack on beliefs is better than uniform",
        KRAY,
        (KNAPSACK, "uniform"),
        gain(KNAPSACK, "uniform"),
    ),
    Claim(
        "For a step's own prompts, it is better than the paper's rule",
        KRAY,
        (KNAPSACK, "paper"),
        gain(KNAPSACK, "paper"),
    ),
    Claim(
        "For a step's own prompts, token_mean is better than prompt_mean",
        KRAY,
        (KNAPSACK, "static_prompt_mean"),
        gain(KNAPSACK, "static_prompt_mean"),
    ),
    Claim(
        "For a step's own prompts, planning inside the step is better than before it",
        KRAY,
        ("online", KNAPSACK),
        gain("online", KNAPSACK),
    ),
    Claim(
        "Limits that follow each kind's rewards (plan.adapt) are better than fixed ones",
        KRAY,
        ("kray_adapt", DEFAULT),
        gain("kray_adapt", DEFAULT),
    ),
    Claim(
        "The same with the group as baseline",
        KRAY,
        (f"{KNAPSACK_2X}_adapt", KNAPSACK_2X),
        gain(f"{KNAPSACK_2X}_adapt", KNAPSACK_2X),
    ),
    Claim(
        "CoBA-RL is at least 1.1 points above the paper's rule (its authors: 1.1 to 3.2)",
        RIVAL,
        ("coba", "paper"),
        gain("coba", "paper"),
        0.011,
    ),
    Claim("Pilot-commit is better than uniform", RIVAL, ("pilot_commit", "uniform"), gain("pilot_commit", "uniform")),
    Claim(
        "Dynamic sampling is better than uniform, step for step (it spends more rollouts)",
        RIVAL,
        ("dynamic_sampling", "uniform"),
        gain("dynamic_sampling", "uniform"),
    ),
)
