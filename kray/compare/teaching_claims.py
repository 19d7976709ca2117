"""Claims that every rollout teaches, fixed before anything was measured; see kray/compare/verdicts.py.

The methods, at equal rollouts a step unless their name says otherwise:

    uniform, uniform_twice, uniform_4x   GRPO as it is commonly run: 32 prompts x 8, one epoch; with 2 and 4 times the rollouts
    grpo_best, grpo_best_twice           GRPO at its best learning rate, group size and number of epochs, found on other seeds
    kray                                 the default: belief baseline, breadth, reuse
    kray_40, kray_60                     the same with at most 40 % and 60 % of the rollouts a step
    breadth_reuse                        the same with its budgets given to random prompts
    belief, belief_8                     belief baseline, one epoch: 256 prompts x 1, and 32 x 8
    reinforce, reinforce_reuse           the mean of the batch as baseline: 256 x 1 with one epoch; breadth_reuse otherwise
    exact_baseline, exact_plan, exact_both   the default with exact success rates in the baseline, in the plan, in both

That the default is better than uniform is among kray/compare/plan_claims.py. Costs are counted until the rival's final
accuracy of the same seed, as a share of all that the rival spends.
"""

from __future__ import annotations

from kray.compare.results import Run
from kray.compare.rules import (
    CONTROL,
    DEFAULT,
    KRAY,
    LIMIT,
    MARGIN,
    Claim,
    beyond_share,
    gain,
    needed_share,
    reached_note,
    relative,
    share_note,
)

# Currency -> its name in a claim. FLOPs count as they are, without a weight for generation.
COSTS = {"flops": "modelled FLOPs", "seconds": "seconds"}


def _not_below(rival: str, text: str, ours: str = DEFAULT, how: str = "At equal rollouts the default") -> Claim:
    return Claim(f"{how} is not below {text} (by more than {MARGIN})", KRAY, (ours, rival), gain(ours, rival), -MARGIN)


def _reaches(rival: str, text: str, rollouts: float) -> list[Claim]:
    """Return the claims that the default reaches a rival's final accuracy with a share of its rollouts, at no more costs."""
    limits = {"rollouts": ("rollouts", rollouts)} | {currency: (name, 1.0) for currency, name in COSTS.items()}
    return [
        Claim(
            f"The default reaches the final accuracy of {text} with at most {most:.0%} of its {name}",
            KRAY,
            (DEFAULT, rival),
            needed_share(DEFAULT, rival, currency),
            most,
            "share",
            reached_note(DEFAULT, rival),
            below=True,
        )
        for currency, (name, most) in limits.items()
    ]


TEACHING_CLAIMS = (
    _not_below("uniform_4x", "uniform with four times the rollouts"),
    _not_below("grpo_best_twice", "GRPO at its best with twice the rollouts"),
    Claim(
        "At equal rollouts the default is better than GRPO at its best",
        KRAY,
        (DEFAULT, "grpo_best"),
        gain(DEFAULT, "grpo_best"),
    ),
    _not_below("uniform", "uniform", "kray_40", "With 40 % of the rollouts the default"),
    _not_below("grpo_best", "GRPO at its best", "kray_60", "With 60 % of the rollouts the default"),
    *_reaches("uniform", "uniform", 0.4),
    *_reaches("grpo_best", "GRPO at its best", 0.6),
    Claim(
        "The default has at least half of what exact knowledge adds to its random choice",
        KRAY,
        (DEFAULT, "breadth_reuse", "exact_both"),
        beyond_share(DEFAULT, 0.5, "breadth_reuse", "exact_both"),
        0.0,
        "",
        share_note(DEFAULT, 0.5, "breadth_reuse", "exact_both"),
    ),
    Claim(
        "The default is better than its budgets given to random prompts",
        CONTROL,
        (DEFAULT, "breadth_reuse"),
        gain(DEFAULT, "breadth_reuse"),
    ),
    Claim(
        "A baseline for each prompt is better than one for all, one epoch",
        CONTROL,
        ("belief", "reinforce"),
        gain("belief", "reinforce"),
    ),
    Claim(
        "A baseline for each prompt is better than one for all, with reuse",
        CONTROL,
        ("breadth_reuse", "reinforce_reuse"),
        gain("breadth_reuse", "reinforce_reuse"),
    ),
    Claim(
        f"Greedy accuracy of the default is not below uniform's (by more than {MARGIN})",
        LIMIT,
        (DEFAULT, "uniform"),
        gain(DEFAULT, "uniform", Run.last_greedy),
        -MARGIN,
    ),
    Claim(
        "Entropy of the default is at least .9 times uniform's",
        LIMIT,
        (DEFAULT, "uniform"),
        relative(DEFAULT, "uniform", Run.last_entropy),
        0.9,
        "x",
    ),
    Claim(
        "The share of test prompts above .9 is not below uniform's (by more than a point)",
        LIMIT,
        (DEFAULT, "uniform"),
        gain(DEFAULT, "uniform", Run.mastered),
        -0.01,
        "%",
    ),
)
