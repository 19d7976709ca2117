"""The planner's service gives the planner's own plans, and its state survives invalid requests."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time

import httpx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kray.planner import Beliefs, BetaValue, KnapsackPlanner, PointValue, solve
from kray.serve.allocation import AllocationRequest, allocate
from kray.serve.gate import Limits, Refusal
from kray.serve.plan_store import PlanStore
from kray.serve.planner_api import Allocate, Open, Planner
from kray.serve.saved_beliefs import BeliefSettings, to_json

IDS = [f"p{i}" for i in range(24)]
PLAN = {"mode": "online", "budget": 120, "lower": 2, "upper": 16}


def refused(status: int, field: str, call, *arguments, **options) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments, **options)
    assert (caught.value.status, caught.value.param) == (status, field), str(caught.value)
    return str(caught.value)


def rewards(prompt_id: str, count: int, rng: random.Random) -> list[float]:
    return [float(rng.random() < int(prompt_id[1:]) / len(IDS)) for _ in range(count)]


def carry_out(store: PlanStore, plan_id: str, rng: random.Random, room: int | None = 32) -> int:
    """Carry out a plan; return the number of rollouts."""
    made = 0
    while not (now := store.take(plan_id, room))["done"]:
        labels = [(x["prompt_id"], rewards(x["prompt_id"], x["rollouts"], rng), None) for x in now["take"]]
        made += sum(x["rollouts"] for x in now["take"])
        store.observe(plan_id, labels)
    return made


@pytest.mark.parametrize("mode", ["static", "online", "rounds", "uniform", "weight_only", "dynamic_sampling"])
def test_plans_equal_the_planners_own(mode):
    store, beliefs = PlanStore(), Beliefs()
    for step in range(3):
        plan_id = store.open("r", IDS, PLAN | {"mode": mode}, {})["id"]
        alone = KnapsackPlanner(beliefs=beliefs, **(PLAN | {"mode": mode})).begin(IDS)
        rng, other = random.Random(step), random.Random(step)
        carry_out(store, plan_id, rng)
        while not alone.done:
            for prompt_id, count in alone.take(alone.room(32)):
                alone.observe(prompt_id, rewards(prompt_id, count, other))
        state, wanted = store.state(plan_id), alone.allocation()
        assert state["done"]
        assert alone.done
        assert state["budgets"] == wanted.budgets.tolist()
        assert np.allclose(state["weights"], wanted.weights)
        assert store.close(plan_id)["steps"] == step + 1
    assert store.saved("r")["beliefs"] == beliefs.to_dict()


def test_saved_beliefs_change_the_next_plan(tmp_path):
    store = PlanStore(folder=tmp_path)
    carry_out(store, plan_id := store.open("r", IDS, PLAN, {})["id"], random.Random(0))
    store.close(plan_id)
    copied = PlanStore()
    copied.load("copy", json.loads(json.dumps(store.saved("r"))))
    again = PlanStore(folder=tmp_path)  # a restarted service
    static = PLAN | {"mode": "static"}
    plans = []
    for held, run in ((store, "r"), (copied, "copy"), (again, "r"), (PlanStore(), "new")):
        plan_id = held.open(run, IDS, static, {})["id"]
        held.take(plan_id, None)
        plans.append(held.state(plan_id)["budgets"])
    assert plans[0] == plans[1] == plans[2]
    assert plans[0] != plans[3]
    assert again.runs()[0]["steps"] == 1


# What may lie where the beliefs of a run are expected: text, None for a folder.
DAMAGED = {
    "half": "{",
    "list": "[]",
    "empty": "{}",
    "other": '{"version": 1, "beliefs": {}}',
    "text": '"x"',
    "nested": "[" * 100_000 + "]" * 100_000,
    "binary": "\udcff",
    "folder": None,
}


@pytest.mark.parametrize("found", DAMAGED)
def test_unreadable_state_is_refused_and_left_alone(tmp_path, found):
    content = DAMAGED[found]
    if content is None:
        (tmp_path / "r.json").mkdir()
    else:
        (tmp_path / "r.json").write_bytes(content.encode(errors="surrogateescape"))
    store = PlanStore(folder=tmp_path)
    assert "r.json cannot be read" in refused(500, "run", store.open, "r", IDS, PLAN, {})
    assert store.runs() == []
    if content is not None:
        assert (tmp_path / "r.json").read_bytes() == content.encode(errors="surrogateescape")
    store.open("other", IDS, PLAN, {})


def test_plan_stays_open_when_its_labels_cannot_be_written(tmp_path):
    store = PlanStore(folder=tmp_path)
    plan_id = store.open("r", IDS, PLAN, {})["id"]
    carry_out(store, plan_id, random.Random(0))
    (tmp_path / "r.json").mkdir()
    for _ in range(2):
        assert "nothing has changed" in refused(503, "run", store.close, plan_id)
    (tmp_path / "new.json").mkdir()
    refused(503, "run", store.load, "new", store.saved("r"))
    assert [run["run"] for run in store.runs()] == ["r"]
    assert [path.name for path in tmp_path.glob(".tmp-*")] == []
    (tmp_path / "r.json").rmdir()
    assert store.close(plan_id)["steps"] == 1
    assert PlanStore(folder=tmp_path).open("r", IDS, PLAN, {})["step"] == 1


def nested(depth: int) -> dict:
    found: dict = {}
    for _ in range(depth):
        found = {"a": [found]}
    return found


@pytest.mark.parametrize("place", ["beliefs", "prior", "successes", "settings"])
def test_nested_state_is_refused(place):
    store, deep = PlanStore(), nested(400)
    state = {"version": 1, "steps": 0, "beliefs": Beliefs().to_dict()}
    if place in ("beliefs", "settings"):
        state[place] = deep
    else:
        state["beliefs"][place] = [deep, deep]
    refused(422, "settings" if place == "settings" else "beliefs", store.load, "r", state)
    assert store.runs() == []


@given(
    value=st.recursive(
        st.none() | st.integers() | st.text() | st.booleans(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@settings(max_examples=200)
def test_json_in_parts_is_the_same(value):
    assert json.loads(to_json(value)) == value


def test_run_has_one_open_plan_and_withdrawing_it_removes_labels():
    store = PlanStore()
    first = store.open("r", IDS, PLAN, {})
    before = store.saved("r")
    text = refused(409, "run", store.open, "r", IDS, PLAN, {})
    assert first["id"] in text
    for x in store.take(first["id"], None)["take"]:
        store.observe(first["id"], [(x["prompt_id"], [1.0] * x["rollouts"], None)])
    assert store.saved("r") != before
    assert store.close(first["id"], withdraw=True)["steps"] == 0
    assert sum(store.saved("r")["beliefs"]["successes"]) == 0
    refused(404, "id", store.state, first["id"])
    store.open("r", IDS, PLAN, {})


def test_repeated_request_gets_the_same_response():
    store = PlanStore()
    plan_id = store.open("r", IDS, PLAN, {})["id"]
    taken = store.take(plan_id, 8, "first")
    assert store.take(plan_id, 8, "first") == taken
    assert store.state(plan_id)["in_flight"] == sum(x["rollouts"] for x in taken["take"])
    labels = [(x["prompt_id"], [0.0] * x["rollouts"], None) for x in taken["take"]]
    assert store.observe(plan_id, labels, request_id="second") == store.observe(plan_id, labels, request_id="second")
    assert store.state(plan_id)["in_flight"] == 0


def test_request_ids_are_separate_for_each_call():
    """A client may number the calls of each kind."""
    store = PlanStore()
    plan_id = store.open("r", IDS, PLAN, {})["id"]
    taken = store.take(plan_id, 8, "1")["take"]
    assert store.observe(plan_id, [(x["prompt_id"], [0.0] * x["rollouts"], None) for x in taken], request_id="1") == {
        "in_flight": 0,
        "done": False,
    }


def test_run_keeps_its_belief_settings_after_a_restart(tmp_path):
    settings, plan = BeliefSettings(discount=0.7), PLAN | {"mode": "static", "budget": 320}
    ids = [f"q{i}" for i in range(40)]
    store, rates = PlanStore(folder=tmp_path), np.random.default_rng(0).random(len(ids))
    for step in range(3):
        plan_id = store.open("r", ids, plan, {}, settings)["id"]
        for number, x in enumerate(store.take(plan_id, None)["take"]):
            store.observe(plan_id, [(x["prompt_id"], [float(rates[number] > 0.3)] * x["rollouts"], None)])
        store.close(plan_id)
        assert store.saved("r")["steps"] == step + 1
    assert (store.saved("r")["beliefs"]["prior"]) != [1.0, 1.0], "the prior has been fitted since"
    again = PlanStore(folder=tmp_path)
    text = refused(409, "beliefs", again.open, "r", IDS, PLAN, {}, BeliefSettings(discount=0.9))
    assert "'discount': 0.7" in text
    again.open("r", ids, plan, {}, settings)
    found = PlanStore()
    found.load("r", {key: value for key, value in store.saved("r").items() if key != "settings"})
    assert "{'discount': 0.7}" in refused(409, "beliefs", found.open, "r", IDS, PLAN, {}, BeliefSettings(discount=0.9))
    found.open("r", IDS, PLAN, {}, settings)
    assert found.saved("r")["settings"]["discount"] == 0.7
    refused(422, "settings", found.load, "s", store.saved("r") | {"settings": {"discount": 7}})
    refused(422, "settings", found.load, "s", store.saved("r") | {"settings": {"rho": 0.5}})


def test_refusals_name_the_field_and_change_nothing():
    store = PlanStore(max_runs=2, max_prompts=30)
    refused(422, "budget", store.open, "r", IDS, PLAN | {"budget": 10}, {})
    refused(422, "lower", store.open, "r", IDS, PLAN | {"lower": 20}, {})
    refused(422, "prompt_ids", store.open, "r", [*IDS, "p0"], PLAN, {})
    refused(422, "cost", store.open, "r", IDS, PLAN | {"unit": "tokens", "token_budget": 9000}, {"cost": [1.0]})
    refused(422, "run", store.open, "../up", IDS, PLAN, {})
    refused(413, "prompt_ids", store.open, "r", [f"p{i}" for i in range(31)], PLAN | {"budget": 70}, {})
    refused(404, "run", store.saved, "r")
    plan_id = store.open("r", IDS, PLAN, {})["id"]
    taken = store.take(plan_id, 8)["take"]
    good = (taken[0]["prompt_id"], [1.0] * taken[0]["rollouts"], None)
    text = refused(422, "labels[1]", store.observe, plan_id, [good, ("nobody", [1.0], None)])
    assert "the 1 before it were taken" in text
    refused(422, "labels[0]", store.observe, plan_id, [good])  # it has none in flight any more
    refused(422, "lost[0]", store.observe, plan_id, [], [(taken[1]["prompt_id"], 99)])
    refused(409, "beliefs", store.open, "r", IDS, PLAN, {}, BeliefSettings(discount=0.9))
    store.open("other", IDS, PLAN, {})
    assert "DELETE /v1/runs" in refused(429, "run", store.open, "third", IDS, PLAN, {})
    store.drop("other")
    store.open("third", IDS, PLAN, {})
    assert [run["run"] for run in store.runs()] == ["r", "third"]


KEYS = sorted(Beliefs().to_dict())
NUMBERS = st.none() | st.integers() | st.floats() | st.sampled_from([0.5, 1.0, 2**63, 1e308])
JSON = st.recursive(NUMBERS | st.booleans() | st.text(max_size=3), lambda x: st.lists(x, max_size=3))


@given(key=st.sampled_from(KEYS), value=JSON | st.lists(NUMBERS, min_size=3, max_size=3))
@settings(max_examples=150)
@example(key="prior_failures", value=[None, None, None])
@example(key="discounts", value=[0.5, 7])
@example(key="last_trials", value=[[1], [2], [3]])
@example(key="successes", value=[1e308, 1e308, 1e308])
def test_damaged_beliefs_are_read_or_refused(key, value):
    """No JSON that is given for beliefs may break the service or a later plan."""
    store, source = PlanStore(), Beliefs(fit_discount=True)
    source.begin_visit(["a", "b", "c"], ["x", "y", "x"])
    source.observe("a", [1.0, 0.0])
    state = {"version": 1, "steps": 3, "beliefs": source.to_dict() | {key: value}}
    try:
        store.load("r", state)
    except Refusal as refusal:
        found = (refusal.status, refusal.param)
        assert found == (422, "beliefs")
    else:
        plan_id = store.open("r", ["a", "b", "d"], PLAN | {"budget": 12}, {})["id"]
        assert sum(x["rollouts"] for x in store.take(plan_id, None)["take"]) <= 12
        json.dumps(store.saved("r"), allow_nan=False)


def test_allocation_equals_the_solvers():
    rng = np.random.default_rng(0)
    rates, alpha, beta = rng.random(50), rng.random(50) + 0.1, rng.random(50) + 0.1
    found = allocate(AllocationRequest(400, 2, 64, success_rate=rates.tolist()))
    assert found["budgets"] == solve(PointValue(rates), 400, 2, 64).tolist()
    assert found["rollouts"] == 400
    low = rng.integers(0, 4, 50)
    found = allocate(AllocationRequest(400, low.tolist(), 64, alpha=alpha, beta=beta))
    assert found["budgets"] == solve(BetaValue(alpha, beta), 400, low, 64).tolist()
    successes, trials = np.array([0.0, 4, 8]), np.array([8.0, 8, 8])
    found = allocate(AllocationRequest(30, 2, 64, successes=successes, trials=trials, prior=(0.5, 0.5)))
    assert found["budgets"] == solve(BetaValue(0.5 + successes, 8.5 - successes), 30, 2, 64).tolist()
    assert found["prior"] == [0.5, 0.5]
    cost = rng.random(50) + 0.5
    found = allocate(AllocationRequest(300, 2, 64, cost.tolist(), "grpo", alpha=alpha, beta=beta))
    assert cost @ found["budgets"] <= 300


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"budget": 9}, "exactly one of"),
        ({"budget": 9, "success_rate": [0.5], "alpha": [1], "beta": [1]}, "exactly one of"),
        ({"budget": 9, "alpha": [1]}, "beta is needed with alpha"),
        ({"budget": 9, "alpha": [1, 1], "beta": [1]}, "beta must be one for each of 2 prompts"),
        ({"budget": 9, "success_rate": [0.5, 1.5]}, "success_rate.1"),
        ({"budget": 9, "success_rate": [float("nan")]}, "success_rate.0"),
        ({"budget": float("inf"), "success_rate": [0.5]}, "budget"),
        ({"budget": 9, "success_rate": [0.5], "lower": [1, 1]}, "lower must be one for each of 1 prompts"),
        ({"budget": 9, "success_rate": [0.5], "lower": -1}, "lower"),
        ({"budget": 9, "successes": [3], "trials": [2]}, r"successes\[0\] is 3 of 2 trials"),
        ({"budget": 9, "success_rate": [0.5], "value": "best"}, "value"),
        ({"budgett": 9, "success_rate": [0.5]}, "budgett"),
    ],
)
def test_invalid_allocation_names_the_field(body, named):
    with pytest.raises(ValidationError, match=named):
        Allocate.model_validate(body)


def test_budget_of_rollouts_must_be_whole():
    half = {"prompt_ids": ["a"], "budget": 7.5}
    refused(422, "budget", Open.model_validate(half).settings)
    found = Open.model_validate(half | {"unit": "tokens", "cost": [2.0]}).settings()
    assert (found["token_budget"], found["unit"]) == (7, "tokens")
    assert refused(422, "budget", allocate, AllocationRequest(7, 4, 8, success_rate=[0.5, 0.5])).startswith(
        "budget 7 is less"
    )


class Uncounted:
    def __init__(self, service):
        pass

    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture
def planner(monkeypatch):
    """The service's replica, outside of Ray."""
    monkeypatch.setattr("kray.serve.meters.Meters", Uncounted)
    return Planner(Limits(), "", 4, 100, "")


def answered(planner: Planner, scenario):
    """Run a coroutine function with a client of the replica's application."""
    transport = httpx.ASGITransport(app=planner.__serve_build_asgi_app__())

    async def run():
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            return await scenario(client)

    return asyncio.run(run())


def test_all_errors_have_one_form(planner):
    """Include those that FastAPI itself raises: unknown path, no JSON, JSON that is nested too deeply."""

    async def scenario(client):
        deep = '{"a": ' * 5000 + "1" + "}" * 5000
        asked = [("POST", "/v1/allocate", body) for body in ("", "{", "[" * 5000, deep, "[]", "{}", '{"budget": NaN}')]
        asked += [("PUT", "/v1/runs/r", body) for body in (deep, "[]", '{"version": 1, "beliefs": []}')]
        asked += [("GET", "/v1/nothing", None), ("GET", "/v1/allocate", None), ("DELETE", "/v1/runs/none", None)]
        asked += [("GET", "/v1/runs/..%2F..%2Fx", None), ("PUT", "/v1/runs/..%2F..%2Fx", "{}")]
        return [await client.request(method, path, content=body) for method, path, body in asked]

    for answer in answered(planner, scenario):
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"]["code"] == answer.status_code
        assert answer.json()["error"]["message"]


def test_failure_inside_has_the_form_of_all_errors(planner, monkeypatch):
    monkeypatch.setattr(planner.store, "runs", lambda: 1 / 0)
    (answer,) = answered(planner, lambda client: asyncio.gather(client.get("/v1/runs")))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (500, 500, "server_error")


def test_open_plans_and_refusals_do_not_wait_for_each_other(planner, monkeypatch):
    """While one plan is opened for seconds, others are refused at once, and the service is healthy."""
    release, opened = threading.Event(), planner.store.open

    def compute(run, *arguments):
        while run == "slow" and not release.is_set():
            sum(range(1000))
        return opened(run, *arguments)

    monkeypatch.setattr(planner.store, "open", compute)
    body = {"prompt_ids": IDS, "budget": 120, "mode": "static"}

    async def scenario(client):
        slow = asyncio.ensure_future(client.post("/v1/plans", json=body | {"run": "slow"}))
        await asyncio.sleep(1.0)
        begun = time.monotonic()
        refusals = await asyncio.gather(*(client.post("/v1/plans", json=body | {"run": f"r{i}"}) for i in range(20)))
        health = await client.get("/healthz")
        took = time.monotonic() - begun
        release.set()
        return refusals, health, took, await slow, await client.post("/v1/plans", json=body | {"run": "r0"})

    refusals, health, took, slow, after = answered(planner, scenario)
    assert {answer.status_code for answer in refusals} == {429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refusals)
    assert refusals[0].json()["error"]["type"] == "rate_limit_error"
    assert took < 5.0
    assert (health.status_code, slow.status_code, after.status_code) == (200, 200, 200)
    assert sorted(run["run"] for run in planner.store.runs()) == ["r0", "slow"]


def test_many_clients_get_the_planners_own_plans(planner):
    """Runs that are planned at once do not change each other's plans."""
    body = {"budget": 120, "lower": 2, "upper": 16, "mode": "online", "prompt_ids": IDS}

    async def one(client, run: str) -> list[list[int]]:
        rng, budgets = random.Random(run), []
        for _ in range(3):
            # On a busy machine some are told to come back.
            while (opened := await client.post("/v1/plans", json=body | {"run": run})).status_code == 429:
                await asyncio.sleep(0.1)
            plan = opened.json()["id"]
            while not (now := (await client.post(f"/v1/plans/{plan}/take", json={"room": 32})).json())["done"]:
                labels = [
                    {"prompt_id": x["prompt_id"], "rewards": rewards(x["prompt_id"], x["rollouts"], rng)}
                    for x in now["take"]
                ]
                told = await client.post(f"/v1/plans/{plan}/observe", json={"labels": labels})
                assert told.status_code == 200, told.text
            budgets.append((await client.get(f"/v1/plans/{plan}")).json()["budgets"])
        return budgets

    async def scenario(client):
        return await asyncio.gather(*(one(client, f"r{i}") for i in range(4)))

    together, store = answered(planner, scenario), PlanStore()
    for number, budgets in enumerate(together):
        run, alone = f"r{number}", []
        rng = random.Random(run)
        for _ in range(3):
            plan_id = store.open(run, IDS, PLAN, {})["id"]
            carry_out(store, plan_id, rng)
            alone.append(store.state(plan_id)["budgets"])
        assert budgets == alone
