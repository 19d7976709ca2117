"""The planner's HTTP API: its requests, and the one replica that serves them. All work is done in one queue (work_queue.py).

    POST   /v1/allocate             what is known of each prompt, a budget, bounds -> budgets
    POST   /v1/plans                open the plan of a run's next step: prompt ids, budget, mode -> {"id": ...}
    POST   /v1/plans/{id}/take      {"room": 64} -> {"take": [{"prompt_id", "rollouts"}], "in_flight", "done"}
    POST   /v1/plans/{id}/observe   {"labels": [{"prompt_id", "rewards"}], "lost": [...]} -> {"in_flight", "done"}
    GET    /v1/plans/{id}           budgets, weights in the loss (0: the group is left out of its denominator,
                                    too), what was expected
    DELETE /v1/plans/{id}           end the step; ?withdraw=true removes its labels, too
    GET    /v1/runs                 all runs
    GET    /v1/runs/{run}           the run's beliefs as JSON; PUT restores them, DELETE removes the run

examples/plan_client.py is a client.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, StringConstraints, model_validator

from kray.cluster.folder_lock import FolderLock, Ticket
from kray.plan_modes import (
    GAINS,
    GROUP_LOWER,
    GROUP_VALUE,
    MARGINALS,
    MODES,
    UNITS,
    VALUES,
    WEIGHTS,
    PlanConfig,
)
from kray.serve.allocation import AllocationRequest, allocate
from kray.serve.gate import Gate, Limits, Refusal, health
from kray.serve.messages import Message, refuse_invalid_requests
from kray.serve.plan_store import PlanStore
from kray.serve.replica_server import stay_local
from kray.serve.saved_beliefs import BeliefSettings, to_json
from kray.serve.work_queue import WorkQueue, yield_often

# Largest budget in tokens.
MAX_TOKENS = 10_000_000
# Largest budget in rollouts; an online step with it takes some seconds.
MAX_ROLLOUTS = 1_000_000
# Most rollouts of one prompt.
MAX_ROLLOUTS_PER_PROMPT = 65_536
# Seconds that a request may be expected to wait for those before it. What goes on with an open plan may wait longer than what
# begins something: a step that has begun is to be completed.
BEGIN_WAIT_S, CONTINUE_WAIT_S = 0.25, 2.0
MOST_WAIT_S = dict.fromkeys(("allocate", "open", "load", "saved"), BEGIN_WAIT_S)
MOST_WAIT_S |= dict.fromkeys(("take", "observe", "state", "close", "runs", "drop"), CONTINUE_WAIT_S)
# Requests that are refused before their bodies are read.
BEGINNING = {("POST", "/v1/allocate"): "allocate", ("POST", "/v1/plans"): "open"}

Id = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Count = Annotated[int, Field(ge=0, le=MAX_ROLLOUTS)]
Bound = Annotated[int, Field(ge=0, le=MAX_ROLLOUTS_PER_PROMPT)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]


class Allocate(Message):
    """Body of POST /v1/allocate; the fields are those of AllocationRequest.

    Exactly one of success_rate, (alpha, beta) and (successes, trials) is needed, with one entry per prompt in every list.
    A budget of rollouts is spent completely.
    """

    budget: Annotated[FiniteFloat, Field(ge=0, le=MAX_TOKENS)]
    success_rate: list[Share] | None = None
    alpha: list[Positive] | None = None
    beta: list[Positive] | None = None
    successes: list[NotNegative] | None = None
    trials: list[NotNegative] | None = None
    prior: tuple[Positive, Positive] | None = None
    lower: Bound | list[Bound] = GROUP_LOWER
    upper: Bound | list[Bound] = PlanConfig.upper
    cost: list[Positive] | None = None
    value: Literal[VALUES] = GROUP_VALUE  # type: ignore[valid-type]
    gain: Literal[GAINS] = PlanConfig.gain  # type: ignore[valid-type]
    tau: NotNegative = PlanConfig.tau

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return len(self.success_rate or self.alpha or self.successes or ())

    @model_validator(mode="after")
    def _whole(self) -> Allocate:
        pairs = {"alpha": "beta", "beta": "alpha", "successes": "trials", "trials": "successes"}
        for one, other in pairs.items():
            if getattr(self, one) is not None and getattr(self, other) is None:
                raise ValueError(f"{other} is needed with {one}")
        given = [name for name in ("success_rate", "alpha", "successes") if getattr(self, name) is not None]
        if len(given) != 1:
            allowed = "success_rate, alpha with beta, successes with trials"
            raise ValueError(f"exactly one of {allowed} is needed; got {' and '.join(given) or 'none'}")
        if self.prior is not None and self.successes is None:
            raise ValueError("prior goes with successes and trials")
        m = len(getattr(self, given[0]))
        for name in ("beta", "trials", "lower", "upper", "cost"):
            column = getattr(self, name)
            if isinstance(column, list) and len(column) != m:
                raise ValueError(f"{name} must be one for each of {m} prompts; got {len(column)}")
        for i, (successes, trials) in enumerate(zip(self.successes or [], self.trials or [], strict=False)):
            if successes > trials:
                raise ValueError(f"successes[{i}] is {successes:g} of {trials:g} trials")
        return self


class InitialBeliefs(Message):
    """How the beliefs of a run start; the fields are those of BeliefSettings."""

    discount: Share = PlanConfig.discount
    prior_alpha: Annotated[FiniteFloat, Field(gt=0, lt=1e6)] = PlanConfig.prior_alpha
    prior_beta: Annotated[FiniteFloat, Field(gt=0, lt=1e6)] = PlanConfig.prior_beta
    fit_prior: bool = PlanConfig.fit_prior


class Open(Message):
    """Body of POST /v1/plans: the keys of `plan` for one step of a run; the budget is counted in `unit`."""

    run: Id = "default"
    prompt_ids: Annotated[list[Id], Field(min_length=1)]
    budget: Annotated[FiniteFloat, Field(ge=0, le=MAX_TOKENS)]
    mode: Literal[MODES] = PlanConfig.mode  # type: ignore[valid-type]
    lower: Bound = GROUP_LOWER
    upper: Bound = PlanConfig.upper
    unit: Literal[UNITS] = PlanConfig.unit  # type: ignore[valid-type]
    value: Literal[VALUES] = GROUP_VALUE  # type: ignore[valid-type]
    gain: Literal[GAINS] = PlanConfig.gain  # type: ignore[valid-type]
    tau: NotNegative = PlanConfig.tau
    marginal: Literal[MARGINALS] = PlanConfig.marginal  # type: ignore[valid-type]
    target_size: Count = PlanConfig.target_size
    in_flight: Count = PlanConfig.in_flight
    pilot: Count = PlanConfig.pilot
    rounds: Count = PlanConfig.rounds
    weights: Literal[WEIGHTS] = PlanConfig.weights  # type: ignore[valid-type]
    # Not the default of the configuration: a client names the prompts of a step, and 1 visits all of them.
    candidates: Annotated[FiniteFloat, Field(ge=1, le=1e6)] = 1.0
    target_groups: Count = PlanConfig.target_groups
    cost: list[Positive] | None = None
    due: list[bool] | None = None
    # Label of the prior that each prompt shares, such as its source or difficulty.
    prior_of: list[Id] | None = None
    beliefs: InitialBeliefs | None = None

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of KnapsackPlanner.

        Raises:
            Refusal: A budget of rollouts is fractional or too large.
        """
        keys = (
            "mode",
            "lower",
            "upper",
            "unit",
            "value",
            "gain",
            "tau",
            "marginal",
            "target_size",
            "in_flight",
            "pilot",
        )
        found = {key: getattr(self, key) for key in (*keys, "rounds", "weights", "candidates", "target_groups")}
        if self.unit == "tokens":
            return found | {"budget": 0, "token_budget": int(self.budget)}
        if self.budget != int(self.budget) or self.budget > MAX_ROLLOUTS:
            text = f"budget must be a whole number of rollouts, at most {MAX_ROLLOUTS}, not {self.budget:g}"
            raise Refusal(422, text, param="budget")
        return found | {"budget": int(self.budget)}


class Take(Message):
    """Body of POST /v1/plans/{id}/take."""

    room: Count | None = None
    request_id: Id | None = None


class Label(Message):
    """Rewards of rollouts of one prompt, and their response tokens."""

    prompt_id: Id
    rewards: Annotated[list[Share], Field(min_length=1)]
    tokens: NotNegative | None = None


class Lost(Message):
    """Rollouts of one prompt that failed finally."""

    prompt_id: Id
    rollouts: Count


class Observe(Message):
    """Body of POST /v1/plans/{id}/observe."""

    labels: list[Label] = Field(default_factory=list)
    lost: list[Lost] = Field(default_factory=list)
    request_id: Id | None = None


class Planner:
    """The one replica of the service; it holds all plans, so there can be no second one."""

    def __init__(
        self,
        limits: Limits,
        key_digest: str,
        max_runs: int,
        max_prompts: int,
        folder: str,
        ticket: Ticket | None = None,
    ):
        """Create the replica.

        Args:
            limits: Limits of requests.
            key_digest: Digest of the key, "" for none.
            max_runs: Most runs at a time.
            max_prompts: Most prompts of one run.
            folder: Where beliefs are written; "" for nowhere.
            ticket: Of the folder's lock, which the job holds; None: it is not locked.
        """
        from kray.serve.meters import Meters

        stay_local()
        yield_often()
        self.limits, self.key_digest = limits, key_digest
        # Serve may start another replica in place of this one.
        self._lock = FolderLock.join(ticket, f"replica-{os.getpid()}") if ticket else None
        check = self._lock.check if self._lock else lambda: None
        self.store = PlanStore(max_runs, max_prompts, Path(folder) if folder else None, check)
        self.queue = WorkQueue(MOST_WAIT_S)
        self.meters = Meters("planner")

    def __serve_build_asgi_app__(self) -> Any:
        from fastapi import FastAPI

        app = FastAPI(title="kray planner")
        _add_routes(app, self.store, self.queue, self.meters)
        refuse_invalid_requests(app)
        health(app, self.check_health)
        limits, meters = self.limits, self.meters
        app.add_middleware(Gate, limits=limits, key_digest=self.key_digest, meters=meters, admit=self.admit)
        return app

    def admit(self, method: str, path: str) -> None:
        """Raise Refusal for a request that would wait too long."""
        if (kind := BEGINNING.get((method, path))) is not None:
            self.queue.check(kind)

    async def check_health(self) -> None:
        """Raise when the folder of the beliefs is gone or another service's; called by Serve."""
        self.store.check()
        folder = self.store.folder
        if folder is not None and not folder.is_dir():
            raise RuntimeError(f"the folder of the beliefs is gone: {folder}")

    def __del__(self) -> None:
        if queue := getattr(self, "queue", None):
            queue.close()


def _add_routes(app: Any, store: PlanStore, queue: WorkQueue, meters: Any) -> None:
    from fastapi import Response

    async def answered(kind: str, call: Callable[..., dict[str, Any]], *arguments: Any) -> Any:
        """Return the response to a request; also its JSON is made in the queue, since that of large runs takes long."""
        body = await queue.run(kind, lambda: to_json(call(*arguments)).encode())
        return Response(body, media_type="application/json")

    @app.post("/v1/allocate")
    async def allocated(request: Allocate) -> Any:
        found = await answered("allocate", allocate, AllocationRequest(**dict(request)))
        meters.count_items(request.prompts)
        return found

    @app.post("/v1/plans")
    async def opened(request: Open) -> Any:
        begin = {"cost": request.cost, "due": request.due, "labels": request.prior_of}
        beliefs = BeliefSettings(**request.beliefs.model_dump()) if request.beliefs else None
        found = await answered("open", store.open, request.run, request.prompt_ids, request.settings(), begin, beliefs)
        meters.count_items(len(request.prompt_ids))
        return found

    @app.post("/v1/plans/{plan_id}/take")
    async def taken(plan_id: str, request: Take) -> Any:
        return await answered("take", store.take, plan_id, request.room, request.request_id)

    @app.post("/v1/plans/{plan_id}/observe")
    async def observed(plan_id: str, request: Observe) -> Any:
        labels = [(label.prompt_id, list(label.rewards), label.tokens) for label in request.labels]
        lost = [(x.prompt_id, x.rollouts) for x in request.lost]
        return await answered("observe", store.observe, plan_id, labels, lost, request.request_id)

    @app.get("/v1/plans/{plan_id}")
    async def plan_state(plan_id: str) -> Any:
        return await answered("state", store.state, plan_id)

    @app.delete("/v1/plans/{plan_id}")
    async def closed(plan_id: str, withdraw: bool = False) -> Any:
        return await answered("close", store.close, plan_id, withdraw)

    @app.get("/v1/runs")
    async def runs() -> Any:
        return await answered("runs", lambda: {"runs": store.runs()})

    @app.get("/v1/runs/{run}")
    async def saved(run: str) -> Any:
        return await answered("saved", store.saved, run)

    @app.put("/v1/runs/{run}")
    async def loaded(run: str, state: dict[str, Any]) -> Any:
        return await answered("load", store.load, run, state)

    @app.delete("/v1/runs/{run}")
    async def dropped(run: str) -> Any:
        return await answered("drop", store.drop, run)
