"""The report: one HTML page that needs nothing else, its figures as PNG files, and all numbers as JSON."""

from __future__ import annotations

import base64
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kray.compare.failures import missing
from kray.compare.figures import figures
from kray.compare.page import cards, page, table
from kray.compare.progress import progress
from kray.compare.results import BIN_NAMES, CURRENCIES, Results, read_results
from kray.compare.stats import Interval, interval
from kray.compare.study import Study
from kray.compare.summary import finite, pairs, summary
from kray.compare.tables import amount, markdown, percent, plus_minus
from kray.compare.verdicts import Verdict, separates, verdicts
from kray.config import flat
from kray.monitor.durations import format_duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Methods whose final accuracy others are to reach.
RIVALS = ("uniform", "uniform_twice", "uniform_4x", "grpo_best", "grpo_best_twice")


@dataclass(frozen=True)
class Report:
    """files: what was written, for MLflow. page: the HTML file, "" when no child is done."""

    page: str
    files: list[Path]
    verdicts: list[dict[str, Any]]


def write_report(study: Study) -> Report:
    """Of the children that are done, into <folder>/report."""
    results = read_results(study)
    if not results.runs:
        return Report("", [], [])
    folder = study.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    images: list[tuple[str, str, str]] = []
    first = progress(results, study.curves)
    if first is not None:
        _save(first, folder, "progress", f"Means and 95 % intervals over seeds; {study.flops.text}.", files, images)
        files.append(folder / "progress.svg")
        first.savefig(files[-1], format="svg", metadata={"Date": None})
    for name, (figure, text) in figures(results).items():
        _save(figure, folder, name, text, files, images)
    found = verdicts(results)
    numbers, between = summary(results), pairs(results)
    files.append(folder / "results.md")
    text = markdown(numbers, between, RIVALS, study.flops, study.folder.name, missing(study))
    files[-1].write_text(text, encoding="utf-8")
    files.append(folder / "results.json")
    content = finite(
        {
            "methods": numbers,
            "pairs": between,
            "flops": asdict(study.flops),
            "verdicts": [asdict(v) for v in found],
            "missing": missing(study),
        }
    )
    text = json.dumps(content, indent=1, default=float, allow_nan=False)
    files[-1].write_text(text + "\n")
    html = folder / "index.html"
    sections = [
        ("Verdicts", cards(found)),
        ("Accuracy", _methods(results, numbers)),
        ("Costs", _costs(results, numbers)),
        *_reach(between),
        *_by_difficulty(results),
        *_figures(images),
        ("How it was measured", _account(results)),
    ]
    html.write_text(page(*_head(results, found), sections), encoding="utf-8")
    return Report(str(html), [html, *files], [asdict(verdict) for verdict in found])


def _save(
    figure: Figure, folder: Path, name: str, text: str, files: list[Path], images: list[tuple[str, str, str]]
) -> None:
    """Write a figure as PNG, and add it to the files and, with its text, to the images of the page."""
    picture = BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    files.append(folder / f"{name}.png")
    files[-1].write_bytes(picture.getvalue())
    images.append((name, text, base64.b64encode(picture.getvalue()).decode()))


def _head(results: Results, found: Sequence[Verdict]) -> tuple[str, str]:
    """(title, paragraphs): what was compared, what is done, and whether the setting can show anything."""
    study, setting = results.study, [verdict for verdict in found if verdict.whose == "setting"]
    done = sum(map(len, results.runs.values()))
    lines = [f"{escape(study.describe())}. {done} of {len(study.children)} runs are done.", *_missing(study)]
    if separates(list(found)):
        lines.append("More rollouts help here (n/2 &lt; n &lt; 2n), so the setting can tell allocations of them apart.")
    elif all(verdict.outcome in ("held", "failed") for verdict in setting[:2]):
        lines.append(
            "<b>This setting does not separate.</b> More rollouts do not help: uniform is not n/2 &lt; n &lt; 2n, "
            "so no difference between allocations should be expected, and none below means much."
        )
    else:
        lines.append(
            "<b>Not shown: that this setting separates.</b> Whether uniform is n/2 &lt; n &lt; 2n is undecided "
            "or was not measured, so differences between methods must be read with care."
        )
    if len(study.origins().get("policy", [])) > 1:
        lines.append("<b>The runs began from different policies</b>, so that differences between them mean little.")
    if max(map(len, results.runs.values())) < 2:
        lines.append("There is one seed: nothing here has an interval, and no claim can be decided.")
    return study.folder.name, "".join(f"<p>{line}</p>" for line in lines)


def _missing(study: Study) -> list[str]:
    """Return a line that says which runs are missing and why, none when all are done."""
    failed = [f"{escape(name)} ({escape(why)})" for name, why in missing(study).items() if why]
    left = [escape(name) for name, why in missing(study).items() if not why]
    lines = [f"<b>Given up</b>: {'; '.join(failed)}."] if failed else []
    return [*lines, f"Not done: {', '.join(left)}."] if left else lines


def _methods(results: Results, numbers: dict[str, dict[str, Any]]) -> str:
    head = ["method", "accuracy", "less uniform", "seeds up", "of the ceiling's gain", "sampled", "greedy"]
    rows = []
    for method, row in numbers.items():
        difference, itself = Interval(**row["difference"]), method == "uniform"
        part = row["ceiling_share"]
        own = (
            ["", "", ""]
            if itself
            else [
                plus_minus(difference),
                f"{difference.up} of {difference.seeds}",
                f"{part:.0%}" if math.isfinite(part) else "",
            ]
        )
        sampled, greedy = row["sampled"]["mean"], row["greedy"]["mean"]
        rows.append([method, f"{row['accuracy']['mean']:.4f}", *own, f"{sampled:.3f}", _plain(greedy, ".3f")])
    start = next(iter(numbers.values()))["start"]
    kind = "exact" if results.study.exact else "sampled"
    note = (
        f"<p>accuracy: {kind}, held-out, at the end; {start:.4f} before training. ±: half the 95 % interval of "
        "differences paired by seed.</p>"
    )
    return note + table(head, rows)


def _costs(results: Results, numbers: dict[str, dict[str, Any]]) -> str:
    head = ["method", *CURRENCIES.values(), "mixed: rollouts", "mixed: prompts", "largest budget"]
    rows = [
        [
            method,
            *(amount(row[currency]) for currency in CURRENCIES),
            f"{row['effective_rollouts']['mean']:.2f}",
            f"{row['effective_prompts']['mean']:.2f}",
            str(row["largest_budget"]),
        ]
        for method, row in numbers.items()
    ]
    model = results.study.flops
    unit = "in steps of uniform" if "uniform" in numbers else "for each parameter"
    note = (
        f"<p>{escape(model.text[0].upper() + model.text[1:])}; {unit}. Weighted: a generated token counts "
        f"{model.generation_factor:g} times, for its lower utilisation. mixed: in groups with both rewards, the mean over the "
        "steps after the first epoch.</p>"
    )
    return note + table(head, rows)


def _reach(between: dict[str, dict[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    """Return the section of what each method spends until a rival's accuracy; none without rivals."""
    rows = []
    for rival in RIVALS:
        for method, others in between.items():
            if rival in others:
                pair = others[rival]
                shares = [percent(pair[f"{currency}_share"]["mean"]) for currency in CURRENCIES]
                reached = f"{pair['reached']} of {pair['seeds']}"
                rows.append([method, rival, plus_minus(Interval(**pair["difference"])), reached, *shares])
    note = (
        "<p>What a method spends until the rival's final accuracy of the same seed, as a share of all that the rival spends: "
        "the mean over the seeds that reach it.</p>"
    )
    head = ["method", "rival", "accuracy less rival's", "reached", *CURRENCIES.values()]
    return [("Until a rival's accuracy", note + table(head, rows))] if rows else []


def _by_difficulty(results: Results) -> list[tuple[str, str]]:
    if not results.study.exact:
        return []
    rows = []
    for method, runs in results.runs.items():
        spans = [interval(column) for column in np.array([run.by_difficulty() for run in runs.values()]).T]
        rows.append([method, *(plus_minus(span, ".3f") for span in spans)])
    note = "<p>Gain in exact success rate of held-out prompts, by the start model's success rate on them.</p>"
    return [("By initial difficulty", note + table(["method", *BIN_NAMES], rows))]


def _figures(images: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    shown = "".join(
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}"><figcaption>{escape(text)}</figcaption></figure>'
        for name, text, data in images
    )
    return [("Figures", shown)]


def _account(results: Results) -> str:
    study, base = results.study, results.study.base
    took = [seconds for each in results.took.values() for seconds in each]
    keys = {
        "configuration": study.path,
        "overrides": " ".join(study.overrides) or "none",
        "seeds": ", ".join(map(str, study.seeds)),
        "learning rate": f"{base.train.lr:g}",
        "prompts": f"{base.prompts.train.kind}; {base.evaluate.samples} samples of each test prompt",
        "commit": ", ".join(study.origins().get("commit", [])) or "not known",
        "a run took": f"{format_duration(float(np.median(took)))}, the median",
    }
    text = table(["what", "value"], [[what, value] for what, value in keys.items()])
    tried = "".join(f"<li>{escape(line)}</li>" for line in study.tried)
    return text + (f"<h3>Settings that were tried and did not separate</h3><ul>{tried}</ul>" if tried else "")


def _plain(x: float, form: str) -> str:
    return format(x, form) if math.isfinite(x) else "never"


def write_figures(study: Study, page: Path, file: Path) -> None:
    """Write the figures of a report with the versions, cores and settings that they hold for.

    Args:
        study: The comparison.
        page: The report's page, beside which its results.json is.
        file: Where to write.
    """
    names = ("torch", "ray", "transformers", "numpy")
    versions = {"python": platform.python_version()} | {name: version(name) for name in names}
    settings = {"study": study.path, "seeds": study.seeds, "overrides": study.overrides, "config": flat(study.base)}
    held = {"versions": versions, "cores": os.cpu_count(), "origins": study.origins(), "settings": settings}
    file.write_text(json.dumps(held | json.loads((page.parent / "results.json").read_text()), indent=1) + "\n")
