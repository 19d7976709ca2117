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
from typing import Any

import numpy as np

from kray.compare.figures import figures
from kray.compare.page import cards, page, table
from kray.compare.results import BIN_NAMES, Results, read_results
from kray.compare.stats import Interval, cost_to, interval, paired, share
from kray.compare.study import Study
from kray.compare.verdicts import Verdict, late_prompts, late_rollouts, separates, verdicts
from kray.config import flat
from kray.monitor.durations import format_duration


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
    files, images = [], []
    for name, (figure, text) in figures(results).items():
        picture = BytesIO()
        figure.savefig(picture, dpi=130, format="png")
        files.append(folder / f"{name}.png")
        files[-1].write_bytes(picture.getvalue())
        images.append((name, text, base64.b64encode(picture.getvalue()).decode()))
    found = verdicts(results)
    numbers = summary(results)
    files.append(folder / "results.json")
    content = finite({"methods": numbers, "verdicts": [asdict(v) for v in found]})
    text = json.dumps(content, indent=1, default=float, allow_nan=False)
    files[-1].write_text(text + "\n")
    html = folder / "index.html"
    sections = [
        ("Verdicts", cards(found)),
        ("Accuracy", _methods(results, numbers)),
        ("Rollouts, gradients and costs", _costs(numbers)),
        *_by_difficulty(results),
        *_figures(images),
        ("How it was measured", _account(results)),
    ]
    html.write_text(page(*_head(results, found), sections), encoding="utf-8")
    return Report(str(html), [html, *files], [asdict(verdict) for verdict in found])


def finite(value: Any) -> Any:
    """With None in place of every number that was not measured: JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """Of each method: means with 95 % intervals over seeds, and differences with uniform paired by seed."""
    base = results.seeds("uniform", lambda run: run.final)
    top = results.seeds("exact_p", lambda run: run.final)
    goals = {seed: run.final for seed, run in results.runs.get("uniform", {}).items()}
    found = {}
    for method, runs in results.runs.items():
        final = results.seeds(method, lambda run: run.final)
        reach = {s: cost_to(r.rollouts.tolist(), r.accuracy.tolist(), goals[s]) for s, r in runs.items() if s in goals}
        found[method] = {
            "seeds": sorted(runs),
            "accuracy": asdict(interval(list(final.values()))),
            "accuracy_by_seed": final,
            "difference": asdict(paired(final, base)),
            "ceiling_share": share(final, base, top),
            "sampled": asdict(interval([run.sampled[-1] for run in runs.values()])),
            "greedy": asdict(interval([run.greedy[-1] for run in runs.values()])),
            "start": float(np.mean([run.accuracy[0] for run in runs.values()])),
            "rollouts_to_uniform": asdict(interval(list(reach.values()))),
            "reached_uniform": sum(math.isfinite(x) for x in reach.values()),
            "effective_rollouts": asdict(interval([late_rollouts(run) for run in runs.values()])),
            "effective_prompts": asdict(interval([late_prompts(run) for run in runs.values()])),
            "largest_budget": max(max(line["budgets"]) for run in runs.values() for line in run.visits),
            "rollouts": float(np.mean([run.rollouts[-1] for run in runs.values()])),
            "tokens": float(np.mean([run.tokens[-1] for run in runs.values()])),
            "seconds": float(np.mean([run.seconds[-1] for run in runs.values()])),
            "by_difficulty": np.mean([r.by_difficulty() for r in runs.values()], axis=0).tolist(),
            "transitions": np.sum([run.transitions() for run in runs.values()], axis=0).tolist(),
        }
    return found


def _head(results: Results, found: Sequence[Verdict]) -> tuple[str, str]:
    """(title, paragraphs): what was compared, what is done, and whether the setting can show anything."""
    study, setting = results.study, [verdict for verdict in found if verdict.whose == "setting"]
    done = sum(map(len, results.runs.values()))
    lines = [f"{escape(study.describe())}. {done} of {len(study.children)} runs are done."]
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
                _pm(difference),
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


def _costs(numbers: dict[str, dict[str, Any]]) -> str:
    head = [
        "method",
        "rollouts to uniform's end",
        "mixed: rollouts",
        "mixed: prompts",
        "largest budget",
        "rollouts",
        "tokens",
        "seconds",
    ]
    rows = []
    for method, row in numbers.items():
        reach, some = row["rollouts_to_uniform"]["mean"], row["reached_uniform"] < len(row["seeds"])
        rows.append(
            [
                method,
                _plain(reach, ",.0f") + (f" ({row['reached_uniform']} of {len(row['seeds'])} seeds)" if some else ""),
                f"{row['effective_rollouts']['mean']:.2f}",
                f"{row['effective_prompts']['mean']:.2f}",
                str(row["largest_budget"]),
                f"{row['rollouts']:,.0f}",
                f"{row['tokens']:,.0f}",
                f"{row['seconds']:.0f}",
            ]
        )
    note = (
        "<p>rollouts to uniform's end: until the accuracy that uniform of the same seed has at the end. mixed: in groups "
        "with both rewards, the mean over the steps after the first epoch.</p>"
    )
    return note + table(head, rows)


def _by_difficulty(results: Results) -> list[tuple[str, str]]:
    if not results.study.exact:
        return []
    rows = []
    for method, runs in results.runs.items():
        spans = [interval(column) for column in np.array([run.by_difficulty() for run in runs.values()]).T]
        rows.append([method, *(_pm(span, ".3f") for span in spans)])
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


def _pm(span: Interval, form: str = ".4f") -> str:
    if not math.isfinite(span.mean):
        return "–"
    half = f" ± {format(span.high - span.mean, form)}" if math.isfinite(span.high) else ""
    return f"{format(span.mean, '+' + form)}{half}"


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
