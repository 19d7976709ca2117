"""What a comparison does to a method beside its configuration, to separate causes of a gain. Loads neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from kray.config import KrayConfig
from kray.errors import ConfigError

# What may be computed with exact success rates. True in a file means plan.
ORACLES = ("", "plan", "baseline", "both")
# Values of rollouts for which success rates may be known.
KNOWN_BY = ("paper", "baseline")
# Labels of a belief that is as good as certain: Beta(K p, K (1 - p)) has a standard deviation of at most .0005.
CERTAIN = 1e6
# Least alpha and beta of such a belief, for rates of 0 and 1: a belief's parameters must be positive.
LEAST = 1e-6


@dataclass(frozen=True)
class Controls:
    """The controls of a method.

    Attributes:
        oracle: What knows exact success rates: plan (the value of rollouts), baseline (the belief that travels with each
            group), both, or "" for neither.
        shuffle_budgets: The budgets of a step are given to random prompts among its candidates. Prompts that are due keep
            theirs. The random order derives from (run seed, step).
        label_noise: Probability with which a reward is flipped (1 - r) before planner and learner see it. It derives from
            (run seed, step, prompt id, rollout index). Evaluations see the true rewards.
        mixed_only: Groups whose rewards are all equal teach nothing, whatever was believed of their prompts.
    """

    oracle: str = ""
    shuffle_budgets: bool = False
    label_noise: float = 0.0
    mixed_only: bool = False

    @property
    def knows_plan(self) -> bool:
        """Whether the planner knows exact success rates."""
        return self.oracle in ("plan", "both")

    @property
    def knows_baseline(self) -> bool:
        """Whether the baseline of advantages knows them."""
        return self.oracle in ("baseline", "both")

    @property
    def told(self) -> list[Any]:
        """What a digest of settings holds of the controls.

        [False] and [True] are what it held when the only control was an oracle for the plan.
        """
        others = {key: value for key, value in asdict(self).items() if key != "oracle" and value}
        oracle = {"": False, "plan": True}.get(self.oracle, self.oracle)
        return [oracle, others] if others else [oracle]


NAMES = tuple(field.name for field in fields(Controls))


def read_controls(keys: Mapping[str, Any], exact: bool, where: str) -> Controls:
    """Read the controls among the keys of a method.

    Args:
        keys: Of the method, others included.
        exact: The comparison computes exact success rates.
        where: Begins each error.

    Raises:
        ConfigError: A control has a value that it cannot have.
    """
    oracle = keys.get("oracle") or ""
    oracle = "plan" if oracle is True else oracle
    if oracle not in ORACLES:
        raise ConfigError(f"{where}: oracle must be true or one of {', '.join(filter(None, ORACLES))}, not {oracle!r}")
    if oracle and not exact:
        raise ConfigError(f"{where}: oracle needs exact: true")
    for name in ("shuffle_budgets", "mixed_only"):
        if not isinstance(keys.get(name, False), bool):
            raise ConfigError(f"{where}: {name} must be true or false, not {keys[name]!r}")
    noise = keys.get("label_noise", 0.0)
    if isinstance(noise, bool) or not (isinstance(noise, int | float) and 0 <= noise <= 1):
        raise ConfigError(f"{where}: label_noise must be a probability, not {noise!r}")
    return Controls(oracle, keys.get("shuffle_budgets", False), float(noise), keys.get("mixed_only", False))


def check_controls(controls: Controls, config: KrayConfig, where: str) -> None:
    """Refuse a configuration whose plan does not go by the values that a control replaces, and rollout.colocate.

    Raises:
        ConfigError: Names the key.
    """
    plan = config.plan
    if config.rollout.colocate:
        raise ConfigError(
            f"{where}: rollout.colocate must be false: a comparison asks the learner while engines generate"
        )
    if controls.mixed_only and config.train.baseline != "belief":
        raise ConfigError(f"{where}: mixed_only needs train.baseline belief, not {config.train.baseline}")
    if plan.adapt and (controls.knows_plan or controls.shuffle_budgets):
        raise ConfigError(f"{where}: plan.adapt goes by the planner's own values: not with oracle or shuffle_budgets")
    wanted: list[tuple[str, str, tuple[str, ...]]] = []
    if controls.knows_plan:
        wanted += [
            ("an oracle plans all at once", "mode", ("static",)),
            ("an oracle needs its value", "value", KNOWN_BY),
        ]
    if controls.shuffle_budgets:
        why = "budgets are shuffled where the knapsack sets them in rollouts"
        wanted += [(why, "mode", ("static",)), (why, "unit", ("rollouts",))]
    for why, key, values in wanted:
        if (found := getattr(plan, key)) not in values:
            raise ConfigError(f"{where}: {why}: plan.{key} must be {' or '.join(values)}, not {found}")
