"""A run that is resumed: the same to the last digit under the same configuration, and sound under another one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coin_flip_training import CoinFlipTraining, Record, begin, configured, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logged_lines import logged_lines

from kray.config import load_config
from kray.config.prompts_schema import PromptsConfig
from kray.config.resume import SETTLED
from kray.config.schema import EnvironmentConfig, KrayConfig, RunConfig
from kray.config.train_schema import AsyncConfig
from kray.config.validation import problems
from kray.driver.stop import Stopped
from kray.errors import KrayError
from kray.plan_modes import MODES, PlanConfig
from kray.train.checkpoints import newest_checkpoint, read_state

HALF, WHOLE = "run.steps=5", "run.steps=9"
OPTIONS = {
    "as it comes": (),
    # groups of two or more: with one label a visit features predict too little within eight steps
    "features": ("plan.prior_features=true", "plan.refit_every=3", "train.baseline=group"),
    "features and kinds": ("plan.prior_features=true", "plan.prior_by=kind", "plan.refit_every=4"),
    "by source": ("plan.prior_by=source", "plan.refit_every=2"),
    "fixed prior": ("plan.fit_prior=false", "plan.prior_alpha=0.7"),
    "fixed discount": ("plan.fit_discount=false", "plan.discount=0.3"),
    "rare fits": ("plan.refit_every=5", "plan.max_wait=2"),
    "belief baseline": ("plan.value=baseline", "train.baseline=belief", "plan.lower=1", "plan.prior_by=kind"),
}
EVERY_PROMPT = (
    "plan.value=baseline",
    "train.baseline=belief",
    "plan.lower=1",
    "plan.candidates=0",
    "plan.max_wait=2",
    "plan.prior_by=kind",
)
# What a resumed training may hold other values of, by attribute: everything else must be as it was.
FORGOTTEN = {
    "_last": "the open step: none is open when a checkpoint is written",
    "_features_before": "of the open step",
    "_capacity": "how much room the arrays have",
    "_known_orders": "computed anew",
    "calibration": "the labels of the last step are added when the next one begins; the saved states have them",
}


def remembered(training: CoinFlipTraining) -> dict[str, Any]:
    """Everything that a training carries from step to step, walked attribute by attribute."""
    state = {k: v for k, v in vars(training.state).items() if k != "elapsed_s"}
    parts, recorder = training.components, training.recorder
    roots = {
        "state": state | {"planner": None, "waiting": None, "calibration": None, "transitions": None},
        "planner": training.components.planner,
        "waiting": parts.admission,
        "quarantine": training.steps.quarantine,
        "lengths": list(training.steps.collector.lengths.items()),
        "calibration": recorder.calibration,
        "transitions": recorder.transitions,
        "learner": (training.workers.learners.weight, training.workers.learners.nonfinite_steps),
    }
    return {name: walked(value, name) for name, value in roots.items()}


def walked(value: Any, path: str) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return [(repr(key), walked(inner, f"{path}[{key}]")) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [walked(inner, path) for inner in value]
    if hasattr(value, "__dict__"):
        found = {name: inner for name, inner in vars(value).items() if name not in FORGOTTEN}
        if type(value).__name__ == "PromptSampler":
            found.pop("_known")  # orders of epochs, which are computed anew
        if type(value).__name__ == "Beliefs":  # its arrays have more room than rows
            found = {k: v[: len(value)] if isinstance(v, np.ndarray) else v for k, v in found.items()}
        return {name: walked(inner, f"{path}.{name}") for name, inner in found.items()}
    return repr(value) if isinstance(value, float) else value  # NaN is equal to itself here


def unclocked(record: Record) -> dict[int, dict[str, str]]:
    clocked = ("timing_s/", "memory/", "throughput/")
    return {
        step: {name: repr(value) for name, value in metrics.items() if not name.startswith(clocked)}
        for step, metrics in record.steps.items()
    }


@pytest.mark.parametrize(
    "keys",
    [
        *((f"plan.mode={mode}", *options) for mode in MODES for options in OPTIONS.values()),
        EVERY_PROMPT,
        (*EVERY_PROMPT, "plan.mode=online"),
        (*EVERY_PROMPT, "plan.prior_features=true", "plan.lower=3"),
        (*EVERY_PROMPT, "plan.unit=tokens", "plan.token_budget=900"),
        ("plan.candidates=0", "plan.max_wait=2"),
    ],
    ids=" ".join,
)
def test_resumed_equals_uninterrupted(tmp_path, keys):
    whole, half = configured(tmp_path, WHOLE, *keys), configured(tmp_path, HALF, *keys)
    straight, broken = Record(), Record()
    one = begin(tmp_path / "straight", whole, straight)
    assert train(one) is None
    first = begin(tmp_path / "broken", half, broken)
    assert train(first) is None
    held = remembered(first)
    second = begin(tmp_path / "broken", whole, broken)
    assert remembered(second) == held
    assert train(second) is None
    assert first.plans | second.plans == one.plans
    broken.steps[5].pop("eval/accuracy"), broken.steps[5].pop("eval/accuracy_se")  # it ended there, and was judged
    for record in (straight, broken):
        for metrics in record.steps.values():
            for name in [n for n in metrics if n.startswith("eval/")]:
                metrics.pop(name)
    assert unclocked(broken) == unclocked(straight)
    ended = {("beliefs", 5), ("evaluations", 5)}  # so it was saved and judged
    assert {k: v for k, v in broken.tables.items() if k not in ended} == straight.tables
    assert remembered(second) == remembered(one)
    ends = [read_state(newest_checkpoint(tmp_path / name)) for name in ("straight", "broken")]
    assert ends[0] | {"elapsed_s": 0} == ends[1] | {"elapsed_s": 0}


def test_the_features_did_act_in_these_runs(tmp_path):
    config = configured(tmp_path, WHOLE, *OPTIONS["features"])
    training = begin(tmp_path, config)
    assert train(training) is None
    assert training.components.planner.features.active


def test_a_state_without_the_newer_keys_is_read(tmp_path):
    config = configured(tmp_path, HALF, "plan.prior_features=true")
    assert train(begin(tmp_path, config)) is None
    file = newest_checkpoint(tmp_path) / "state.json"
    state = json.loads(file.read_text())
    del state["transitions"], state["nonfinite"], state["planner"]["features"], state["planner"]["beliefs"]["fitted"]
    file.write_text(json.dumps(state))
    more = begin(tmp_path, configured(tmp_path, WHOLE, "plan.prior_features=true"))
    assert train(more) is None
    assert more.state.step == 9


# -- another configuration ---------------------------------------------------------------------------------------------

TOKENS = ("plan.unit=tokens", "plan.token_budget=900")
BASELINE = ("plan.value=baseline", "train.baseline=belief", "plan.lower=1")
CHANGES: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # key -> (before, after) overrides; each pair is also tried the other way round
    "plan.mode": [((), (f"plan.mode={mode}",)) for mode in MODES]
    + [(("plan.mode=uniform",), (f"plan.mode={mode}",)) for mode in MODES],
    "plan.budget": [((), ("plan.budget=64",)), ((), ("plan.budget=384",))],
    "plan.lower": [((), ("plan.lower=1",)), (("plan.candidates=1",), ("plan.candidates=1", "plan.lower=6"))],
    "plan.upper": [((), ("plan.upper=6",)), ((), ("plan.upper=96",))],
    "plan.unit": [((), TOKENS), (("plan.mode=online",), ("plan.mode=online", *TOKENS))],
    "plan.token_budget": [(TOKENS, ("plan.unit=tokens", "plan.token_budget=20"))],
    "plan.value": [((), ("plan.value=grpo",)), ((), ("plan.value=coba",)), ((), BASELINE)],
    "plan.gain": [((*BASELINE, "plan.gain=sqrt"), (*BASELINE, "plan.gain=flat"))],
    "plan.tau": [(BASELINE, (*BASELINE, "plan.tau=9"))],
    "plan.marginal": [
        (("plan.mode=online",), ("plan.mode=online", f"plan.marginal={marginal}"))
        for marginal in ("stop_at_mixed", "hybrid", "target_size")
    ],
    "plan.target_size": [(("plan.mode=online", "plan.marginal=target_size"),) * 2],
    "plan.in_flight": [(("plan.mode=online",), ("plan.mode=online", "plan.in_flight=3"))],
    "plan.pilot": [(("plan.mode=rounds",), ("plan.mode=rounds", "plan.pilot=1"))],
    "plan.rounds": [(("plan.mode=rounds",), ("plan.mode=rounds", "plan.rounds=4"))],
    "plan.weights": [((), (f"plan.weights={kind}",)) for kind in ("uniform", "knapsack", "hindsight")],
    "plan.candidates": [((), (f"plan.candidates={share}",)) for share in (0, 1, 1.25, 1.5, 3)]
    + [(BASELINE, (*BASELINE, f"plan.candidates={share}")) for share in (0, 1, 3)]
    + [((f"plan.mode={mode}", "plan.candidates=3"), (f"plan.mode={mode}", "plan.candidates=1.25"))
       for mode in ("online", "dynamic_sampling")],
    "plan.target_groups": [(("plan.mode=online",), ("plan.mode=online", "plan.target_groups=4"))],
    "plan.max_wait": [((), ("plan.max_wait=1",)), (("plan.max_wait=1",), ("plan.max_wait=1", "plan.candidates=1.25"))],
    "plan.discount": [((), ("plan.discount=0.9",))],
    "plan.fit_discount": [((), ("plan.fit_discount=false",))],
    "plan.calibrate": [((), ("plan.calibrate=false",))],
    "plan.prior_alpha": [((), ("plan.prior_alpha=4",))],
    "plan.prior_beta": [((), ("plan.prior_beta=4",))],
    "plan.fit_prior": [((), ("plan.fit_prior=false",))],
    "plan.prior_by": [((), ("plan.prior_by=kind",)), (("plan.prior_by=kind",), ("plan.prior_by=source",))],
    "plan.prior_features": [((), ("plan.prior_features=true",))],
    "plan.adapt": [((), ("plan.adapt=true",)), (BASELINE, (*BASELINE, "plan.adapt=true"))],
    "plan.refit_every": [((), ("plan.refit_every=5",))],
    "prompts.quarantine_after": [((), ("prompts.quarantine_after=0",)), ((), ("prompts.quarantine_after=1",))],
    "prompts.test": [((), ("prompts.test.size=2",))],
    "prompts.more_tests": [((), ("prompts.more_tests.hard.size=2",))],
    "run.name": [((), ("run.name=another",))],
    "run.dir": [((), ("run.dir=/tmp/elsewhere",))],
    "run.steps": [((), ())],
    "run.checkpoint_every": [((), ("run.checkpoint_every=2",))],
    "run.keep_checkpoints": [((), ("run.keep_checkpoints=1",))],
    "run.max_failed_share": [((), ("run.max_failed_share=1.0",))],
    "run.max_restarts": [((), ("run.max_restarts=0",))],
    "run.restart_window_s": [((), ("run.restart_window_s=0",))],
    "run.stop_after_s": [((), ("run.stop_after_s=900",))],
    "run.max_failed_saves": [((), ("run.max_failed_saves=0",))],
    "run.env": [((), ("run.env.NCCL_DEBUG=INFO",))],
    "environment.max_turns": [((), ("environment.max_turns=2",))],
    "environment.step_timeout_s": [((), ("environment.step_timeout_s=1",))],
    "environment.workers": [((), ("environment.workers=2",))],
    "environment.evaluate_against": [((), ())],  # needs roles, see tests/integration/driver/test_self_play.py
    "async.max_staleness": [((), ("async.max_staleness=2", "train.tis=2"))],
}  # fmt: skip
CASES = [
    pytest.param(*pair, id=f"{key}-{number}{way}")
    for key, pairs in CHANGES.items()
    for number, one in enumerate(pairs)
    for way, pair in (("", one), ("-back", one[::-1]))
]


@pytest.mark.parametrize(("before", "after"), CASES)
def test_a_key_may_change_on_resume(tmp_path, before, after):
    assert train(begin(tmp_path, configured(tmp_path, HALF, *before))) is None
    record = Record()
    # a plan may give a quarter of a step to the prompt that always fails
    more = begin(tmp_path, configured(tmp_path, "run.steps=9", "run.max_failed_share=0.5", *after), record)
    assert train(more) is None
    assert more.state.step == 9
    assert all(np.isfinite(record.steps[step]["reward/mean"]) for step in range(6, 10))


def test_every_key_of_these_sections_is_settled_or_tried():
    sections = {"plan": PlanConfig, "prompts": PromptsConfig, "run": RunConfig, "environment": EnvironmentConfig}
    sections |= {"async": AsyncConfig}
    keys = {f"{name}.{field.name}" for name, section in sections.items() for field in dataclasses.fields(section)}
    assert {key for key in keys if not f"{key}.".startswith(SETTLED) and not key.startswith(SETTLED)} == set(CHANGES)


@st.composite
def plans(draw) -> tuple[str, ...]:
    """Overrides of the section `plan` that may stand in a configuration."""
    lower = draw(st.integers(0, 4)) or 1
    upper = lower + draw(st.integers(0, 30))
    chosen = {
        "mode": draw(st.sampled_from(MODES)),
        "candidates": draw(st.sampled_from([0, 1, 1.3, 2, 3])),
        "value": draw(st.sampled_from(["paper", "baseline"])),
        "max_wait": draw(st.integers(1, 9)),
        "lower": lower,
        "upper": upper,
        "budget": draw(st.integers(16 * lower, 16 * upper)),
        "unit": draw(st.sampled_from(["rollouts", "tokens"])),
        "token_budget": draw(st.integers(1, 2000)),
        "prior_features": draw(st.booleans()),
        "fit_prior": draw(st.booleans()),
        "fit_discount": draw(st.booleans()),
        "prior_by": draw(st.sampled_from(["all", "kind", "source"])),
        "refit_every": draw(st.integers(1, 4)),
        "target_groups": 0,
    }
    return tuple(f"plan.{key}={str(value).lower()}" for key, value in chosen.items())


@given(st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_plan_goes_on_under_any_other(tmp_path_factory, data):
    folder: Path = tmp_path_factory.mktemp("run")
    file = folder / "coin.yaml"
    configured(folder)
    sound = plans().filter(lambda keys: not problems(load_config(str(file), [*keys], False)))
    config: list[KrayConfig] = []
    for steps in (2, 5, 8):
        config.append(configured(folder, f"run.steps={steps}", *data.draw(sound)))
    for each in config:
        training = begin(folder, each)
        assert train(training) is None
        assert training.state.step == each.run.steps


def test_what_is_not_fitted_follows_the_configuration(tmp_path):
    assert train(begin(tmp_path, configured(tmp_path, HALF, "plan.prior_by=kind", "plan.discount=0.4"))) is None
    beliefs = begin(tmp_path, configured(tmp_path, WHOLE, "plan.prior_by=kind")).components.planner.beliefs
    assert len(beliefs.priors()) > 1
    assert beliefs.discounts != (0.5, 0.5)
    fixed = configured(tmp_path, WHOLE, "plan.fit_prior=false", "plan.prior_alpha=3", "plan.fit_discount=false")
    beliefs = begin(tmp_path, fixed).components.planner.beliefs
    assert beliefs.priors() == {"": (3.0, 1.0)}
    assert beliefs.discounts == (0.5, 0.5)
    shared = begin(tmp_path, configured(tmp_path, WHOLE)).components.planner.beliefs
    assert list(shared.priors()) == [""]
    assert not shared._label_of.any()


# -- errors and stops --------------------------------------------------------------------------------------------------


class Breaking(CoinFlipTraining):
    """breaks_at: the step whose collection fails after its labels came back; stops_at: the step after which a stop comes."""

    breaks_at, stops_at, broken_evaluation = -1, -1, False

    async def before_plan(self, step, offered) -> None:
        if step == self.breaks_at:
            self.steps.collector.failing = True

    async def after_update(self, collected) -> None:
        if self.state.step == self.stops_at:
            while self._collected.empty():  # until what was collected ahead, and its error, wait in the queue
                await asyncio.sleep(0)
            self.stop.ask("by a test")

    async def evaluate(self, when: str = "") -> None:
        if self.broken_evaluation and self.state.step == 4:
            raise KrayError("the evaluation broke")
        await super().evaluate(when)


def broken(folder: Path, *keys: str, **how: Any) -> tuple[CoinFlipTraining, Exception | None]:
    training = begin(folder, configured(folder, WHOLE, *keys), kind=Breaking)
    vars(training).update(how)
    return training, train(training)


def goes_on_as_if_nothing_had_happened(folder: Path, *keys: str) -> None:
    more = begin(folder, configured(folder, WHOLE, *keys))
    assert train(more) is None
    whole = begin(folder / "straight", configured(folder, WHOLE, *keys))
    assert train(whole) is None
    assert remembered(more) == remembered(whole)


def test_a_step_that_fails_costs_no_earlier_one(tmp_path):
    training, error = broken(tmp_path, breaks_at=5)
    assert "max_failed_share" in str(error)
    assert read_state(newest_checkpoint(tmp_path))["step"] == training.state.step == 5
    goes_on_as_if_nothing_had_happened(tmp_path)


def test_a_stop_while_an_error_waits_saves_first(tmp_path):
    ahead = ("async.max_staleness=2", "train.tis=2")
    training, error = broken(tmp_path, *ahead, breaks_at=4, stops_at=3)
    assert "max_failed_share" in str(error)
    assert not isinstance(error, Stopped)
    assert read_state(newest_checkpoint(tmp_path))["step"] == training.state.step == 4


def test_an_evaluation_that_fails_costs_no_step(tmp_path):
    training, error = broken(tmp_path, "evaluate.every=2", broken_evaluation=True)
    assert str(error) == "the evaluation broke"
    assert read_state(newest_checkpoint(tmp_path))["step"] == training.state.step == 4
    goes_on_as_if_nothing_had_happened(tmp_path)


def test_an_update_that_fails_is_not_saved(tmp_path):
    training = begin(tmp_path, configured(tmp_path, WHOLE, "run.checkpoint_every=2"))

    def lose(step: int) -> None:
        if step == 6:
            raise KrayError("the update broke")

    training.workers.learners.after_update = lose
    assert str(train(training)) == "the update broke"
    assert read_state(newest_checkpoint(tmp_path))["step"] == 4
    goes_on_as_if_nothing_had_happened(tmp_path, "run.checkpoint_every=2")


def test_a_checkpoint_counts_though_older_ones_stay(tmp_path, monkeypatch):
    real = shutil.rmtree

    def stuck(folder, *args, **options):
        if "step-000004" in str(folder) and "learner" not in str(folder) and stuck.on and not options:
            raise OSError(16, "Device or resource busy")
        return real(folder, *args, **options)

    stuck.on = True
    monkeypatch.setattr(shutil, "rmtree", stuck)
    config = configured(tmp_path, WHOLE, "run.checkpoint_every=2", "run.keep_checkpoints=1", "run.max_failed_saves=0")
    training = begin(tmp_path, config)
    with logged_lines() as lines:
        assert train(training) is None
    assert not any("not written" in line for line in lines)
    assert sum("step-000004 (Device or resource busy) could not be removed" in line for line in lines) == 3
    assert newest_checkpoint(tmp_path).name == "step-000009"
    stuck.on = False
    assert train(begin(tmp_path, configured(tmp_path, "run.steps=10", "run.keep_checkpoints=1"))) is None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000010"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_number_does_not_hide_the_others(tmp_path, bad):
    training = begin(tmp_path, configured(tmp_path, HALF))
    assert train(training) is None
    recorder = training.recorder
    before, left = recorder.mean("reward/mean"), recorder.left_s(10)
    assert np.isfinite([before, left]).all()
    for name in ("reward/mean", "never/heard_of"):
        recorder.note({name: bad})
    assert recorder.mean("reward/mean") == before
    assert np.isnan(recorder.mean("never/heard_of"))
    recorder.steps.append({"timing_s/step": bad})
    assert np.isfinite(recorder.left_s(10))
