"""Renders the status of a run for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kray.monitor.durations import format_duration
from kray.text import legible, one_line

# Characters of the longest bar.
BAR = 32


def render(found: Mapping[str, Any]) -> Group:
    """Return a status, as kray.monitor.status makes it, for rich to print."""
    parts: list[Any] = [_head(found), _facts(found)]
    if found["engines"]:
        parts.append(_engines(found["engines"]))
    if found["budgets"]:
        parts.append(_budgets(found["budgets"]))
    return Group(*parts)


def _head(found: Mapping[str, Any]) -> Text:
    left = "" if found.get("left_s") is None else f", about {format_duration(found['left_s'])} left"
    place = f", part {found['part']}" if found.get("part") else ""
    done = found["step"] / found["steps"] if found["steps"] else 0.0
    bar = "━" * round(BAR * done) + "╌" * (BAR - round(BAR * done))
    title = f"  {found['state']}{place}\n"
    progress = f"  step {found['step']} of {found['steps']} ({done:.0%}){left}"
    return Text.assemble((legible(found["run"]), "bold"), legible(title), (bar, "green"), progress)


def _facts(found: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for label, text in rows(found):
        # As text: rich would read [...] as markup.
        table.add_row(Text(label, style="dim"), Text(legible(text)))
    return table


def rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, text) of every figure of a status that is known."""
    lines: list[tuple[str, str]] = []

    def add(label: str, text: str, known: Any = True) -> None:
        if known is not None and known != {} and known != []:
            lines.append((label, text))

    get = found.get
    parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in found["parts_s"].items())
    add(
        "rates",
        f"{_number(get('rollouts_per_s'))} rollouts/s, {_number(get('tokens_per_s'))} tokens/s",
        get("rollouts_per_s"),
    )
    add("step time", f"{_number(get('step_s'))} s: {parts}", get("step_s"))
    add("so far", f"{found['rollouts']:,} rollouts, {found['tokens']:,} tokens", found["rollouts"] or None)
    add("reward", f"{_number(get('reward'))}", get("reward"))
    add("effective", f"{get('effective') or 0:.0%} of rollouts", get("effective"))
    if get("effective_prompts") is not None:
        shares = (found["effective_prompts"], found["effective_rollouts"])
        add("mixed groups", "{:.0%} of prompts, {:.0%} of rollouts".format(*shares))
    budget = found["budget"]
    add("budgets", f"{found['mode']}: " + ", ".join(f"{name} {value:.0f}" for name, value in budget.items()), budget)
    accuracies = found["accuracies"]
    if accuracies:
        (first, before), (last, now) = accuracies[0], accuracies[-1]
        earlier = f" ({before:.3f} after step {first})" if last != first else ""
        add("accuracy", f"{now:.3f} after step {last}{earlier}")
    add("engines idle", f"{get('idle') or 0:.0%} of the newest step", get("idle"))
    add("staleness", f"{_number(get('staleness'))} versions", get("staleness") or None)
    add("engine losses", f"{found['restarts']} restarts, {found['preemptions']} preemptions")
    if get("tasks"):
        add("rollout tasks", f"{found['tasks']['running']} running, {found['tasks']['waiting']} waiting")
    add("checkpoint", ", ".join(found["saved"]), found["saved"])
    add("newest step", f"{format_duration(get('since_step_s') or 0.0)} ago", get("since_step_s"))
    add("last line", str(get("said")), get("said") or None)
    add("folder", found["folder"])
    add("MLflow", str(get("open_command")), get("open_command"))
    return lines


def _engines(engines: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("engine", "state", "assigned", "tokens generated", "idle", "policy", "restarts", "last loss"):
        table.add_column(head)
    for engine in engines:
        idle = "" if engine["idle"] is None else f"{engine['idle']:.0%}"
        assigned = f"{engine['rollouts']} rollouts of {engine['tasks']} tasks" if engine["tasks"] else "-"
        counts = f"{engine['tokens']:,}", idle, str(engine["version"]), str(engine["restarts"])
        table.add_row(engine["name"], engine["state"], assigned, *counts, Text(one_line(engine["lost"], 60)))
    return table


def _budgets(budgets: list[list[Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("rollouts", justify="right")
    table.add_column("prompts of the newest step")
    most = max(prompts for _, prompts in budgets)
    for label, prompts in budgets:
        bar = "▆" * max(1 if prompts else 0, round(BAR * prompts / most))
        table.add_row(label, Text.assemble((bar, "cyan"), f" {prompts}"))
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
