"""Which faults a run of jobs/bench_chaos.py injects, and how two runs are compared."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from kray.errors import ConfigError
from kray.faults import jobs
from kray.faults.chaos import select
from kray.faults.compared import is_circumstance, metrics
from kray.faults.injector import KINDS, plan_faults
from kray.faults.instrumented import CLOCK, WallClock
from kray.faults.jobs import STEPS, command_of, left_over, plan_endings
from kray.metrics import METRICS


def test_a_whole_run_has_all_kinds_and_a_selection_those_that_are_named():
    whole = select(60)
    assert whole.kinds == len(KINDS) + len(jobs.KINDS) >= 15
    assert whole.inside[1] + whole.ending[1] == 60
    some = select(4, "reward raises, scorer,GCS")
    assert some.inside == (("scorer process killed", "reward raises"), 3)
    assert some.ending == (("GCS killed",), 1)
    assert select(5, "SIG").inside == ((), 0)
    assert select(5, "SIG").ending[1] == 5
    assert select(5, "reward").ending == ((), 0)
    with pytest.raises(ConfigError, match=r"--kinds: no kind of fault has 'GSC' in its name: .*GCS killed"):
        select(5, "GSC")


def test_planned_faults_are_of_the_chosen_kinds_and_in_order():
    assert {fault.kind for fault in plan_faults(20, 100, 0, ("reward raises", "driver killed"))} == {
        "reward raises",
        "driver killed",
    }
    planned = plan_endings(list(jobs.KINDS), 12, STEPS * 13, 3)
    assert (
        planned
        == plan_endings(list(jobs.KINDS), 12, STEPS * 13, 3)
        != plan_endings(list(jobs.KINDS), 12, STEPS * 13, 4)
    )
    assert {fault.kind for fault in planned} == jobs.KINDS.keys()
    steps = [fault.step for fault in planned]
    # The first checkpoint is that of step 2, and the last fault leaves some steps to do.
    assert steps == sorted(steps)
    assert steps[0] > 2
    assert steps[-1] < STEPS * 12
    assert plan_endings(["GCS killed"], 1, 16, 0)[0].step < 12


def test_a_wall_clock_jumps_to_what_its_file_says(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", time.time)  # restored afterwards
    true = time.time()
    clock = WallClock(tmp_path)
    clock.read()
    assert abs(time.time() - true) < 60
    (tmp_path / CLOCK).write_text("-86400.0")
    clock.read()
    assert abs(time.time() - (true - 86400)) < 60


def test_metrics_that_depend_on_circumstances_are_not_compared(tmp_path):
    line = {
        "step": 1,
        "time": 5.0,
        "timing_s/step": 2.0,
        "pool/restarts": 1.0,
        "driver/restarts": 2.0,
        "eval/accuracy": 0.5,
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert metrics(tmp_path) == [{"step": 1, "eval/accuracy": 0.5}]


def test_processes_that_do_not_end_are_found():
    lasting, ended = (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for code in ("input()", "pass")
    )
    try:
        started = {process.pid: f"{sys.executable} -c" for process in (lasting, ended)}
        ended.wait(30)
        assert left_over(started, limit_s=0.5) == [f"{sys.executable} -c"]
        assert command_of(ended.pid) == ""
    finally:
        lasting.kill()
        lasting.wait(10)
    assert left_over(started, limit_s=5.0) == []


def test_no_metric_of_time_or_memory_is_compared():
    clocked = [name for name, known in METRICS.items() if known.unit in ("s", "GiB") or known.unit.endswith("/s")]
    assert len(clocked) > 10
    assert [name for name in clocked if not is_circumstance(name)] == []
    assert not is_circumstance("train/loss")
