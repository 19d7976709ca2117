"""The planner's state between requests: runs with their beliefs, and the open plan of each. Pure: no Ray, no HTTP.

- A run has one open plan at a time; the next one starts with the labels of the one before.
- What cannot be done is refused with an error that names the field, and then nothing has changed; of many labels in one
  request those before the invalid one have been taken, and the error says how many.
- A request that is sent again with the same request_id gets the same response and changes nothing.
- The number of runs, of prompts in a run and of stored responses is bounded.
"""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kray.errors import KrayError
from kray.planner import Beliefs, KnapsackPlanner, StepPlan
from kray.serve.allocation import planner_refusals
from kray.serve.gate import Refusal
from kray.serve.saved_beliefs import (
    VERSION,
    BeliefSettings,
    read_beliefs,
    read_file,
    read_settings,
    unreadable,
    write_file,
)

# Responses of an open plan that are stored for requests sent again.
STORED_RESPONSES = 256
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(slots=True)
class OpenPlan:
    """A plan that is being carried out.

    Attributes:
        id: Its id in the API.
        step: The plan.
        responses: (call, request id) -> response, for requests that are sent again.
    """

    id: str
    step: StepPlan
    responses: OrderedDict[tuple[str, str], dict[str, Any]] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class Run:
    """A client's run.

    Attributes:
        name: Its name.
        settings: How its beliefs started; None: unknown, because they were loaded without settings.
        beliefs: What is known of its prompts.
        steps: Plans that were closed and not withdrawn.
        plan: The open plan.
    """

    name: str
    settings: BeliefSettings | None
    beliefs: Beliefs
    steps: int = 0
    plan: OpenPlan | None = None

    def started_with(self, settings: BeliefSettings) -> bool:
        """Return whether the beliefs started with these settings; where those are unknown, the discount decides."""
        if self.settings is None:
            return self.beliefs.fit_discount or self.beliefs.discounts[0] == settings.discount
        return self.settings == settings

    def saved(self, steps: int | None = None) -> dict[str, Any]:
        """Return the beliefs as JSON-compatible data, as of so many steps; None: as it is."""
        settings = {"settings": asdict(self.settings)} if self.settings is not None else {}
        count = self.steps if steps is None else steps
        return {"version": VERSION, "steps": count, "beliefs": self.beliefs.to_dict()} | settings

    def known_settings(self) -> dict[str, Any]:
        """Return what is known of the settings that the beliefs started with."""
        return asdict(self.settings) if self.settings is not None else {"discount": self.beliefs.discounts[0]}


class PlanStore:
    """All runs and their open plans."""

    def __init__(
        self,
        max_runs: int = 64,
        max_prompts: int = 1_000_000,
        folder: Path | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        """Create a store without runs.

        Args:
            max_runs: Most runs at a time.
            max_prompts: Most prompts of one run.
            folder: Where beliefs are written when a plan is closed, and read when their run is first named; None: nowhere.
            check: Raises a KrayError where the folder is another service's by now.
        """
        self.max_runs, self.max_prompts, self.folder, self.check = max_runs, max_prompts, folder, check
        self._runs: dict[str, Run] = {}

    # -- one step ------------------------------------------------------------------------------------------------------

    def open(
        self,
        run_name: str,
        prompt_ids: Sequence[str],
        settings: Mapping[str, Any],
        begin: Mapping[str, Any],
        beliefs: BeliefSettings | None = None,
    ) -> dict[str, Any]:
        """Open a plan for the next step of a run, which is created if it does not exist.

        Args:
            run_name: The run.
            prompt_ids: Prompts of the step.
            settings: Keyword arguments of KnapsackPlanner.
            begin: Keyword arguments of KnapsackPlanner.begin: cost, due, labels.
            beliefs: How the run's beliefs start; None: the default for a new run, whatever they are for others.

        Returns:
            "id" of the plan, "run", "step", "prompts" and "room", the rollouts that `take` may return now.

        Raises:
            Refusal: A plan of the run is open, or the arguments are invalid.
        """
        known = run_name in self._runs
        run = self._run(run_name, beliefs or BeliefSettings())
        try:
            self._check_can_open(run, prompt_ids, beliefs)
            if run.plan is not None:
                self.close(run.plan.id)
            with planner_refusals():
                planner = KnapsackPlanner(beliefs=run.beliefs, **settings)
                step = planner.begin(list(prompt_ids), **begin)
        except Refusal:
            if not known:  # a request that is refused leaves no run behind
                del self._runs[run_name]
            raise
        run.plan = OpenPlan(uuid.uuid4().hex, step)
        run.settings = run.settings or beliefs
        return {"id": run.plan.id, "run": run_name, "step": run.steps, "prompts": len(prompt_ids), "room": step.room()}

    def _check_can_open(self, run: Run, prompt_ids: Sequence[str], beliefs: BeliefSettings | None) -> None:
        """Raise Refusal when the run cannot open such a plan now."""
        if beliefs is not None and not run.started_with(beliefs):
            raise Refusal(
                409, f"beliefs: run {run.name!r} was started with {run.known_settings()}", "conflict", "beliefs"
            )
        if run.plan is not None and not run.plan.step.done:
            text = f"run: {run.name!r} has plan {run.plan.id} open: complete it, or DELETE /v1/plans/{run.plan.id}"
            raise Refusal(409, text, "conflict", "run")
        total = len(run.beliefs) + len(prompt_ids)
        if total > self.max_prompts:
            total = len(run.beliefs) + int((~run.beliefs.known(prompt_ids)).sum())
        if total > self.max_prompts:
            text = f"prompt_ids: run {run.name!r} would hold {total} prompts; {self.max_prompts} are allowed"
            raise Refusal(413, text, "prompts", "prompt_ids")

    def take(self, plan_id: str, room: int | None, request_id: str | None = None) -> dict[str, Any]:
        """Take rollouts of an open plan to generate now.

        Args:
            plan_id: The plan.
            room: Most rollouts to take; None: as many as the plan allows.
            request_id: Id for requests that may be sent again.

        Returns:
            "take", a list of {"prompt_id", "rollouts"}; "in_flight", the rollouts taken and not labelled; "done".

        Raises:
            Refusal: The plan is not open.
        """
        _, plan = self._find(plan_id)

        def work() -> dict[str, Any]:
            with planner_refusals():
                taken = plan.step.take(plan.step.room(room))
            rollouts = [{"prompt_id": prompt_id, "rollouts": count} for prompt_id, count in taken]
            return {"take": rollouts, "in_flight": plan.step.in_flight, "done": plan.step.done}

        return _once(plan, "take", request_id, work)

    def observe(
        self,
        plan_id: str,
        labels: Sequence[tuple[str, list[float], float | None]],
        lost: Sequence[tuple[str, int]] = (),
        request_id: str | None = None,
    ) -> dict[str, Any]:
        """Add the labels of rollouts that were taken.

        Args:
            plan_id: The plan.
            labels: (prompt id, rewards in [0, 1], tokens of these rollouts or None).
            lost: (prompt id, number) of rollouts that failed finally.
            request_id: Id for requests that may be sent again.

        Returns:
            "in_flight" and "done".

        Raises:
            Refusal: The plan is not open, or a label is invalid; those before it have been added.
        """
        _, plan = self._find(plan_id)

        def work() -> dict[str, Any]:
            for number, (prompt_id, rewards, tokens) in enumerate(labels):
                with planner_refusals(f"labels[{number}]", number):
                    plan.step.observe(prompt_id, rewards, tokens)
            for number, (prompt_id, rollouts) in enumerate(lost):
                with planner_refusals(f"lost[{number}]", number):
                    plan.step.lost(prompt_id, rollouts)
            return {"in_flight": plan.step.in_flight, "done": plan.step.done}

        return _once(plan, "observe", request_id, work)

    def state(self, plan_id: str) -> dict[str, Any]:
        """Return what an open plan has given out and what was expected of it.

        Raises:
            Refusal: The plan is not open.
        """
        run, plan = self._find(plan_id)
        allocation = plan.step.allocation()
        return {
            "id": plan_id,
            "run": run.name,
            "step": run.steps,
            "done": plan.step.done,
            "in_flight": plan.step.in_flight,
            "prompt_ids": allocation.prompt_ids,
            "budgets": allocation.budgets.tolist(),
            "weights": allocation.weights.tolist(),
            "expected_success": allocation.expected_success.tolist(),
            "expected_value": allocation.expected_value.tolist(),
            "metrics": plan.step.metrics(),
        }

    def close(self, plan_id: str, withdraw: bool = False) -> dict[str, Any]:
        """End a plan, whatever is in flight.

        Args:
            plan_id: The plan.
            withdraw: Remove its labels from the beliefs; else they stay.

        Returns:
            "id", "run", "steps" of the run so far, "in_flight".

        Raises:
            Refusal: The plan is not open, or the beliefs cannot be written; then it stays open.
        """
        run, plan = self._find(plan_id)
        self._check_can_write()
        if withdraw:
            plan.step.withdraw()
        steps = run.steps + (not withdraw)
        self._keep(run, steps)
        run.plan, run.steps = None, steps
        return {"id": plan_id, "run": run.name, "steps": run.steps, "in_flight": plan.step.in_flight}

    # -- runs ----------------------------------------------------------------------------------------------------------

    def runs(self) -> list[dict[str, Any]]:
        """Return "run", "steps", "prompts" and "plan", the id of the open plan or None, of every run."""
        return [
            {"run": r.name, "steps": r.steps, "prompts": len(r.beliefs), "plan": r.plan.id if r.plan else None}
            for r in self._runs.values()
        ]

    def saved(self, run_name: str) -> dict[str, Any]:
        """Return a run's beliefs as JSON-compatible data, in the form of KnapsackPlanner.to_dict and with its settings.

        Raises:
            Refusal: There is no such run.
        """
        return self._known(run_name).saved()

    def load(self, run_name: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """Create a run, or replace one without an open plan, from what `saved` returned.

        Raises:
            Refusal: The run has an open plan, the state is invalid or cannot be written, or there are too many runs.
        """
        held = self._runs.get(run_name)
        if held is not None and held.plan is not None and not held.plan.step.done:
            raise Refusal(409, f"run: {run_name!r} has plan {held.plan.id} open", "conflict", "run")
        run = self._read(run_name, state)
        self._check_can_create(run_name)
        self._check_can_write()
        self._keep(run, run.steps)
        self._runs[run_name] = run
        return {"run": run_name, "prompts": len(run.beliefs)}

    def drop(self, run_name: str) -> dict[str, Any]:
        """Remove a run; its file in the folder stays.

        Raises:
            Refusal: There is no such run.
        """
        run = self._known(run_name)
        del self._runs[run_name]
        return {"run": run.name, "steps": run.steps}

    def _run(self, name: str, settings: BeliefSettings) -> Run:
        """Return the run; if there is none, read it from the folder or create it."""
        if name not in self._runs:
            self._check_can_create(name)
            kept = read_file(self.folder / f"{name}.json") if self.folder is not None else None
            if kept is not None:
                try:
                    self._runs[name] = self._read(name, kept)
                except Refusal as refusal:
                    # The file is at fault, not the request.
                    raise unreadable(f"{name}.json", refusal) from refusal
            else:
                with planner_refusals("beliefs"):
                    made = Beliefs(settings.discount, settings.prior_alpha, settings.prior_beta, settings.fit_prior)
                self._runs[name] = Run(name, settings, made)
        return self._runs[name]

    def _read(self, name: str, state: Mapping[str, Any]) -> Run:
        """Return the run that `saved` described; raise Refusal where the state is invalid."""
        beliefs, steps = read_beliefs(state, self.max_prompts)
        return Run(name, read_settings(state.get("settings")), beliefs, steps)

    def _keep(self, run: Run, steps: int) -> None:
        """Write a run to the folder, as of so many steps.

        Raises:
            Refusal: It cannot be written.
        """
        if self.folder is not None:
            write_file(self.folder / f"{run.name}.json", run.saved(steps))

    def _check_can_create(self, name: str) -> None:
        """Raise Refusal when the name is invalid or there are too many runs for a new one."""
        if not RUN_NAME.fullmatch(name):
            text = "run must be 1 to 64 letters, digits, '.', '_' or '-' and begin with a letter or digit"
            raise Refusal(422, text, "invalid", "run")
        if name not in self._runs and len(self._runs) >= self.max_runs:
            held = ", ".join(list(self._runs)[:5])
            text = f"run: the limit of {self.max_runs} runs is reached ({held}, ...); DELETE /v1/runs/<run> of a finished one"
            raise Refusal(429, text, "runs", "run")

    def _check_can_write(self) -> None:
        """Raise Refusal when another service has taken the folder."""
        try:
            self.check()
        except KrayError as error:
            raise Refusal(503, f"run: {error}", "state", "run") from error

    def _known(self, name: str) -> Run:
        if name not in self._runs:
            raise Refusal(404, f"there is no run {name!r}", "unknown", "run")
        return self._runs[name]

    def _find(self, plan_id: str) -> tuple[Run, OpenPlan]:
        for run in self._runs.values():
            if run.plan is not None and run.plan.id == plan_id:
                return run, run.plan
        raise Refusal(404, f"plan {plan_id!r} is not open", "unknown", "id")


def _once(plan: OpenPlan, call: str, request_id: str | None, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the stored response to this request, or do the work and store one; each call has request ids of its own."""
    if request_id is None:
        return work()
    if (call, request_id) in plan.responses:
        return plan.responses[call, request_id]
    response = plan.responses[call, request_id] = work()
    while len(plan.responses) > STORED_RESPONSES:
        plan.responses.popitem(last=False)
    return response
