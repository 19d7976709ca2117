"""The figures of a comparison, as matplotlib Figures. Every method keeps its colour in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from kray.compare.results import BIN_NAMES, BINS, Results, Run
from kray.compare.stats import interval, paired
from kray.planner.metrics import STATUSES
from kray.tracking.figures import new_figure as kray_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# With more methods than colours these keep theirs, and the others are drawn in grey: they are in the tables and in the
# figure of differences.
MAIN = (
    "uniform",
    "kray",
    "grpo_best",
    "uniform_twice",
    "uniform_4x",
    "exact_both",
    "breadth_reuse",
    "paper",
    "exact_p",
    "static",
    "weight_only",
)
OTHER = "#c4c4c8"
# Inches: letters stay readable on a phone.
WIDTH = 6.2
# Methods up to which curves have intervals: more hide each other, and are in the figure of differences.
BANDS = 4
# Methods that are preferred where not all can be shown.
MATRICES = ("uniform", "grpo_best", "paper", "kray", "exact_p")


def new_figure(title: str, height: float = 4.3) -> tuple[Figure, Axes]:
    """Return an empty figure in the style of all figures."""
    return kray_figure(title, WIDTH, height)


def colour(results: Results, method: str) -> str:
    """Return a method's colour, the same in every figure; OTHER where there are more methods than colours."""
    methods = results.study.methods
    known = (
        list(methods) if len(methods) <= len(COLOURS) else [name for name in MAIN if name in methods][: len(COLOURS)]
    )
    return COLOURS[known.index(method)] if method in known else OTHER


def line(results: Results, method: str) -> dict[str, Any]:
    """Return the style of a method's curve; all grey ones share one entry of the legend and lie behind the others."""
    tint = colour(results, method)
    first = next((name for name in results.runs if colour(results, name) == OTHER), "")
    if tint == OTHER:
        label = "other methods" if method == first else "_"
        return {"color": tint, "linewidth": 1.0, "label": label, "zorder": 1.5}
    return {"color": tint, "linewidth": 1.8, "label": method}


def curves(results: Results, cost: Callable[[Run], np.ndarray], label: str, title: str) -> Figure:
    """Draw held-out accuracy against a cost: means over seeds, with 95 % intervals for few methods of three or more seeds."""
    figure, axes = new_figure(title)
    for method, runs in results.runs.items():
        shown = alike(runs)
        if not shown:
            continue
        x = np.mean([cost(run) for run in shown], axis=0)
        spans = [interval(column) for column in np.array([run.accuracy for run in shown]).T]
        axes.plot(x, [span.mean for span in spans], marker="o", markersize=3.5, **line(results, method))
        if len(results.runs) <= BANDS and len(shown) > 2:
            axes.fill_between(
                x,
                [s.low for s in spans],
                [s.high for s in spans],
                color=colour(results, method),
                alpha=0.13,
                linewidth=0,
            )
    axes.set_xlabel(label)
    axes.set_ylabel("held-out accuracy")
    _legend(figure, axes)
    return figure


def alike(runs: Mapping[int, Run]) -> list[Run]:
    """Return the runs that were evaluated at the same steps as the first."""
    every = list(runs.values())
    return [run for run in every if np.array_equal(run.steps, every[0].steps)]


def differences(results: Results) -> Figure:
    """Draw each method's final accuracy minus that of uniform, paired by seed, a dot a seed."""
    base = results.seeds("uniform", lambda run: run.final)
    rows = [(m, results.seeds(m, lambda run: run.final)) for m in results.runs if m != "uniform"]
    rows = [(m, found) for m, found in rows if found.keys() & base.keys()]
    rows.sort(key=lambda row: paired(row[1], base).mean)
    figure, axes = new_figure(
        "Final accuracy less that of uniform, the same seed", height=1.4 + 0.27 * max(3, len(rows))
    )
    for y, (method, found) in enumerate(rows):
        span, tint = paired(found, base), colour(results, method)
        dots = [found[seed] - base[seed] for seed in sorted(found.keys() & base.keys())]
        axes.plot(dots, [y] * len(dots), "o", color=tint, alpha=0.35, markersize=4, markeredgewidth=0)
        axes.plot([span.mean], [y], "D", color=tint, markersize=6)
        if np.isfinite(span.low):
            axes.plot([span.low, span.high], [y, y], color=tint, linewidth=2)
    axes.axvline(0, color="#8a8a8a", linewidth=0.9)
    axes.set_yticks(range(len(rows)), [method for method, _ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_xlabel("difference in accuracy: mean, 95 % interval; pale: seeds")
    return figure


def effective(results: Results, of: Callable[[Run], np.ndarray], title: str, label: str) -> Figure:
    """Draw a ratio of each step over the run: its mean over seeds, smoothed over a tenth of the steps."""
    figure, axes = new_figure(title)
    for method, runs in results.runs.items():
        series = [of(run) for run in runs.values()]
        length = min(map(len, series))
        if not length:
            continue
        mean = np.nanmean([s[:length] for s in series], axis=0)
        window = max(1, length // 10)
        smooth = np.array([np.nanmean(mean[max(0, i - window + 1) : i + 1]) for i in range(length)])
        axes.plot(np.arange(1, length + 1), smooth, **line(results, method))
    axes.set_ylim(0, None)
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.locator_params(axis="x", integer=True)
    _legend(figure, axes)
    return figure


def budgets(results: Results) -> Figure | None:
    """Mean budget by the prompt's exact success rate at planning time; None without exact rates."""
    figure, axes = new_figure("What a prompt gets, by its true success rate")
    edges = np.array([0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0])
    drawn = False
    for method, runs in results.runs.items():
        pairs = [run.budgets_by_rate() for run in runs.values()]
        rates, spent = (np.concatenate(part) for part in zip(*pairs, strict=True))
        if not len(rates):
            continue
        where = np.clip(np.searchsorted(edges, rates, side="right") - 1, 0, len(edges) - 2)
        known = [b for b in range(len(edges) - 1) if (where == b).sum() >= 3]
        axes.plot(known, [spent[where == b].mean() for b in known], marker="o", markersize=3.5, **line(results, method))
        drawn = True
    names = [f"{low:g}–{high:g}" for low, high in pairwise(edges)]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axes.set_xlabel("exact success rate when the step was planned (after the first epoch)")
    axes.set_ylabel("mean budget (rollouts)")
    axes.set_ylim(0, None)
    _legend(figure, axes)
    return figure if drawn else None


def transitions(results: Results) -> Figure | None:
    """Status of training prompts, first visit against last: a share of each row. None when no prompt was visited twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    sums = {m: sum(run.transitions() for run in runs.values()) for m, runs in results.runs.items()}
    known = {m: np.asarray(t) for m, t in sums.items() if np.sum(t)}
    if not known:
        return None
    shown = [m for m in MATRICES if m in known] if len(known) > len(MATRICES) else list(known)
    height = -(-len(shown) // 2)
    figure = Canvas(figsize=(WIDTH, 0.5 + 3.0 * height), layout="constrained")
    FigureCanvasAgg(figure)
    names = [name.replace("_", "\n") for name in STATUSES]
    for k, method in enumerate(shown):
        axes, counts = figure.add_subplot(height, 2, k + 1), known[method]
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(counts.shape):
            if counts[i].sum():
                axes.text(
                    j,
                    i,
                    f"{100 * shares[i, j]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if shares[i, j] > 0.55 else "#222",
                )
        axes.set_xticks(range(5), names, fontsize=7)
        axes.set_yticks(range(5), [f"{n}\n(n={c})" for n, c in zip(names, counts.sum(axis=1), strict=True)], fontsize=7)
        axes.set_title(method, loc="left", fontsize=10)
    figure.suptitle(
        "Status at a prompt's first visit (rows) and last (columns), % of the row", x=0.01, ha="left", fontsize=11
    )
    return figure


def solved(results: Results) -> Figure:
    """Training prompts that were solved at least once, against rollouts; the mean over seeds."""
    figure, axes = new_figure("Training prompts solved at least once")
    for method, runs in results.runs.items():
        pairs = [run.ever_solved() for run in runs.values()]
        length = min(len(x) for x, _ in pairs)
        if not length:
            continue
        x, y = (np.mean([pair[k][:length] for pair in pairs], axis=0) for k in (0, 1))
        axes.plot(x, y, **line(results, method))
    axes.set_ylim(0, None)
    axes.set_xlabel("rollouts")
    axes.set_ylabel("prompts")
    _legend(figure, axes)
    return figure


def difficulty(results: Results) -> Figure | None:
    """Gain in exact success rate of held-out prompts by what the start model made of them. None without exact rates."""
    figure, axes = new_figure("Gain of held-out prompts by their first success rate")
    coloured = [m for m in results.runs if colour(results, m) != OTHER]
    known = [m for m in coloured if all(run.test_rates is not None for run in results.runs[m].values())]
    if not known:
        return None
    for k, method in enumerate(known):
        gains = np.array([run.by_difficulty() for run in results.runs[method].values()])
        spans = [interval(column) for column in gains.T]
        x = np.arange(len(BIN_NAMES)) + (k - (len(known) - 1) / 2) * 0.8 / len(known)
        half = [max(0.0, s.high - s.mean) if np.isfinite(s.high) else 0.0 for s in spans]
        axes.bar(
            x,
            [s.mean for s in spans],
            0.76 / len(known),
            yerr=half if any(half) else None,
            label=method,
            color=colour(results, method),
            error_kw={"lw": 0.8},
        )
    first = next(iter(results.runs[known[0]].values())).test_rates
    assert first is not None
    counts = np.histogram(first[0], BINS)[0]
    axes.set_xticks(
        range(len(BIN_NAMES)), [f"{n}\n{c} prompts" for n, c in zip(BIN_NAMES, counts, strict=True)], fontsize=8
    )
    axes.axhline(0, color="#8a8a8a", linewidth=0.9)
    axes.set_ylabel("gain in success rate")
    _legend(figure, axes)
    return figure


def figures(results: Results) -> dict[str, tuple[Figure, str]]:
    """Name -> (figure, what a reader should see in it), in the order of the page."""
    found: dict[str, tuple[Figure | None, str]] = {
        "differences": (
            differences(results),
            "The comparison in one picture: right of the line is better than uniform.",
        ),
        "accuracy-rollouts": (
            curves(results, lambda run: run.rollouts, "rollouts", "Accuracy against rollouts"),
            "All rollouts count, also those of groups that carry no gradient.",
        ),
        "accuracy-tokens": (
            curves(results, lambda run: run.tokens, "response tokens", "Accuracy against generated tokens"),
            "Methods that prefer prompts with long responses pay here.",
        ),
        "accuracy-seconds": (
            curves(results, lambda run: run.seconds, "seconds in training steps", "Accuracy against wall-clock"),
            "Without evaluation, checkpoints and what only the comparison computes.",
        ),
        "accuracy-flops": (
            curves(
                results, lambda run: results.spent(run, "flops"), "modelled FLOPs", "Accuracy against modelled FLOPs"
            ),
            "At the proportions of a large model, in steps of uniform: what a row costs that is trained on again.",
        ),
        "accuracy-flops-weighted": (
            curves(
                results,
                lambda run: results.spent(run, "flops_weighted"),
                "modelled FLOPs, generation weighted",
                "Accuracy against weighted FLOPs",
            ),
            "The same; a generated token counts more, because generation uses less of an accelerator than training.",
        ),
        "effective-rollouts": (
            effective(results, lambda run: run.effective_rollouts, "Rollouts in mixed groups", "share of rollouts"),
            "The paper's headline number. It rises by itself when budgets go to groups that are mixed anyway.",
        ),
        "effective-prompts": (
            effective(results, lambda run: run.effective_prompts, "Prompts with mixed groups", "share of prompts"),
            "The same, each prompt counted once: how many prompts teach.",
        ),
        "budgets": (
            budgets(results),
            "Whom a method gives its rollouts to. Bins with fewer than three visits are left out.",
        ),
        "transitions": (transitions(results), "Where prompts went: above the diagonal they were solved more often."),
        "solved": (solved(results), "Exploration: how many prompts have been solved at least once."),
        "difficulty": (difficulty(results), "Which prompts a method improves. Whiskers: 95 % interval over seeds."),
    }
    return {name: (figure, text) for name, (figure, text) in found.items() if figure is not None}


def _legend(figure: Figure, axes: Axes) -> None:
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        columns = len(labels) if len(labels) <= 4 else 3
        figure.legend(frameon=False, loc="outside lower center", ncols=columns, fontsize=9)
