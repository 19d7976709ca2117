"""Rewards as a service without HTTP, and its client against faulty servers."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from aiohttp import web

from kray.config import KrayConfig, RewardConfig, check
from kray.driver.workers import make_scorer
from kray.errors import KrayError
from kray.records import Prompt
from kray.rewards import Sample, Scorer, remote
from kray.rewards.outcome import Ranges
from kray.rewards.remote import RemoteScorer, chunks
from kray.serve.gate import Refusal
from kray.serve.rewards_api import MAX_SCORERS, Score, ScorerCache, ScoringSpec

ITEMS = [("", str(i), str(i % 3)) for i in range(150)]


def judged(spec: ScoringSpec, *bodies: dict) -> list[list[dict]]:
    async def scenario():
        scorers = ScorerCache(spec)
        try:
            return [await scorers.score(Score.model_validate(body)) for body in bodies]
        finally:
            scorers.close()

    return asyncio.run(scenario())


def test_broken_verifier_fails_its_own_item_only():
    spec = ScoringSpec(verifiers=("exact", "time:sleep", "sample_verifiers:fails_on_odd"), timeout_s=0.5)
    items = [
        {"response": "4", "answer": "4"},
        {"response": "1", "answer": "", "verifier": "sample_verifiers:fails_on_odd"},
    ]
    ((right, broken),) = judged(spec, {"verifier": "exact", "items": items})
    assert (right["reward"], right["error"]) == (1.0, "")
    assert broken["reward"] is None
    assert "an odd digit" in broken["error"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"verifier": "os:system"}, "verifier"),
        ({"verifier": "exact", "items": [{"response": "", "answer": "", "verifier": "os:system"}]}, "items.0.verifier"),
        ({"verifier": "code", "options": {"isolation": "best_effort"}}, "options"),
        ({"verifier": "code", "options": {"timeout_s": 60}}, "options"),
        ({"verifier": "exact", "options": {"nonsense": 1}}, "options"),
    ],
)
def test_clients_cannot_choose_the_code_that_runs(body, param):
    with pytest.raises(Refusal) as caught:
        judged(ScoringSpec(), {"items": []} | body)
    assert (caught.value.status, caught.value.param) == (422, param)


def test_number_of_scorers_is_bounded():
    async def scenario():
        others = ("sample_verifiers:first_is_even", "sample_verifiers:fails_on_odd")
        scorers = ScorerCache(ScoringSpec(verifiers=("exact", *others)))
        bodies = [{"verifier": "exact", "options": {"case_sensitive": flag}, "items": []} for flag in (True, False)]
        bodies += [{"verifier": name, "items": []} for name in ("exact", *others)]
        for body in bodies:
            await scorers.score(Score.model_validate(body))
        kept = len(scorers._scorers)
        for shared in scorers._scorers.values():
            shared.users = 1
        with pytest.raises(Refusal) as caught:
            await scorers.score(Score.model_validate(bodies[0]))
        scorers.close()
        return kept, caught.value.status

    assert asyncio.run(scenario()) == (MAX_SCORERS, 429)


def test_chunks_are_bounded_and_in_order():
    items = [*ITEMS, ("", "x" * (remote.CHUNK_CHARACTERS + 1), ""), *ITEMS[:3]]
    parts = chunks(items)
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) <= remote.CHUNK_ITEMS
    assert [len(part) for part in parts if len(part[0][1]) > 10] == [1]


def served(answer, act):
    """What `act(url)` gives while a server answers each request with `answer(body, number of the request)`."""

    async def scenario():
        seen = []

        async def handle(request):
            body = await request.json()
            seen.append((body, request.headers.get("Authorization")))
            response = answer(body, len(seen))
            return await response if asyncio.iscoroutine(response) else response

        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/score", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            return await act(f"http://127.0.0.1:{port}"), seen
        finally:
            await runner.cleanup()

    return asyncio.run(scenario())


def right(body, _=0):
    outcomes = [{"reward": float(x["response"] == x["answer"]), "detail": x["response"]} for x in body["items"]]
    return web.json_response({"outcomes": outcomes})


def error(status: int):
    return web.json_response({"error": {"message": f"status {status}"}}, status=status)


def scoring(items, deadline_s=5.0, key="k" * 20):
    async def act(url):
        scorer = RemoteScorer(url, key, "exact", {"case_sensitive": False}, deadline_s)
        try:
            return await scorer.score(items), scorer
        finally:
            scorer.close()
            await asyncio.sleep(0)

    return act


def test_items_are_scored_in_order_with_key_and_options():
    (outcomes, scorer), seen = served(right, scoring(ITEMS))
    assert [outcome.detail for outcome in outcomes] == [str(i) for i in range(len(ITEMS))]
    assert sum(outcome.reward for outcome in outcomes) == 3
    assert {key for _, key in seen} == {"Bearer " + "k" * 20}
    assert all(body["options"] == {"case_sensitive": False} for body, _ in seen)
    assert (scorer.retries, scorer.failures) == (0, 0)


@pytest.mark.parametrize("status", [404, 408, 429, 500, 502, 503, 504])
def test_busy_or_failing_service_is_retried(status, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    (outcomes, scorer), seen = served(lambda body, n: error(status) if n <= 2 else right(body), scoring(ITEMS[:5]))
    assert [outcome.reward for outcome in outcomes] == [1, 1, 1, 0, 0]
    assert (len(seen), scorer.retries) == (3, 2)


@pytest.mark.parametrize("status", [400, 422])
def test_refused_request_is_a_data_failure(status):
    (outcomes, scorer), seen = served(lambda body, n: error(status), scoring(ITEMS[:5]))
    assert all(outcome.reward is None and f"status {status}" in outcome.error for outcome in outcomes)
    assert (len(seen), scorer.failures) == (1, 5)


def test_too_large_request_is_halved():
    def strict(body, _):
        return error(413) if any(x["response"] == "7" for x in body["items"]) else right(body)

    (outcomes, _), _ = served(strict, scoring(ITEMS[:20]))
    assert [i for i, outcome in enumerate(outcomes) if outcome.reward is None] == [7]


@pytest.mark.parametrize("status", [400, 422])
def test_refused_answer_is_a_data_failure_of_its_own(status):
    def strict(body, _):
        if all(x["response"] != "7" for x in body["items"]):
            return right(body)
        refused = {"message": "items.3.response: no", "param": "items"}
        return web.json_response({"error": refused}, status=status)

    (outcomes, scorer), _ = served(strict, scoring(ITEMS[:20]))
    assert [i for i, outcome in enumerate(outcomes) if outcome.reward is None] == [7]
    assert (scorer.failures, scorer.retries) == (1, 0)


def test_an_outcome_that_is_none_fails_alone():
    bad = [
        {"reward": "1"},
        {"reward": True},
        {"reward": 10**400},
        {"reward": 1, "detail": 3},
        {"reward": None, "error": []},
        7,
    ]
    bad += [{"reward": 1, "parts": {"a": "x"}}, {"reward": 1, "elapsed_s": None}, {}]

    def some(body, _):
        return web.json_response({"outcomes": [*bad, {"reward": 0.5, "further": 1}]})

    (outcomes, _), _ = served(some, scoring(ITEMS[: len(bad) + 1]))
    assert [outcome.reward for outcome in outcomes] == [None] * len(bad) + [0.5]
    assert all("cannot be read" in outcome.error for outcome in outcomes[:-1])


def test_values_outside_of_the_range_are_data_failures_of_the_client():
    async def act(url):
        ranges = Ranges("exact", (-1.0, 1.0))
        scorer = RemoteScorer(url, "", "exact", named={"functions.a": ("mine:a", {})}, ranges=ranges)
        try:
            items = [("", "0", "0"), ("exact", "1", "0"), ("math", "0", "0"), ("functions.a", "0", "1")]
            return await scorer.score(items), scorer
        finally:
            scorer.close()
            await asyncio.sleep(0)

    def given(body, _):
        return web.json_response(
            {"outcomes": [{"reward": 2.0 * (x["response"] == x["answer"])} for x in body["items"]]}
        )

    (outcomes, scorer), _ = served(given, act)
    assert [outcome.reward for outcome in outcomes] == [None, 0.5, None, 0.0]
    assert '"exact" returned 2, which is not in [-1, 1]' in outcomes[0].error
    assert scorer.failures == 2


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_raises_and_is_not_shown(status):
    with pytest.raises(KrayError, match="refuses the key") as caught:
        served(lambda body, n: error(status), scoring(ITEMS))
    assert "kkkk" not in str(caught.value)


def test_unreachable_service_fails_at_the_deadline():
    started = time.monotonic()
    outcomes, scorer = asyncio.run(scoring(ITEMS[:3], deadline_s=0.5)("http://127.0.0.1:9"))
    assert all("no answer within 0.5 s" in outcome.error for outcome in outcomes)
    assert scorer.retries >= 1

    async def forever(body):
        await asyncio.sleep(1)
        return right(body)

    (outcomes, _), _ = served(lambda body, n: forever(body), scoring(ITEMS[:3], deadline_s=0.5))
    assert all(outcome.reward is None for outcome in outcomes)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"outcomes": 3}',
        '{"outcomes": []}',
        '{"outcomes": [{"reward": NaN}]}',
        '{"outcomes": [{}]}',
    ],
)
def test_invalid_response_is_a_data_failure(body):
    def nonsense(_body, _n):
        return web.Response(text=body, content_type="application/json")

    (outcomes, _), _ = served(nonsense, scoring(ITEMS[:1], deadline_s=0.3))
    assert outcomes[0].reward is None
    assert outcomes[0].error


def test_config_selects_local_or_remote_scorer(monkeypatch):
    monkeypatch.setenv("MY_KEY", "planted-planted-planted")
    reward = RewardConfig("exact", url="http://rewards:8002", key_env="MY_KEY", deadline_s=7)
    scorer = make_scorer(reward)
    assert isinstance(scorer, RemoteScorer)
    assert (scorer.url, scorer._key, scorer.deadline_s) == (
        "http://rewards:8002/v1/score",
        "planted-planted-planted",
        7,
    )
    assert isinstance(make_scorer(RewardConfig()), Scorer)
    for bad in ("rewards:8002", "ftp://x", "http://me:secret@host"):
        found = [text for text in check(KrayConfig(reward=RewardConfig(url=bad))) if text.startswith("reward.url")]
        assert len(found) == 1
        assert "secret" not in json.dumps(found)


def sample(**columns) -> Sample:
    return Sample(Prompt("p:1", "42", "", "p", text="6*7?", columns=columns), (1, 2, 3))


def test_what_functions_ask_for_reaches_the_service():
    names = ("sample_rewards:trl_solution", "sample_rewards:trl_length")
    items = [remote._item(name, "42", sample(solution="42")) for name in names]
    ((right, length),) = judged(
        ScoringSpec(verifiers=names), {"verifier": names[0], "items": json.loads(json.dumps(items))}
    )
    assert (right["reward"], length["reward"]) == (1.0, 3.0)


def test_named_functions_are_requests_of_their_own():
    async def act(url):
        named = {"functions.a": ("mine:a", {"x": 1}), "functions.b": ("mine:b", {})}
        scorer = RemoteScorer(url, "", "exact", {"case_sensitive": False}, named=named)
        items = [("functions.a", "1", sample()), ("", "2", "42"), ("functions.b", "3", sample()), ("math", "4", "42")]
        items += [("functions.a", "42", sample()), ("functions.a", "6", sample(when=object()))]
        try:
            return await scorer.score(items)
        finally:
            scorer.close()
            await asyncio.sleep(0)

    outcomes, seen = served(right, act)
    # An item that JSON cannot hold fails alone.
    assert [outcome.detail for outcome in outcomes] == ["1", "2", "3", "4", "42", ""]
    assert "cannot be sent to the reward service" in outcomes[5].error
    bodies = sorted((body["verifier"], body["options"], len(body["items"])) for body, _ in seen)
    assert bodies == [("exact", {"case_sensitive": False}, 2), ("mine:a", {"x": 1}, 2), ("mine:b", {}, 1)]


def test_a_service_says_which_range_a_verifier_declares():
    """The service's values are the verifier's own; the run maps them, and refuses those beyond the range."""
    name = "sample_verifiers:points"
    items = [{"response": digit, "answer": ""} for digit in "019"]
    ((even, odd, nine),) = judged(ScoringSpec(verifiers=(name,)), {"verifier": name, "items": items})
    assert [found["reward"] for found in (even, odd, nine)] == [20.0, 0.0, 100.0]
    assert json.loads(json.dumps(even))["ends"] == [0.0, 20.0]
    ranges, sent = Ranges(name), json.loads(json.dumps([even, odd, nine]))
    received = [ranges.apply("", remote._outcome(found)) for found in sent]
    assert [outcome.reward for outcome in received] == [1.0, 0.0, None]
    assert received[2].error.endswith("returned 100, which is not in [0, 20], the reward_range that it declares")
    assert "cannot be read" in remote._outcome(even | {"ends": [1, 1]}).error
    earlier = {key: value for key, value in even.items() if key != "ends"}
    assert remote._outcome(earlier).ends is None
