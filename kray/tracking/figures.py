"""Figures of a run, as matplotlib Figure objects without pyplot's global state: they need no closing and are thread-safe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kray.metrics import EVAL_ACCURACY, GROUP_EFFECTIVE_RATIO_PROMPTS, REWARD_MEAN, TRAIN_EFFECTIVE_RATIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Metric -> (label, colour, marker); colour-blind readers can tell these colours apart.
CURVES = {
    EVAL_ACCURACY: ("held-out accuracy", "#0072B2", "o"),
    REWARD_MEAN: ("train reward, mean", "#E69F00", ""),
    TRAIN_EFFECTIVE_RATIO: ("effective rollouts / rollouts", "#009E73", ""),
    GROUP_EFFECTIVE_RATIO_PROMPTS: ("prompts with mixed groups", "#CC79A7", ""),
}


def budgets_against_beliefs(
    expected_success: np.ndarray, budgets: np.ndarray, observed_success: np.ndarray, title: str = ""
) -> Figure:
    """Plot each prompt's budget against its belief, coloured by the success rate that the step observed.

    Args:
        expected_success: (M,) in [0, 1]; NaN for new prompts, which are drawn left of 0.
        budgets: (M,) rollouts.
        observed_success: (M,) in [0, 1]; NaN for prompts without rollouts, which are drawn hollow.
        title: "" for the usual one.

    Raises:
        ValueError: The lengths differ.
    """
    expected, budget, observed = (np.asarray(part, float) for part in (expected_success, budgets, observed_success))
    if not len(expected) == len(budget) == len(observed):
        raise ValueError(f"lengths differ: {len(expected)} beliefs, {len(budget)} budgets, {len(observed)} observed")
    figure, axes = new_figure(title or "Budget of each prompt against its belief")
    x = np.where(np.isnan(expected), -0.06, expected)
    known = ~np.isnan(observed)
    axes.scatter(x[~known], budget[~known], s=24, facecolors="none", edgecolors="#8a8a8a", linewidths=0.9)
    points = axes.scatter(
        x[known], budget[known], c=observed[known], cmap="cividis", vmin=0, vmax=1, s=26, alpha=0.85, linewidths=0
    )
    bar = figure.colorbar(points, ax=axes, pad=0.02)
    bar.set_label("observed success rate in this step")
    bar.outline.set_visible(False)
    axes.set_xlim(-0.1 if np.isnan(expected).any() else -0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    if np.isnan(expected).any():
        axes.set_xticks([-0.06, 0, 0.25, 0.5, 0.75, 1], ["new", "0", "0.25", "0.5", "0.75", "1"])
    axes.set_ylim(0, max(1.0, float(budget.max(initial=0))) * 1.06)
    axes.set_xlabel("expected success rate (belief mean)")
    axes.set_ylabel("budget (rollouts)")
    axes.locator_params(axis="y", integer=True)
    return figure


def budget_histogram(budgets: np.ndarray, upper: int, title: str = "") -> Figure:
    """Plot how many prompts got how many rollouts.

    Args:
        budgets: (M,) rollouts.
        upper: The most that a prompt may get.
        title: "" for the usual one.
    """
    budgets = np.asarray(budgets, dtype=int)
    figure, axes = new_figure(title or "Rollouts given to each prompt")
    top = max(int(budgets.max(initial=1)), 1)
    # At most about 40 bars, of whole rollouts.
    width = max(1, -(-top // 40))
    edges = [edge - 0.5 for edge in range(0, top + 2 * width, width)]
    axes.hist(budgets, bins=edges, color="#0072B2", rwidth=0.92)
    if len(budgets):
        mean = float(budgets.mean())
        axes.axvline(mean, color="#D55E00", linewidth=1.4, label=f"mean {mean:.1f}")
        axes.plot([], [], " ", label=f"at the upper bound of {upper}: {int((budgets >= upper).sum())}")
        axes.legend(frameon=False, handlelength=1.2, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    axes.set_xlabel("budget (rollouts)" + (f", bars of {width}" if width > 1 else ""))
    axes.set_ylabel("prompts")
    axes.locator_params(axis="x", integer=True)
    axes.locator_params(axis="y", integer=True)
    return figure


def learning_curve(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Plot accuracy, reward and the shares of effective rollouts and of mixed groups over the run.

    Args:
        rows: As in metrics.jsonl; any metric may be absent.
        title: "" for the usual one.
    """
    figure, axes = new_figure(title or "Learning curve")
    top, bottom = 1.0, 0.0
    for name, (label, colour, marker) in CURVES.items():
        points = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
        if not points:
            continue
        steps, values = (np.array(part, float) for part in zip(*points, strict=True))
        top, bottom = max(top, float(values.max())), min(bottom, float(values.min()))
        if marker:
            axes.plot(steps, values, color=colour, marker=marker, markersize=5, linewidth=2.2, label=label, zorder=3)
            continue
        window = max(1, len(values) // 40)
        # The raw line pale, its moving average on top.
        if window > 1:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
            label = f"{label} ({window}-step average)"
        axes.plot(steps, _smooth(values, window), color=colour, linewidth=1.6, label=label)
    axes.set_ylim(bottom * 1.02, top * 1.02)
    axes.set_xlabel("training step")
    axes.set_ylabel("share, or reward")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Return the trailing mean over up to `window` values; the same length."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def new_figure(title: str, width: float = 7.5, height: float = 4.6) -> tuple[Figure, Axes]:
    """Return an empty figure of width x height inches, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes
