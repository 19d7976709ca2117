"""What is chosen for train.baseline, plan.value and plan.lower where a configuration leaves them open."""

import pytest

from kray.config import KrayConfig, load_config, to_yaml
from kray.config.resume import load_resumed
from kray.plan_modes import MODES, OWN, PlanConfig
from kray.planner.planner import KnapsackPlanner

QUICK = "configs/tiny.yaml"


# budget / per_step of configs/tiny.yaml: each of its candidates may get one rollout
BELIEF, GROUP = ("belief", "baseline", 1, 8.0), ("group", "paper", 2, 2.0)


def of(config: KrayConfig) -> tuple[str, str, int, float]:
    return config.train.baseline, config.plan.value, config.plan.lower, config.plan.candidates


def chosen(*overrides: str) -> tuple[str, str, int, float]:
    return of(load_config(QUICK, overrides))


@pytest.mark.parametrize("mode", MODES)
def test_own_modes_take_the_belief_as_baseline_and_rivals_the_group(mode):
    assert chosen(f"plan.mode={mode}") == (BELIEF if mode in OWN else GROUP)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.baseline=group"], GROUP),
        (["train.baseline=batch"], ("batch", "baseline", 1, 8.0)),
        (["plan.value=paper"], GROUP),
        (["plan.value=baseline"], BELIEF),
        (["plan.mode=online", "plan.marginal=hybrid"], GROUP),
        (["plan.mode=online", "plan.target_groups=8"], GROUP),
        (["plan.value=paper", "train.baseline=belief"], ("belief", "paper", 1, 2.0)),
        (["plan.mode=uniform", "train.baseline=belief"], ("belief", "paper", 1, 2.0)),
        (["plan.lower=3"], ("belief", "baseline", 3, 8.0)),
        (["plan.lower=3", "train.baseline=group"], ("group", "paper", 3, 2.0)),
        (["plan.budget=64"], ("belief", "baseline", 1, 2.0)),
        (["plan.candidates=0"], ("belief", "baseline", 1, 0.0)),
        (["plan.unit=tokens", "plan.token_budget=4096"], ("belief", "baseline", 1, 2.0)),
    ],
)
def test_what_is_given_decides_the_rest(overrides, expected):
    assert chosen(*overrides) == expected


def test_what_was_chosen_is_what_is_written_and_read_back(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(QUICK, ["plan.mode=paper"])))
    assert of(load_config(tmp_path / "config.yaml", ["plan.mode=static"])) == GROUP


def begun(tmp_path, *gone: str):
    """The folder of a run that began with groups as baseline, before there were the keys `gone`."""
    lines = to_yaml(load_config(QUICK, ["train.baseline=group"])).splitlines()
    kept = [line for line in lines if line.strip().partition(":")[0] not in gone]
    (tmp_path / "config.yaml").write_text("\n".join(kept) + "\n")
    return tmp_path


@pytest.mark.parametrize("gone", [(), ("baseline", "calibrate", "epochs", "thin")])
def test_a_resumed_run_goes_on_with_what_it_began_with(tmp_path, gone):
    folder = begun(tmp_path, *gone)
    assert of(load_resumed(QUICK, [], folder)) == GROUP
    asked = ["train.baseline=belief", "plan.value=baseline", "plan.lower=1", "plan.candidates=8"]
    assert of(load_resumed(QUICK, asked, folder)) == BELIEF


def test_a_planner_of_its_own_plans_for_the_group_unless_told_otherwise():
    assert (KnapsackPlanner().settings.value, KnapsackPlanner().settings.lower) == ("paper", 2)
    assert KnapsackPlanner(lower=0).settings.lower == 0  # some of the prompts may get none
    assert KnapsackPlanner.of(PlanConfig(lower=0)).settings.lower == 2
