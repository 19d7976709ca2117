"""The record of an evaluation by jobs/evaluate.py: a table for the terminal, and an MLflow run. Loads neither Ray nor torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kray.config import KrayConfig, flat
from kray.driver.interval import with_interval
from kray.errors import KrayError
from kray.text import one_line
from kray.tracking.evaluations import log_evaluation
from kray.tracking.store import Store, locate, reach
from kray.train.checkpoints import read_state

if TYPE_CHECKING:
    from kray.driver.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """Where an evaluation is recorded.

    Attributes:
        config: The configuration of the evaluation.
        store: The MLflow store.
        parent: The training run under which it is nested, "" for none.
        step: Of the policy.
        policy: The policy as it was named on the command line.
    """

    config: KrayConfig
    store: Store
    parent: str
    step: int
    policy: str

    @classmethod
    def of(cls, config: KrayConfig, checkpoint: Path | None, policy: str) -> EvaluationRecord | None:
        """Return where to record the evaluation.

        Args:
            config: The configuration of the evaluation.
            checkpoint: The checkpoint that is evaluated; None for a model.
            policy: The policy as it was named on the command line.

        Returns:
            None where there is no store to record it in.

        Raises:
            KrayError: The store cannot be reached.
        """
        if checkpoint is None:
            store = locate(config.track.uri, Path(config.run.dir).expanduser() / "evaluation")
            if store.origin == "the run folder":
                return None
            parent, step = "", 0
        else:
            state, folder = read_state(checkpoint), checkpoint.parent.parent
            store, parent, step = locate(config.track.uri, folder), state["mlflow_run_id"], state["step"]
            if store.uri.startswith("sqlite") and not Path(store.uri.partition("///")[2]).is_file():
                # The run's store is gone, and a new one would hold nothing but this.
                return None
        reach(store)
        return cls(config, store, parent, step, policy)

    def record(self, evaluation: Evaluation, tags: Mapping[str, Any]) -> str:
        """Record the evaluation.

        Returns:
            How to open it, or why it could not be recorded.
        """
        name = f"evaluation of {Path(self.policy).name} after step {self.step} at {time.strftime('%Y%m%d-%H%M%S')}"
        more = {"kray.policy": self.policy, "kray.step": str(self.step)}
        try:
            return log_evaluation(
                self.store,
                self.config.track.experiment,
                name,
                self.parent,
                flat(self.config),
                {**tags, **more},
                self.step,
                evaluation.metrics(),
                evaluation.rows,
            )
        except KrayError as error:
            return f"not recorded: {error}"


def table(evaluation: Evaluation) -> str:
    """Return the figures as a table for the terminal."""
    if not evaluation.prompts:
        return f"nothing judged    {evaluation.nothing_judged}"
    lines = [
        f"prompts           {evaluation.prompts}, {evaluation.samples} samples each, {evaluation.failed} responses lost",
        f"accuracy          {with_interval(evaluation.accuracy, evaluation.accuracy_se, 4)} (95 % over prompts)",
    ]
    if evaluation.greedy is not None:
        lines.append(f"greedy accuracy   {evaluation.greedy:.4f}")
    lines += [f"{f'pass@{k}':<18}{value:.4f}" for k, value in evaluation.pass_at.items()]
    lines += [f"{name:<18}{value:.4f}  mean of the reward function" for name, value in evaluation.functions.items()]
    lines += [f"win rate          {match}" for match in evaluation.matches]
    lines += [
        f"  {one_line(kind):<16}{value:.4f}  of {prompts}"
        for kind, (prompts, value) in (evaluation.by_set | evaluation.by_kind).items()
    ]
    return "\n".join(lines)
