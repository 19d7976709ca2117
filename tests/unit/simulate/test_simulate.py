"""The simulator: populations, equal budgets, and relations that small real runs have shown."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kray.errors import DataError
from kray.planner import KnapsackPlanner
from kray.simulate.populations import SHAPES, find_population, read_counts, seen_population
from kray.simulate.study import PLANS, WIDER, correlations, curve, interval, study, summary, table
from kray.simulate.world import World, simulate

ROOT = Path(__file__).parents[3]
SMALL = World(SHAPES["logit_normal"], prompts=96, per_step=24, steps=8)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_success_rates(name):
    p = SHAPES[name](5000, np.random.default_rng(0))
    assert p.shape == (5000,)
    assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("unit", ["rollouts", "tokens"])
def test_every_plan_spends_the_same(name, unit):
    world = World(SHAPES["u_shaped"], prompts=96, per_step=24, steps=6, unit=unit)
    found = simulate(world, 0, PLANS[name])
    assert all(np.isfinite(x) for key, x in found.items() if key != "hit_rare")
    if unit == "rollouts":
        total = found["rollouts_a_step"] * found["steps"]
        assert abs(total / (world.budget * world.steps) - 1) < (0.3 if name in WIDER else 1e-9)
    assert simulate(world, 0, PLANS[name])["learned"] == found["learned"]  # chance comes from the seed alone


def test_true_rates_and_more_rollouts_do_better():
    plans = {name: PLANS[name] for name in ("uniform", "static", "oracle")}
    world = World(SHAPES["u_shaped"], prompts=512, per_step=64, steps=32)
    found = study(world, plans, 3)
    mean = {name: np.mean(figures["learned"]) for name, figures in found.items()}
    assert mean["oracle"] > mean["static"] > mean["uniform"]
    assert np.mean(found["static"]["value"]) > np.mean(found["uniform"]["value"])
    rows = summary(found)
    assert rows["static"]["learned_up"] == 3
    assert rows["uniform"]["learned_difference"] == (0.0, 0.0)
    assert "static" in table(found)
    assert set(correlations(found)) >= {"value", "effective_prompts"}


def test_stop_at_mixed_raises_ratios_but_not_learning():
    plans = {name: PLANS[name] for name in ("uniform", "online", "online stop_at_mixed")}
    found = study(World(SHAPES["logit_normal"], prompts=512, per_step=64, steps=32), plans, 4)
    mean = {name: {key: np.mean(x) for key, x in figures.items()} for name, figures in found.items()}
    stop, online, uniform = mean["online stop_at_mixed"], mean["online"], mean["uniform"]
    assert stop["effective_prompts"] > max(online["effective_prompts"], uniform["effective_prompts"])
    assert stop["realised"] > 1.08 * uniform["realised"]
    assert online["learned"] > stop["learned"]


def test_populations_of_previous_runs(tmp_path):
    rates = tmp_path / "rates.jsonl"
    rates.write_text('0.25\n{"success_rate": 0.5}\n\n{"group_success": 1}\n')
    s, n = read_counts(rates)
    assert s.tolist() == [0.25, 0.5, 1]
    assert np.isinf(n).all()
    assert sorted(find_population(str(rates))(6, np.random.default_rng(0))) == [0.25, 0.25, 0.5, 0.5, 1, 1]
    counts = tmp_path / "rollouts.jsonl"
    counts.write_text(
        '{"prompt_id": "a", "reward": 1}\n{"prompt_id": "a", "reward": 0}\n{"successes": 3, "trials": 8}\n'
    )
    assert [x.tolist() for x in read_counts(counts)] == [[3, 1], [8, 2]]
    planner = KnapsackPlanner("static", 40)
    for i in range(40):
        planner.observe(f"p{i}", [0] * 6 + [i % 2] * 2)
    folder = tmp_path / "run" / "checkpoints" / "step-000020"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 20, "planner": planner.to_dict()}))
    s, n = read_counts(tmp_path / "run")
    assert (len(s), s.sum(), n.max()) == (40, 40, 8)
    drawn = seen_population(s, n)(4000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(1 / 8, abs=0.03)
    assert 0 < drawn.min() < drawn.max() < 1  # no prompt is known to be impossible


@pytest.mark.parametrize(
    ("text", "match"),
    [("1.5\n", "bad.jsonl:1"), ("0.5\nx\n", "bad.jsonl:2"), ("", "no success rates"), ('{"a": 1}\n', "bad.jsonl:1")],
)
def test_bad_populations_are_named(tmp_path, text, match):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        read_counts(path)
    for name in ("nowhere", str(tmp_path)):
        with pytest.raises(DataError):
            find_population(name)


def test_an_interval():
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / 3**0.5, rel=1e-3))
    assert np.isnan(interval([1.0])[1])
    assert len(curve()) > 20


def test_simulate_job_writes_figures_and_names_bad_populations(tmp_path):
    out, figure = tmp_path / "out.json", tmp_path / "out.png"
    command = [sys.executable, "jobs/simulate.py", "--population", "hard", "--prompts", "64", "--per-step", "16"]
    command += ["--steps", "6", "--seeds", "2", "--modes", "static,online", "--json", str(out), "--figure", str(figure)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert "uniform" in done.stdout
    found = json.loads(out.read_text())
    assert len(found["results"]["hard"]["seeds"]["online"]["learned"]) == 2
    assert figure.stat().st_size > 10_000
    command[3] = "nowhere"
    bad = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert bad.returncode != 0
    assert "nowhere" in bad.stderr
    assert "Traceback" not in bad.stderr
