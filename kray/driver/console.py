"""The lines that a run prints: start, step, evaluation, and the report at its end. Pure."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kray.config import KrayConfig, kept_config
from kray.driver.held_out import ComparedAnswer, examples
from kray.driver.interval import with_interval
from kray.metrics import (
    BUDGET_MAX,
    BUDGET_MIN,
    REWARD_MEAN,
    STEP_PARTS,
    THROUGHPUT_ROLLOUTS_PER_S,
    THROUGHPUT_TOKENS_PER_S,
    TIMING_S_STEP,
    TRAIN_EFFECTIVE_RATIO,
    timing,
)
from kray.monitor.durations import format_duration
from kray.plan_modes import offered_prompts, offered_share
from kray.text import one_line

if TYPE_CHECKING:  # jobs read reports without loading Ray
    from kray.driver.evaluation import Evaluation


# Seconds below which a part of a step is not shown: one digit after the point would be 0.
SHORTEST_PART_S = 0.05
# Characters of a prompt or response in the report.
WIDTH = 110


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended. Accuracies are mean rewards on the test prompts, None where there was no evaluation."""

    folder: str
    steps: int
    of_steps: int
    stopped: str  # why it ended early, "" if it did not
    accuracy_before: float | None
    accuracy_after: float | None
    greedy_after: float | None
    test_prompts: int
    effective: float  # mean over the steps: train/effective_ratio
    shares: dict[str, float]  # of the steps' time: generate, reward, update, sync; idle: of an engine's
    rollouts: int
    tokens: int
    elapsed_s: float  # in steps
    engine_deaths: int
    restarts: dict[str, int]  # of the learner and of the driver
    left_out: dict[str, str]  # prompts in quarantine -> why
    open_command: str
    charts_url: str
    answers: list[ComparedAnswer] = field(default_factory=list)


def start_line(folder: Path, config: KrayConfig, train: int, test: int, resumed: int | None) -> str:
    """Return the line with which a run starts.

    Args:
        folder: The run folder.
        config: The run's configuration.
        train: Training prompts.
        test: Test prompts.
        resumed: Completed steps of a resumed run, None for a new one.
    """
    begin = "new run" if resumed is None else f"resumed after step {resumed}"
    offered = offered_prompts(config.plan, config.prompts.per_step, train)
    prompts = f"up to {offered}" if offered_share(config.plan) > 1 else f"{config.prompts.per_step}"
    return (
        f"{begin}: {folder}: {config.run.steps} steps of {prompts} prompts and {config.plan.budget} rollouts "
        f"({config.plan.mode}), {train} prompts to train on, {test} held out"
    )


def step_line(step: int, steps: int, metrics: Mapping[str, float], left_s: float) -> str:
    """Return the line of a step.

    Args:
        step: Of the step, counted from 1.
        steps: Of the run.
        metrics: Of the step.
        left_s: Seconds that the steps after it will take.
    """
    m = metrics
    # Parts that would be shown as 0.0 are left out.
    parts = [f"{part} {m[timing(part)]:.1f}" for part in STEP_PARTS if m[timing(part)] >= SHORTEST_PART_S]
    shown = f" ({', '.join(parts)})" if parts else ""
    return (
        f"step {step:>{len(str(steps))}}/{steps}  reward {m[REWARD_MEAN]:.3f}  "
        f"effective rollouts {m.get(TRAIN_EFFECTIVE_RATIO, 0.0):.0%}  budget {m[BUDGET_MIN]:.0f}..{m[BUDGET_MAX]:.0f}  "
        f"{m[THROUGHPUT_ROLLOUTS_PER_S]:,.0f} rollouts/s  {m[THROUGHPUT_TOKENS_PER_S]:,.0f} tokens/s  "
        f"{m[TIMING_S_STEP]:.1f} s{shown}  {format_duration(left_s)} left"
    )


def evaluation_line(step: int, evaluation: Evaluation, when: str, seconds: float) -> str:
    """Return the line of an evaluation, with the 95 % interval of its accuracy over prompts."""
    when = when or f"after step {step}"
    if not evaluation.prompts:
        return f"evaluation {when}: {evaluation.nothing_judged} ({seconds:.1f} s)"
    greedy = "" if evaluation.greedy is None else f", greedy {evaluation.greedy:.3f}"
    turns = evaluation.conversations.get("turns_mean")
    greedy += "" if turns is None else f", {turns:.2f} turns"
    won = f"; win rate {', '.join(map(str, evaluation.matches))}" if evaluation.matches else ""
    return (
        f"evaluation {when}: accuracy {with_interval(evaluation.accuracy, evaluation.accuracy_se)}"
        f"{greedy} on {evaluation.prompts} held-out prompts x {evaluation.samples} samples{won} ({seconds:.1f} s)"
    )


def end_report(summary: Summary) -> str:
    """Return what a run prints when it has ended: what came out, where it is, and which commands go on from there."""
    bin = _bin()
    before, after = (
        "not measured" if value is None or not math.isfinite(value) else f"{value:.3f}"
        for value in (summary.accuracy_before, summary.accuracy_after)
    )
    greedy = "" if summary.greedy_after is None else f" (greedy {summary.greedy_after:.3f})"
    shares = ", ".join(f"{part} {share:.0%}" for part, share in summary.shares.items() if part != "idle")
    measured = (
        f"  effective rollouts    {summary.effective:.0%} of all\n"
        f"  time in steps         {shares} (an engine is idle for {summary.shares['idle']:.0%})\n"
    )
    # Nothing was measured where no step was done.
    measured = "" if math.isnan(summary.effective) else measured
    restarts = ", ".join(f"{who} restarts {times}" for who, times in summary.restarts.items())
    left_out = "".join(
        f"  left out              prompt {one_line(name)}: {one_line(why)}\n" for name, why in summary.left_out.items()
    )
    ending = f"stopped {summary.stopped}" if summary.stopped else "finished"
    return (
        f"\n{ending} after {summary.steps} of {summary.of_steps} steps, {format_duration(summary.elapsed_s)}, "
        f"{summary.rollouts:,} rollouts, {summary.tokens:,} tokens\n"
        f"  held-out accuracy     {before} before, {after} after{greedy}, on {summary.test_prompts} prompts\n"
        f"{_answers(summary.answers)}"
        f"{measured}"
        f"  engines lost          {summary.engine_deaths}; {restarts}\n"
        f"{left_out}"
        f"  results               {summary.folder}\n"
        f"  open them             {bin if summary.open_command.startswith('mlflow') else ''}{summary.open_command}\n"
        f"  charts                {summary.charts_url}\n"
        f"  resume                {resume_command(Path(summary.folder))}\n"
        f"  evaluate              {bin}python jobs/evaluate.py {summary.folder}"
    )


def resume_command(folder: Path) -> str:
    """Return the command that goes on with the run of a folder."""
    return f"{_bin()}python jobs/train.py --config {kept_config(folder)} resume={folder}"


def _bin() -> str:
    return ".venv/bin/" if Path(sys.executable).parent.parent.name == ".venv" else ""


def _answers(answers: Sequence[ComparedAnswer]) -> str:
    """Return lines with greedy responses to held-out prompts before and after training, and how many changed."""
    if not answers:
        return ""
    better, worse = (sum(sign * each.gain > 0 for each in answers) for sign in (1, -1))
    lines = [
        f"  greedy answers        of {len(answers)} that were recorded, {better} became better and {worse} worse, as"
    ]
    for each in examples(answers):
        lines.append(f"    {shorten(each.prompt)}")
        for when, response, reward in (
            ("before", each.before, each.reward_before),
            ("after", each.after, each.reward_after),
        ):
            lines.append(f"      {when:<6} reward {reward:<4.2g} {shorten(response)}")
    return "".join(f"{line}\n" for line in lines)


def shorten(text: str) -> str:
    """Return text on one line, cut to WIDTH characters; characters that would move the cursor are escaped."""
    return one_line(" ".join(text.split()), WIDTH)
