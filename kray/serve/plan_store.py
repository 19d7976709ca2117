"""The planner's state between requests: runs with their beliefs, and the step that is open in each. Pure: no Ray, no HTTP.

Promises
- A run has one open plan at a time: the next begins with the labels of the one before.
- What cannot be done is refused by an error that names the field, and then nothing has changed; of many labels in one
  request those before the bad one have been taken, and the error says how many.
- A request that is sent again with the same request_id gets the same answer and does nothing again.
- The number of runs, of prompts in a run and of answers kept is bounded.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.plan_modes import PlanConfig
from kray.planner import Beliefs, BetaValue, CobaValue, GrpoValue, KnapsackPlanner, PointValue, StepPlan, solve
from kray.planner.beliefs import PRIOR_PROMPTS
from kray.planner.priors import fit_beta_binomial
from kray.planner.values import Value
from kray.serve.gate import Refusal

ANSWERS = 256  # of an open plan that are kept for requests sent again
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class BeliefSettings:
    """How the beliefs of a run begin; see plan.discount and the like in kray/config/schema.py."""

    discount: float = PlanConfig.discount
    prior_alpha: float = PlanConfig.prior_alpha
    prior_beta: float = PlanConfig.prior_beta
    fit_prior: bool = PlanConfig.fit_prior


@dataclass(slots=True)
class OpenPlan:
    id: str
    step: StepPlan
    answers: OrderedDict[tuple[str, str], dict[str, Any]] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class Run:
    name: str
    settings: BeliefSettings | None  # None: not told, by beliefs from elsewhere
    beliefs: Beliefs
    steps: int = 0  # plans closed
    plan: OpenPlan | None = None

    def began_as(self, settings: BeliefSettings) -> bool:
        """As far as is known: of beliefs from elsewhere, their discount, unless it was fitted."""
        if self.settings is None:
            return self.beliefs.fit_discount or self.beliefs.discounts[0] == settings.discount
        return self.settings == settings

    def begun_with(self) -> dict[str, Any]:
        return asdict(self.settings) if self.settings is not None else {"discount": self.beliefs.discounts[0]}


class PlanBook:
    """max_runs: held at a time. max_prompts: of one run. folder: where beliefs are kept when a plan is closed and found
    again when their run is first named, None: nowhere."""

    def __init__(self, max_runs: int = 64, max_prompts: int = 1_000_000, folder: Path | None = None):
        self.max_runs, self.max_prompts, self.folder = max_runs, max_prompts, folder
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
        """Begins a step of a run. settings: of KnapsackPlanner. begin: cost, due, labels of KnapsackPlanner.begin."""
        known = run_name in self._runs
        run = self._run(run_name, beliefs or BeliefSettings())
        try:
            self._check_free(run, prompt_ids, beliefs)
            if run.plan is not None:
                self.close(run.plan.id)
            with refusals():
                planner = KnapsackPlanner(beliefs=run.beliefs, **settings)
                step = planner.begin(list(prompt_ids), **begin)
        except Refusal:
            if not known:  # a request that is refused leaves no run behind
                del self._runs[run_name]
            raise
        run.plan = OpenPlan(uuid.uuid4().hex, step)
        run.settings = run.settings or beliefs
        return {"id": run.plan.id, "run": run_name, "step": run.steps, "prompts": len(prompt_ids), "room": step.room()}

    def _check_free(self, run: Run, prompt_ids: Sequence[str], beliefs: BeliefSettings | None) -> None:
        """Refuses what a run cannot begin now."""
        if beliefs is not None and not run.began_as(beliefs):
            raise Refusal(409, f"beliefs: run {run.name!r} was begun with {run.begun_with()}", "conflict", "beliefs")
        if run.plan is not None and not run.plan.step.done:
            text = (
                f"run: {run.name!r} has plan {run.plan.id} open: take it to its end, or DELETE /v1/plans/{run.plan.id}"
            )
            raise Refusal(409, text, "conflict", "run")
        total = len(run.beliefs) + len(prompt_ids)
        if total > self.max_prompts:
            total = len(run.beliefs) + int((~run.beliefs.known(prompt_ids)).sum())
        if total > self.max_prompts:
            text = f"prompt_ids: run {run.name!r} would hold {total} prompts; {self.max_prompts} are allowed"
            raise Refusal(413, text, "prompts", "prompt_ids")

    def take(self, plan_id: str, room: int | None, request_id: str | None = None) -> dict[str, Any]:
        """The rollouts to generate now, at most `room` (None: all that the plan gives out)."""
        _, plan = self._find(plan_id)

        def work() -> dict[str, Any]:
            with refusals():
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
        """Labels (prompt id, rewards, tokens) of rollouts taken, and rollouts (prompt id, number) that failed for good."""
        _, plan = self._find(plan_id)

        def work() -> dict[str, Any]:
            for number, (prompt_id, rewards, tokens) in enumerate(labels):
                with refusals(f"labels[{number}]", number):
                    plan.step.observe(prompt_id, rewards, tokens)
            for number, (prompt_id, rollouts) in enumerate(lost):
                with refusals(f"lost[{number}]", number):
                    plan.step.lost(prompt_id, rollouts)
            return {"in_flight": plan.step.in_flight, "done": plan.step.done}

        return _once(plan, "observe", request_id, work)

    def state(self, plan_id: str) -> dict[str, Any]:
        """What the plan has given out and what was expected of it."""
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
        """Ends a step, whatever is in flight; its labels stay in the beliefs unless it is withdrawn."""
        run, plan = self._find(plan_id)
        if withdraw:
            plan.step.withdraw()
        run.plan = None
        run.steps += not withdraw
        if self.folder is not None:
            _keep(self.folder / f"{run.name}.json", self.saved(run.name))
        return {"id": plan_id, "run": run.name, "steps": run.steps, "in_flight": plan.step.in_flight}

    # -- runs ----------------------------------------------------------------------------------------------------------

    def runs(self) -> list[dict[str, Any]]:
        return [
            {"run": r.name, "steps": r.steps, "prompts": len(r.beliefs), "plan": r.plan.id if r.plan else None}
            for r in self._runs.values()
        ]

    def saved(self, run_name: str) -> dict[str, Any]:
        """A run's beliefs as JSON holds them; of the form of KnapsackPlanner.to_dict, with how they began beside it."""
        run = self._known(run_name)
        begun = {"settings": asdict(run.settings)} if run.settings is not None else {}
        return {"version": 1, "steps": run.steps, "beliefs": run.beliefs.to_dict()} | begun

    def load(self, run_name: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """Gives a run the beliefs that `saved` gave; a run without an open plan, or a new one."""
        held = self._runs.get(run_name)
        if held is not None and held.plan is not None and not held.plan.step.done:
            raise Refusal(409, f"run: {run_name!r} has plan {held.plan.id} open", "conflict", "run")
        beliefs, steps = read_beliefs(state, self.max_prompts)
        settings = _settings(state.get("settings"))
        self._room_for(run_name)
        self._runs[run_name] = Run(run_name, settings, beliefs, steps)
        if self.folder is not None:
            _keep(self.folder / f"{run_name}.json", self.saved(run_name))
        return {"run": run_name, "prompts": len(beliefs)}

    def drop(self, run_name: str) -> dict[str, Any]:
        """Forgets a run; what was kept in the folder stays there."""
        run = self._known(run_name)
        del self._runs[run_name]
        return {"run": run.name, "steps": run.steps}

    def _run(self, name: str, settings: BeliefSettings) -> Run:
        """The run, which is found in the folder or made where it is not held."""
        if name not in self._runs:
            self._room_for(name)
            file = self.folder / f"{name}.json" if self.folder is not None else None
            if file is not None and file.is_file():
                self.load(name, _kept(file))
            else:
                with refusals("beliefs"):
                    made = Beliefs(settings.discount, settings.prior_alpha, settings.prior_beta, settings.fit_prior)
                self._runs[name] = Run(name, settings, made)
        return self._runs[name]

    def _room_for(self, name: str) -> None:
        if not RUN.fullmatch(name):
            text = "run must be 1 to 64 letters, digits, '.', '_' or '-' and begin with a letter or digit"
            raise Refusal(422, text, "invalid", "run")
        if name not in self._runs and len(self._runs) >= self.max_runs:
            held = ", ".join(list(self._runs)[:5])
            text = f"run: {self.max_runs} runs are held ({held}, ...); DELETE /v1/runs/<run> of one that is over"
            raise Refusal(429, text, "runs", "run")

    def _known(self, name: str) -> Run:
        if name not in self._runs:
            raise Refusal(404, f"run {name!r} is not held here", "unknown", "run")
        return self._runs[name]

    def _find(self, plan_id: str) -> tuple[Run, OpenPlan]:
        for run in self._runs.values():
            if run.plan is not None and run.plan.id == plan_id:
                return run, run.plan
        raise Refusal(404, f"plan {plan_id!r} is not open here", "unknown", "id")


def allocate(
    budget: float,
    lower: int | Sequence[int],
    upper: int | Sequence[int],
    cost: Sequence[float] | None,
    value: str,
    success_rate: Sequence[float] | None = None,
    beliefs: tuple[ArrayLike, ArrayLike] | None = None,
    counts: tuple[Sequence[float], Sequence[float]] | None = None,
    prior: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Budgets of one step from what is known of each prompt: its success rate, a Beta belief, or (successes, trials).

    prior: of counts; None: fitted to them where there are PRIOR_PROMPTS of them, else uniform.
    """
    with refusals():
        used = None
        if success_rate is not None:
            if value != "paper":
                raise ValueError(f"value {value} is an expectation under a belief: give alpha and beta, or counts")
            worth: Value = PointValue(success_rate)
            expected = np.asarray(success_rate, dtype=np.float64)
        else:
            if counts is not None:
                successes, trials = (np.asarray(x, dtype=np.float64) for x in counts)
                used = prior or _fitted(successes, trials)
                beliefs = (used[0] + successes, used[1] + trials - successes)
            assert beliefs is not None
            alpha, beta = (np.asarray(x, dtype=np.float64) for x in beliefs)
            worth = _value(value, alpha, beta)
            expected = alpha / (alpha + beta)
        budgets = solve(worth, budget, np.asarray(lower), np.asarray(upper), None if cost is None else np.asarray(cost))
    found = {"budgets": budgets.tolist(), "expected_value": worth.total(budgets).tolist()}
    found |= {"expected_success": expected.tolist(), "rollouts": int(budgets.sum())}
    return found | ({"prior": list(used)} if used else {})


def _fitted(successes: np.ndarray, trials: np.ndarray) -> tuple[float, float]:
    seen = trials > 0
    fitted = fit_beta_binomial(successes[seen], trials[seen]) if np.count_nonzero(seen) >= PRIOR_PROMPTS else None
    return fitted or (1.0, 1.0)


def _value(name: str, alpha: np.ndarray, beta: np.ndarray) -> Value:
    if name == "grpo":
        return GrpoValue(alpha, beta)
    if name == "coba":
        return CobaValue(alpha, beta, float(np.mean(beta / (alpha + beta))))
    return BetaValue(alpha, beta)


def _settings(told: Any) -> BeliefSettings | None:
    """Raises Refusal where it is neither absent nor sound."""
    if told is None:
        return None
    try:
        settings = BeliefSettings(**told)
        Beliefs(*astuple(settings))  # checks them
    except (TypeError, ValueError) as error:
        raise Refusal(422, f"settings: {error}", "invalid", "settings") from None
    return settings


def read_beliefs(state: Mapping[str, Any], max_prompts: int) -> tuple[Beliefs, int]:
    """Beliefs and steps from a JSON that anyone may have written. Raises Refusal that says what is wrong with it."""
    try:
        if state.get("version") != 1:
            raise ValueError(f"version {state.get('version')!r} cannot be read; this is version 1")
        told, steps = state["beliefs"], state.get("steps", 0)
        if not (isinstance(steps, int) and 0 <= steps < 2**53):
            raise ValueError(f"steps must be a number of steps, not {steps!r}")
        ids, labels = told["prompt_ids"], told.get("labels", [""])
        if not (isinstance(ids, list) and all(isinstance(name, str) for name in ids) and len(ids) <= max_prompts):
            raise ValueError(f"prompt_ids must be a list of at most {max_prompts} texts")
        if not (isinstance(labels, list) and labels[:1] == [""] and all(isinstance(name, str) for name in labels)):
            raise ValueError("labels must be a list of texts that begins with the empty one")
        if any(number not in range(len(labels)) for number in told.get("label_of", [])):
            raise ValueError("label_of must hold positions in labels")
        for number, alpha, beta in told.get("priors", []):
            Beliefs(0.5, alpha, beta)  # checks them
            if number not in range(1, len(labels)):
                raise ValueError("priors must be of labels that there are")
        return Beliefs.from_dict(told), steps
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        named = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Refusal(422, f"beliefs: {named}", "invalid", "beliefs") from error


@contextmanager
def refusals(field_name: str = "", done: int = 0) -> Iterator[None]:
    """Turns the planner's ValueErrors into refusals that name a request's field. done: entries taken before this one."""
    try:
        yield
    except ValueError as error:
        text = str(error).replace("plan.token_budget", "budget").replace("plan.", "")
        key = field_name or re.split(r"[^a-z_]", text, maxsplit=1)[0]
        if field_name:
            text = f"{field_name}: {text}" + (f" (the {done} before it were taken)" if done else "")
        raise Refusal(422, text, "invalid", key) from error


def _once(plan: OpenPlan, call: str, request_id: str | None, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer that this request got before, else a new one. Each call has request ids of its own."""
    if request_id is None:
        return work()
    if (call, request_id) in plan.answers:
        return plan.answers[call, request_id]
    answer = plan.answers[call, request_id] = work()
    while len(plan.answers) > ANSWERS:
        plan.answers.popitem(last=False)
    return answer


def _keep(file: Path, state: dict[str, Any]) -> None:
    """Writes it whole or not at all."""
    unfinished = file.with_name(f".tmp-{file.name}")
    unfinished.write_text(json.dumps(state))
    os.replace(unfinished, file)


def _kept(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        text = f"the beliefs kept in {file.name} cannot be read ({error}); take the file away to begin the run anew"
        raise Refusal(500, text, "state", "run") from error
