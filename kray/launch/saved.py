"""What is left of a run that did not end by itself: its newest checkpoint, and the command that goes on from it."""

from __future__ import annotations

from pathlib import Path

from kray.driver.console import resume_command
from kray.errors import KrayError
from kray.monitor.durations import format_duration
from kray.train.checkpoints import newest_checkpoint, read_state


def saved_report(folder: Path, of_steps: int) -> str:
    """Return lines for people.

    Args:
        folder: The run folder.
        of_steps: Steps of the whole run.
    """
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        return f"  saved                 nothing: there was no checkpoint yet\n  results               {folder}"
    try:
        state = read_state(checkpoint)
        spent = f", {state['rollouts']:,} rollouts, {format_duration(state['elapsed_s'])} in steps"
    except (KrayError, KeyError, TypeError, ValueError):
        state, spent = {"step": int(checkpoint.name.rpartition("-")[2])}, ""
    return (
        f"  saved                 step {state['step']} of {of_steps}{spent}\n"
        f"  results               {folder}\n"
        f"  resume                {resume_command(folder)}"
    )
