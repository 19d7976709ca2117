"""What must be true of a run whatever happened to it, checked against its log (instrumented.py) and what it left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kray.plan_modes import PlanConfig
from kray.planner import Beliefs
from kray.planner.settings import make_beliefs
from kray.prompts.sampler import PromptSampler

Lines = Sequence[dict[str, Any]]


def surviving(lines: Lines) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the `learned` lines on which the end of the run rests, one a step, and the problems among them.

    A line of step s continues step s - 1; where the step was done before, the run must have gone back in between.
    """
    chain: list[dict[str, Any]] = []
    problems = []
    for line in (line for line in lines if line["event"] == "learned"):
        step, standing = line["step"], len(chain)
        if step > standing + 1:
            problems.append(f"step {step} follows step {standing}")
        elif step <= standing and (line["life"], line["learner"]) == (chain[-1]["life"], chain[-1]["learner"]):
            problems.append(f"step {step} was trained twice without going back")
        chain = [*chain[: step - 1], line]
    return chain, problems


def visits_of(lines: Lines, chain: Lines) -> list[dict[str, Any]]:
    """Of each surviving step, the visit that it was learned from: the last one before it."""
    before: dict[int, dict[str, Any]] = {}
    found = {}
    for line in lines:
        if line["event"] == "visits":
            before[line["step"]] = line
        elif line["event"] == "learned" and any(line is kept for kept in chain[line["step"] - 1 : line["step"]]):
            found[line["step"]] = before[line["step"]]
    return [found[line["step"]] for line in chain]


def audit(
    lines: Lines, steps: int, ids: Sequence[str], sampler: PromptSampler, plan: PlanConfig, final: dict[str, Any]
) -> list[str]:
    """Problems, none when all is well. steps: that the run was to do; final: the state of its last checkpoint."""
    chain, problems = surviving(lines)
    if len(chain) != steps:
        return [*problems, f"{len(chain)} of {steps} steps were done"]
    visits = visits_of(lines, chain)
    for number, (visit, learned) in enumerate(zip(visits, chain, strict=True)):
        expected = {ids[i] for i in sampler.take(number)}
        if set(visit["ids"]) != expected or len(visit["ids"]) != len(expected):
            problems.append(f"step {number + 1} visited other prompts than the sampler names")
        if sum(visit["budgets"]) != plan.budget:
            problems.append(f"step {number + 1} has a budget of {sum(visit['budgets'])}, not {plan.budget}")
        for prompt_id, indices in learned["rollouts"]:
            if len(set(indices)) != len(indices):
                problems.append(f"step {number + 1} trained a rollout of {prompt_id} twice")
        trained = {prompt_id: len(indices) for prompt_id, indices in learned["rollouts"]}
        back = {i: n for i, n in zip(visit["ids"], visit["trials"], strict=True) if n}
        if trained != back:
            problems.append(f"step {number + 1} trained other rollouts than came back")
    for line in (line for line in lines if line["event"] == "learned"):
        tasks = line["tasks"]
        if tasks["submitted"] != tasks["waiting"] + tasks["running"] + tasks["ended"]:
            problems.append(f"step {line['step']}: rollout tasks do not add up: {tasks}")
    return problems + replay(visits, plan, final)


def replay(visits: Lines, plan: PlanConfig, final: dict[str, Any]) -> list[str]:
    """Whether the beliefs at the end are those that the visits' labels give."""
    beliefs = make_beliefs(plan)
    for visit in visits:
        beliefs.refit_prior()
        beliefs.begin_visit(visit["ids"])
        for prompt_id, successes, trials in zip(visit["ids"], visit["successes"], visit["trials"], strict=True):
            beliefs.observe(prompt_id, [1.0] * int(successes) + [0.0] * int(trials - successes))
    kept = Beliefs.from_dict(final["planner"]["beliefs"])
    ids = sorted({prompt_id for visit in visits for prompt_id in visit["ids"]})
    same = bool((beliefs.visits(ids) == kept.visits(ids)).all())
    for mine, its in zip(beliefs.posterior(ids), kept.posterior(ids), strict=True):
        same = same and np.allclose(mine, its, rtol=1e-9)
    return [] if same else ["beliefs are not those that a replay of the log gives"]


def regenerated(lines: Lines, chain: Lines) -> int:
    """Rollouts that came back and were then generated again, because the run had to go back behind them."""
    kept = sum(sum(visit["trials"]) for visit in visits_of(lines, chain))
    return int(sum(sum(line["trials"]) for line in lines if line["event"] == "visits") - kept)
