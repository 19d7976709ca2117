"""What a long run's samples say about it."""

from __future__ import annotations

import pytest

from kray.bench.soak import ROLES, TITLE, check_series, soak_config, verdict
from kray.driver.actor import Driver
from kray.metrics import TIMING_S_STEP, timing
from kray.rollout.engine import Engine
from kray.rollout.receiving_engine import ReceivingEngine
from kray.rollout.sleeping_engine import SleepingEngine
from kray.train.colocated_learner import ColocatedLearner
from kray.train.learner import Learner
from kray.train.sending_learner import SendingLearner

STEPS = 300


def samples(**grown: float) -> list[dict[str, float]]:
    """Samples of a healthy run, but for series that grow by so much in 100 steps."""
    flat = {f"{role} {name}": 100.0 for role in ROLES for name in ("rss_mib", "descriptors", "threads")}
    flat |= {"object store objects": 20.0, "metrics.jsonl kib": 0.0}
    linear = {"metrics.jsonl kib": 50.0} | grown
    names = flat | {name: flat.get(name, 100.0) for name in grown}
    return [
        {"step": s} | {n: v + linear.get(n, 0.0) * s / 100 for n, v in names.items()} for s in range(1, STEPS + 1, 3)
    ]


def rows() -> list[dict[str, float]]:
    parts = {timing(part): 0.1 for part in ("generate", "update")}
    return [{"time": 0.0}, *({"step": s, "time": 0.5 * s, TIMING_S_STEP: 0.5} | parts for s in range(1, STEPS + 1))]


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        (Driver, "driver"), (Engine, "engine"), (ReceivingEngine, "engine"), (SleepingEngine, "engine"),
        (Learner, "learner"), (SendingLearner, "learner"), (ColocatedLearner, "learner"),
    ],
)  # fmt: skip
def test_every_kind_of_actor_is_sampled(kind, role):
    assert TITLE.match(f"ray::{kind.__name__}.update")[1].lower() == role in ROLES
    assert not TITLE.match("ray::DashboardAgent")


def test_a_healthy_run_holds_and_its_records_may_grow():
    found = verdict(check_series(samples(), rows()), STEPS)
    assert found["holds"]
    assert found["failed"] == {}
    assert found["sentence"].startswith("300 steps: all ")


@pytest.mark.parametrize(
    ("name", "growth"),
    [("driver rss_mib", 4.3), ("engine descriptors", 2.0), ("learner threads", 2.0), ("object store objects", 3.0)],
)
def test_what_grows_is_named(name, growth):
    found = verdict(check_series(samples(**{name: growth}), rows()), STEPS)
    assert not found["holds"]
    assert found["failed"] == {name: "flat"}
    assert f"{name} (not flat)" in found["sentence"]


def test_a_record_that_grows_ever_faster_is_named():
    found = samples()
    for sample in found:
        sample["samples kib"] = sample["step"] ** 2
    assert verdict(check_series(found, rows()), STEPS)["failed"] == {"samples kib": "growing linearly"}


def test_a_run_that_was_not_sampled_has_no_verdict():
    found = verdict(check_series(samples()[:2], rows()), STEPS)
    assert not found["holds"]
    assert "no verdict" in found["sentence"]


def test_overlap_is_a_configuration_that_can_run():
    config = soak_config("configs/tiny.yaml", "/tmp/soak", 600, ["train.thin=0.6"], overlap=True)
    assert (config.run.steps, config.async_.max_staleness, config.train.epochs, config.train.thin) == (600, 1, 2, 0.6)
    assert config.train.tis == 2
    assert soak_config("configs/tiny.yaml", "/tmp/soak", 600, []).async_.max_staleness == 0
