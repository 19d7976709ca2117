"""The comparison in one figure: held-out accuracy against rollouts and against modelled FLOPs, for a README."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from kray.compare.figures import alike
from kray.compare.results import Results, Run
from kray.compare.stats import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Method -> (name for readers, colour, line style). Shades of one colour for one method with more and more rollouts; the colours
# can be told apart by colour-blind readers and in grey.
LOOKS = {
    "uniform": ("GRPO", "#7fb2d6", "-"),
    "uniform_twice": ("GRPO, 2x rollouts", "#3f86b8", "-"),
    "uniform_4x": ("GRPO, 4x rollouts", "#0b4f80", "-"),
    "grpo_best": ("GRPO at its best", "#009E73", "--"),
    "grpo_best_twice": ("GRPO at its best, 2x rollouts", "#005f45", "--"),
    "kray": ("kray", "#D55E00", "-"),
}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
FRONT = "kray"
# Inches: at 100 dots an inch as wide as a README.
SIZE = (9.0, 4.3)
# Points, and letters of the smaller text under the panels that fit into a line.
FONT, NOTE_WIDTH = 10.5, 145


def progress(results: Results, methods: Sequence[str]) -> Figure | None:
    """Draw two panels for those of the methods that were run: means over seeds, with 95 % intervals.

    Costs are drawn on a logarithmic axis, because methods with 2 and 4 times the rollouts are part of the figure.

    Args:
        results: Of the comparison.
        methods: In the order of the legend.

    Returns:
        None where none of the methods was run and trained.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    known = {name: alike(results.runs[name]) for name in methods if results.runs.get(name)}
    known = {name: runs for name, runs in known.items() if runs and len(runs[0].steps) > 1}
    if not known:
        return None
    figure = Canvas(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    unit = "1 = a step of GRPO" if "uniform" in results.runs else "for each parameter"
    labels = {"rollouts": "rollouts", "flops": f"modelled FLOPs ({unit})"}
    if not all(run.work for runs in known.values() for run in runs):
        # older runs did not count what the model needs
        labels.pop("flops")
    panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    for axes, (currency, label) in zip(panels, labels.items(), strict=True):
        _panel(axes, results, known, currency, label)
    panels[0].set_ylabel("held-out accuracy", fontsize=FONT)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=FONT)
    seeds = sorted({len(runs) for runs in known.values()})
    bands = f"Means over {' to '.join(map(str, seeds[:: max(1, len(seeds) - 1)]))} seeds, bands: 95 % intervals. "
    text = fill((bands if seeds[-1] > 1 else "One seed. ") + _sentence(results.study.flops.text), NOTE_WIDTH)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=FONT - 2.5, color="#66666b")
    return figure


def _panel(axes: Axes, results: Results, known: dict[str, list[Run]], currency: str, label: str) -> None:
    """Draw the curves against one currency; the start, which has cost nothing, is a level line."""
    from matplotlib.ticker import LogLocator, NullLocator

    start = float(np.mean([run.accuracy[0] for runs in known.values() for run in runs]))
    spare = cycle(OTHERS)
    for name, runs in known.items():
        title, tint, style = LOOKS.get(name) or (name.replace("_", " "), next(spare), "-")
        x = np.mean([results.spent(run, currency) for run in runs], axis=0)[1:]
        spans = [interval(column) for column in np.array([run.accuracy for run in runs]).T[1:]]
        width, order = (2.6, 4) if name == FRONT else (1.7, 3)
        axes.plot(
            x,
            [span.mean for span in spans],
            color=tint,
            linestyle=style,
            linewidth=width,
            marker="o",
            markersize=3.5,
            label=title,
            zorder=order,
        )
        axes.fill_between(
            x, [s.low for s in spans], [s.high for s in spans], color=tint, alpha=0.15, linewidth=0, zorder=order - 2
        )
    _draw_start(axes, start)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label, fontsize=FONT)
    axes.tick_params(labelsize=FONT - 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e9e9ec", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_start(axes: Axes, start: float) -> None:
    """Draw the accuracy of the start model as a level line."""
    axes.axhline(start, color="#8a8a8a", linewidth=0.9, linestyle=":")
    axes.annotate(
        "before training",
        (1, start),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=FONT - 2,
        color="#66666b",
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
