"""The planner's API: what requests look like, and the one replica that answers them.

    POST   /v1/allocate             what is known of each prompt, a budget, bounds -> budgets
    POST   /v1/plans                open a step of a named run: prompt ids, budget, mode -> {"id": ...}
    POST   /v1/plans/{id}/take      {"room": 64} -> {"take": [{"prompt_id", "rollouts"}], "in_flight", "done"}
    POST   /v1/plans/{id}/observe   {"labels": [{"prompt_id", "rewards"}], "lost": [...]} -> {"in_flight", "done"}
    GET    /v1/plans/{id}           budgets, weights in the loss (0: leave the group out of its denominator,
                                    too), what was expected
    DELETE /v1/plans/{id}           end the step; ?withdraw=true takes its labels back too
    GET    /v1/runs                 the runs that are held
    GET    /v1/runs/{run}           its beliefs as JSON; PUT gives them back, DELETE forgets the run

examples/plan_client.py is a client.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, model_validator

from kray.plan_modes import MARGINALS, MODES, UNITS, VALUES, WEIGHTS, PlanConfig
from kray.serve.gate import Gate, Limits, Refusal, health
from kray.serve.plan_store import BeliefSettings, PlanBook, allocate

MOST = 10_000_000  # tokens of a budget
MOST_ROLLOUTS = 1_000_000  # of a budget of rollouts: an online step of it takes some seconds
MOST_OF_ONE = 65_536  # rollouts of one prompt

Id = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Count = Annotated[int, Field(ge=0, le=MOST_ROLLOUTS)]
Bound = Annotated[int, Field(ge=0, le=MOST_OF_ONE)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Allocate(Message):
    """Exactly one of success_rate, (alpha, beta) and (successes, trials); every list is one entry a prompt.

    budget: rollouts, spent to the last one; with `cost` in its unit, an upper limit. prior: (alpha, beta) of counts;
    without it one is fitted to them.
    """

    budget: Annotated[FiniteFloat, Field(ge=0, le=MOST)]
    success_rate: list[Share] | None = None
    alpha: list[Positive] | None = None
    beta: list[Positive] | None = None
    successes: list[NotNegative] | None = None
    trials: list[NotNegative] | None = None
    prior: tuple[Positive, Positive] | None = None
    lower: Bound | list[Bound] = PlanConfig.lower
    upper: Bound | list[Bound] = PlanConfig.upper
    cost: list[Positive] | None = None
    value: Literal[VALUES] = PlanConfig.value  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _whole(self) -> Allocate:
        pairs = {"alpha": "beta", "beta": "alpha", "successes": "trials", "trials": "successes"}
        for one, other in pairs.items():
            if getattr(self, one) is not None and getattr(self, other) is None:
                raise ValueError(f"{other} is needed with {one}")
        given = [name for name in ("success_rate", "alpha", "successes") if getattr(self, name) is not None]
        if len(given) != 1:
            told = "success_rate, alpha with beta, successes with trials"
            raise ValueError(f"exactly one of {told} is needed; got {' and '.join(given) or 'none'}")
        if self.prior is not None and self.successes is None:
            raise ValueError("prior goes with successes and trials")
        m = len(getattr(self, given[0]))
        for name in ("beta", "trials", "lower", "upper", "cost"):
            column = getattr(self, name)
            if isinstance(column, list) and len(column) != m:
                raise ValueError(f"{name} must be one for each of {m} prompts; got {len(column)}")
        for at, (passed, trials) in enumerate(zip(self.successes or [], self.trials or [], strict=False)):
            if passed > trials:
                raise ValueError(f"successes[{at}] is {passed:g} of {trials:g} trials")
        return self


class BeliefsOfRun(Message):
    discount: Share = PlanConfig.discount
    prior_alpha: Annotated[FiniteFloat, Field(gt=0, lt=1e6)] = PlanConfig.prior_alpha
    prior_beta: Annotated[FiniteFloat, Field(gt=0, lt=1e6)] = PlanConfig.prior_beta
    fit_prior: bool = PlanConfig.fit_prior


class Open(Message):
    """The keys of `plan` in kray/config/schema.py for one step of a run. budget is counted in `unit`."""

    run: Id = "default"
    prompt_ids: Annotated[list[Id], Field(min_length=1)]
    budget: Annotated[FiniteFloat, Field(ge=0, le=MOST)]
    mode: Literal[MODES] = PlanConfig.mode  # type: ignore[valid-type]
    lower: Bound = PlanConfig.lower
    upper: Bound = PlanConfig.upper
    unit: Literal[UNITS] = PlanConfig.unit  # type: ignore[valid-type]
    value: Literal[VALUES] = PlanConfig.value  # type: ignore[valid-type]
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
    prior_of: list[Id] | None = None  # whose prior each prompt has: its source, its difficulty
    beliefs: BeliefsOfRun | None = None

    def settings(self) -> dict[str, Any]:
        """Of KnapsackPlanner."""
        keys = ("mode", "lower", "upper", "unit", "value", "marginal", "target_size", "in_flight", "pilot", "rounds")
        found = {key: getattr(self, key) for key in (*keys, "weights", "candidates", "target_groups")}
        if self.unit == "tokens":
            return found | {"budget": 0, "token_budget": int(self.budget)}
        if self.budget != int(self.budget) or self.budget > MOST_ROLLOUTS:
            text = f"budget must be a whole number of rollouts, at most {MOST_ROLLOUTS}, not {self.budget:g}"
            raise Refusal(422, text, param="budget")
        return found | {"budget": int(self.budget)}


class Take(Message):
    room: Count | None = None
    request_id: Id | None = None


class Label(Message):
    prompt_id: Id
    rewards: Annotated[list[Share], Field(min_length=1)]
    tokens: NotNegative | None = None


class Lost(Message):
    prompt_id: Id
    rollouts: Count


class Observe(Message):
    labels: list[Label] = []
    lost: list[Lost] = []
    request_id: Id | None = None


class Planner:
    """The body of the one replica: its plans live in it, so there can be no second one."""

    def __init__(self, limits: Limits, key_digest: str, max_runs: int, max_prompts: int, folder: str):
        """folder: where beliefs are kept, "" for nowhere."""
        from kray.serve.meters import Meters

        self.limits, self.key_digest = limits, key_digest
        self.book = PlanBook(max_runs, max_prompts, Path(folder) if folder else None)
        self.meters = Meters("planner")

    def __serve_build_asgi_app__(self) -> Any:
        from fastapi import FastAPI

        app = FastAPI(title="kray planner")
        _routes(app, self.book, self.meters)
        name_fields(app)
        health(app, self.check_health)
        app.add_middleware(Gate, limits=self.limits, key_digest=self.key_digest, meters=self.meters)
        return app

    async def check_health(self) -> None:
        """Called by Serve."""
        folder = self.book.folder
        if folder is not None and not folder.is_dir():
            raise RuntimeError(f"{folder}, where beliefs are kept, is gone")


def _routes(app: Any, book: PlanBook, meters: Any) -> None:
    @app.post("/v1/allocate")
    async def allocated(request: Allocate) -> dict[str, Any]:
        beliefs = (request.alpha, request.beta) if request.alpha is not None and request.beta is not None else None
        counts = None
        if request.successes is not None and request.trials is not None:
            counts = (request.successes, request.trials)
        bounds = (request.lower, request.upper, request.cost, request.value)
        known = (request.success_rate, beliefs, counts, request.prior)
        found = await asyncio.to_thread(allocate, request.budget, *bounds, *known)
        meters.count_items(len(found["budgets"]))
        return found

    @app.post("/v1/plans")
    async def opened(request: Open) -> dict[str, Any]:
        begin = {"cost": request.cost, "due": request.due, "labels": request.prior_of}
        beliefs = BeliefSettings(**request.beliefs.model_dump()) if request.beliefs else None
        found = book.open(request.run, request.prompt_ids, request.settings(), begin, beliefs)
        meters.count_items(found["prompts"])
        return found

    @app.post("/v1/plans/{plan_id}/take")
    async def taken(plan_id: str, request: Take) -> dict[str, Any]:
        return book.take(plan_id, request.room, request.request_id)

    @app.post("/v1/plans/{plan_id}/observe")
    async def observed(plan_id: str, request: Observe) -> dict[str, Any]:
        labels = [(label.prompt_id, list(label.rewards), label.tokens) for label in request.labels]
        return book.observe(plan_id, labels, [(x.prompt_id, x.rollouts) for x in request.lost], request.request_id)

    @app.get("/v1/plans/{plan_id}")
    async def plan_state(plan_id: str) -> dict[str, Any]:
        return book.state(plan_id)

    @app.delete("/v1/plans/{plan_id}")
    async def closed(plan_id: str, withdraw: bool = False) -> dict[str, Any]:
        return book.close(plan_id, withdraw)

    @app.get("/v1/runs")
    async def runs() -> dict[str, Any]:
        return {"runs": book.runs()}

    @app.get("/v1/runs/{run}")
    async def saved(run: str) -> dict[str, Any]:
        return book.saved(run)

    @app.put("/v1/runs/{run}")
    async def loaded(run: str, state: dict[str, Any]) -> dict[str, Any]:
        return book.load(run, state)

    @app.delete("/v1/runs/{run}")
    async def dropped(run: str) -> dict[str, Any]:
        return book.drop(run)


def name_fields(app: Any) -> None:
    """FastAPI's own errors as refusals: those of a request's form name the first field that is wrong."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def named(request: Any, error: Any) -> None:
        found = error.errors()
        first = next(
            (told for told in found if told["type"] == "extra_forbidden"), found[0]
        )  # before what it misspells
        where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        place = ".".join(where)
        text = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            raise Refusal(400, f"the body is no JSON: {text}", "invalid")
        raise Refusal(422, f"{place}: {text}" if place else text, "invalid", where[0] if where else None)

    app.add_exception_handler(RequestValidationError, named)

    async def told(request: Any, error: Any) -> None:
        text = "no such path here" if error.status_code == 404 else str(error.detail)
        raise Refusal(error.status_code, text, "path" if error.status_code in (404, 405) else "invalid")

    app.add_exception_handler(HTTPException, told)
