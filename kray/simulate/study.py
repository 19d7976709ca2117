"""Studies of simulated runs: every plan on the same seeds, with paired intervals, a table, a figure and data for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from kray.errors import ConfigError
from kray.simulate.world import World, simulate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Figure -> (column head, unit and meaning); figures of a step are means after the first epoch.
FIGURES = {
    "learned": ("learned", "mean success rate at the end less that at the beginning"),
    "value": ("value", "sum of true Value(N, p) per mean budget of rollouts x 1000"),
    "realised": ("realised", "sum of p (1 - p)^2 over mixed groups per mean budget of rollouts x 1000"),
    "effective_prompts": ("mixed/prompts", "mixed groups / prompts with rollouts"),
    "effective_rollouts": ("mixed/rollouts", "rollouts in mixed groups / all rollouts"),
    "hit_rare": ("hit p<.1", "prompts with 0 < p < .1 that succeed at least once"),
    "largest": ("largest", "largest budget of a prompt, rollouts"),
    "mixed": ("mixed/step", "mixed groups in a step"),
    "rollouts_a_step": ("rollouts/step", "rollouts of one step"),
    "planner_ms": ("plan ms", "planner's time a step, milliseconds"),
}

# Plan -> keys of PlanConfig, and of `simulate`.
PLANS: dict[str, dict[str, Any]] = {
    "uniform": {"mode": "uniform"},
    "paper": {"mode": "paper"},
    "paper_released": {"mode": "paper_released"},
    "coba": {"mode": "coba"},
    "pilot_commit": {"mode": "pilot_commit"},
    "dynamic_sampling": {"mode": "dynamic_sampling"},
    "weight_only": {"mode": "weight_only"},
    "static": {"mode": "static"},
    "static V*": {"mode": "static", "value": "grpo"},
    "rounds": {"mode": "rounds"},
    "online": {"mode": "online"},
    "online V*": {"mode": "online", "value": "grpo"},
    "online stop_at_mixed": {"mode": "online", "marginal": "stop_at_mixed"},
    "online hybrid": {"mode": "online", "marginal": "hybrid"},
    "online target_size 8": {"mode": "online", "marginal": "target_size", "target_size": 8},
    "uniform 2x prompts": {"mode": "uniform", "wide": 2},
    "static 2x prompts": {"mode": "static", "wide": 2},
    "online 2x candidates": {"mode": "online", "candidates": 2.0},
    "online until mixed enough": {
        "mode": "online",
        "marginal": "target_size",
        "candidates": 3.0,
        "target_groups": -1,
        "most": 3,
    },
    "oracle": {"mode": "oracle"},
}

_BELIEF = {"baseline": "belief", "lower": 1}
_CHOSEN = {"mode": "static", "value": "baseline", "candidates": 0, "each": 1}

# Plans that differ in the baseline of advantages, in the rollouts of a prompt (`each`) and in passes over them (train.epochs).
ESTIMATORS: dict[str, dict[str, Any]] = {
    "uniform": {"mode": "uniform"},
    "uniform 2x rollouts": {"mode": "uniform", "times": 2},
    "static 2x prompts": {"mode": "static", "wide": 2},
    "oracle 2x prompts": {"mode": "oracle", "wide": 2},
    "uniform each 4": {"mode": "uniform", "each": 4},
    "uniform each 2": {"mode": "uniform", "each": 2},
    "uniform 2 epochs": {"mode": "uniform", "epochs": 2},
    "uniform 3 epochs": {"mode": "uniform", "epochs": 3},
    "uniform each 4 2 epochs": {"mode": "uniform", "each": 4, "epochs": 2},
    "batch each 1": {"mode": "uniform", "each": 1, "baseline": "batch", "lower": 1},
    "batch each 1 3 epochs": {"mode": "uniform", "each": 1, "baseline": "batch", "lower": 1, "epochs": 3},
    "belief": {"mode": "uniform"} | _BELIEF,
    "belief each 4": {"mode": "uniform", "each": 4} | _BELIEF,
    "belief each 2": {"mode": "uniform", "each": 2} | _BELIEF,
    "belief each 1": {"mode": "uniform", "each": 1} | _BELIEF,
    "belief each 2 2 epochs": {"mode": "uniform", "each": 2, "epochs": 2} | _BELIEF,
    "belief each 1 2 epochs": {"mode": "uniform", "each": 1, "epochs": 2} | _BELIEF,
    "belief each 1 3 epochs": {"mode": "uniform", "each": 1, "epochs": 3} | _BELIEF,
    "belief chosen": _CHOSEN | _BELIEF,
    "belief chosen sqrt": _CHOSEN | _BELIEF | {"gain": "sqrt"},
    "belief chosen flat": _CHOSEN | _BELIEF | {"gain": "flat"},
    "belief chosen 3 epochs": _CHOSEN | _BELIEF | {"epochs": 3},
    "belief chosen sqrt 3 epochs": _CHOSEN | _BELIEF | {"gain": "sqrt", "epochs": 3},
}

# Settings of World with which ESTIMATORS come in the order of runs of configs/compare-arithmetic.yaml (docs/planner.md).
CALIBRATED: dict[str, Any] = {
    "prompts": 512,
    "per_step": 32,
    "steps": 80,
    "rate": 0.2,
    "noise": 0.55,
    "transfer": 0.4,
    "overshoot": 0.1,
}

# Plans whose steps have other numbers of prompts.
WIDER = (
    "dynamic_sampling",
    "uniform 2x prompts",
    "static 2x prompts",
    "online 2x candidates",
    "online until mixed enough",
)


def title(name: str, world: World, seeds: int) -> str:
    """Return the title of tables and figures: what was simulated."""
    size = f"{world.prompts} prompts, {world.per_step} x {world.rollouts} rollouts a step"
    return (
        f"{name}: {size}, {world.in_flight:g} of them in flight, {world.steps} steps, equal {world.unit}, {seeds} seeds"
    )


def curve() -> dict[str, dict[str, Any]]:
    """Return plans along the trade-off between many small mixed groups and fewer large ones: marginal, value, size, floor."""
    plans: dict[str, dict[str, Any]] = {"uniform": {"mode": "uniform"}, "oracle": {"mode": "oracle"}}
    for floor in (2, 3, 4, 6):
        for marginal in ("expected_gain", "hybrid", "stop_at_mixed"):
            plans[f"{marginal} floor {floor}"] = {"mode": "online", "marginal": marginal, "lower": floor}
        for value in ("grpo", "coba"):
            plans[f"{value} floor {floor}"] = {"mode": "online", "value": value, "lower": floor}
    for size in (4, 6, 12, 16, 32):
        plans[f"target_size {size}"] = {"mode": "online", "marginal": "target_size", "target_size": size}
    return plans


def choose_plans(names: str | None, plans: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the plans of a study, uniform first.

    Args:
        names: comma-separated; None: all.
        plans: to choose from: PLANS, ESTIMATORS or `curve()`.

    Raises:
        ConfigError: a name is unknown.
    """
    chosen = [name.strip() for name in names.split(",")] if names else list(plans)
    unknown = [name for name in chosen if name not in plans]
    if unknown:
        raise ConfigError(f"--modes {unknown[0]} is not one of {', '.join(plans)}")
    return {name: dict(plans[name]) for name in dict.fromkeys(["uniform", *chosen])}


def study(world: World, plans: Mapping[str, Mapping[str, Any]], seeds: int) -> dict[str, dict[str, list[float]]]:
    """Simulate every plan on the same seeds.

    Args:
        world: what is simulated.
        plans: name -> plan of `simulate`.
        seeds: number of seeds, from 0.

    Returns:
        {plan: {figure: one number for each seed}}.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for name, plan in plans.items():
        runs = [simulate(world, seed, dict(plan)) for seed in range(seeds)]
        found[name] = {key: [run[key] for run in runs] for key in runs[0]}
    return found


def interval(numbers: Sequence[float]) -> tuple[float, float]:
    """Return (mean, half width of its 95 % interval) over seeds, by Student's t; the half width is NaN for one seed."""
    x = np.asarray(numbers, dtype=np.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def summary(found: Mapping[str, Mapping[str, Sequence[float]]], against: str = "uniform") -> dict[str, dict[str, Any]]:
    """Summarise a study.

    Args:
        found: as `study` returns it.
        against: plan whose `learned`, `value` and `realised` are subtracted, seed by seed.

    Returns:
        {plan: {figure: (mean, half width)}} with `<figure>_difference` and `<figure>_up`, the seeds on which it is positive.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, figures in found.items():
        row: dict[str, Any] = {key: interval(numbers) for key, numbers in figures.items()}
        for key in ("learned", "value", "realised"):
            pairs = np.subtract(figures[key], found[against][key])
            row[f"{key}_difference"] = interval(pairs.tolist())
            row[f"{key}_up"] = int((pairs > 0).sum())
        out[name] = row
    return out


def table(found: Mapping[str, Mapping[str, Sequence[float]]], against: str = "uniform") -> str:
    """Return a plain table: means, the paired difference of `learned` with its 95 % half width, and seeds that were better."""
    rows = summary(found, against)
    base = rows[against]["value"][0]
    head = ["plan", "learned", f"- {against}", "seeds up", "value", "%"]
    head += [FIGURES[key][0] for key in FIGURES if key not in ("learned", "value")]
    lines = [head]
    for name, row in rows.items():
        difference, half = row["learned_difference"]
        seeds = len(found[name]["learned"])
        cells = [name, f"{row['learned'][0]:.4f}", f"{difference:+.4f} ±{half:.4f}", f"{row['learned_up']}/{seeds}"]
        cells += [f"{row['value'][0]:.1f}", f"{100 * (row['value'][0] / base - 1):+.0f}"]
        for key in FIGURES:
            if key in ("learned", "value"):
                continue
            mean = row[key][0]
            cells.append(f"{mean:.2f}" if key.startswith(("effective", "hit")) else f"{mean:.1f}")
        lines.append(cells)
    width = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, width, strict=True))
        )
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def report(found: Mapping[str, Mapping[str, Sequence[float]]], head: str) -> tuple[str, dict[str, Any]]:
    """Return a study as text under its title, and as data for JSON."""
    predicts = correlations(found, WIDER)
    line = "correlation with learned over modes: " + ", ".join(f"{key} {r:.2f}" for key, r in predicts.items())
    data = {"seeds": found, "summary": summary(found), "correlations": predicts}
    return f"\n{head}\n{table(found)}\n{line}", data


def correlations(found: Mapping[str, Mapping[str, Sequence[float]]], skip: Sequence[str] = ()) -> dict[str, float]:
    """Return the correlation over plans of each figure's mean with that of `learned`; NaN where nothing varies.

    Args:
        found: as `study` returns it.
        skip: plans to leave out.
    """
    plans = [name for name in found if name not in skip]
    learned = [float(np.mean(found[name]["learned"])) for name in plans]
    out = {}
    for key in ("value", "realised", "effective_prompts", "effective_rollouts", "hit_rare"):
        means = [float(np.mean(found[name][key])) for name in plans]
        varies = len(plans) > 2 and np.std(means) > 0 and np.std(learned) > 0
        out[key] = float(np.corrcoef(means, learned)[0, 1]) if varies else float("nan")
    return out


def figure(found: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Figure:
    """Draw `learned` less that of uniform (paired, 95 % over seeds) against three figures of merit, one point per plan."""
    from matplotlib.figure import Figure as Canvas

    picture = Canvas(figsize=(15, 5.4), layout="constrained")
    axes = picture.subplots(1, 3, sharey=True)
    rows = summary(found)
    for axis, key in zip(axes, ("value", "effective_prompts", "effective_rollouts"), strict=True):
        for number, (name, row) in enumerate(rows.items(), 1):
            x, (y, dy) = row[key][0], row["learned_difference"]
            colour = "#D55E00" if name == "uniform" else "#009E73" if "oracle" in name else "#0072B2"
            axis.errorbar(x, y, yerr=dy, fmt="o", ms=4, lw=0.8, color=colour, label=f"{number} {name}")
            axis.annotate(str(number), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8)
        axis.axhline(0, lw=0.6, color="#8a8a8a")
        axis.set_xlabel(FIGURES[key][1], fontsize=8)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("gain in mean success rate, less uniform's", fontsize=8)
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    picture.suptitle(title, fontsize=10)
    return picture
