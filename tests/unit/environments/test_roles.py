"""Environments with roles: what is checked beforehand, their turns, Nim, and opponents behind a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest
import sample_roles
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from inline_jobs import ROOT

from kray.config import KrayConfig, check, load_config
from kray.config.placement import requested
from kray.config.players import EndpointConfig, Player, frozen_players, read_player
from kray.environments import check_environment, check_players, role_turns, roles_of
from kray.environments.endpoint import EndpointPlayer
from kray.environments.nim import Nim, after, moves, position, read_position, won
from kray.environments.role_turns import Move, RoleTurn
from kray.environments.role_workers import RoleWorkers
from kray.errors import ConfigError, DataError, KrayError
from kray.launch.preflight import load_checked_prompts
from kray.prompts import load_prompts
from kray.records import Prompt

HEAPS = st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any)
START = Prompt("p", "first", "exact", "nim", text="352>")


# -- what is checked ---------------------------------------------------------------------------------------------------


def nim_config(**environment):
    config = load_config("configs/nim.yaml", [])
    for key, value in environment.items():
        setattr(config.environment, key, value)
    return config


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"roles": {"third": "policy"}}, 'roles.third: "nim" has no such role; it has first, second'),
        ({"roles": {"second": "strong"}}, "roles.second: \"nim\" has no player 'strong'; opponents: random, perfect, "),
        ({"roles": {"first": "random", "second": "start"}}, "at least one role must be played by policy"),
        ({"evaluate_against": {"best": "strong"}}, "evaluate_against.best: "),
        ({"name": "calculator"}, '"calculator" has no roles'),
        ({"name": "sample_roles:OneName"}, "roles must be a tuple of different names"),
    ],
)
def test_players_that_do_not_fit_are_config_errors(environment, message):
    with pytest.raises(ConfigError) as caught:
        load_checked_prompts(nim_config(**environment))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"roles": {"first": 3}}, "environment.roles.first must be policy or {opponent: NAME}, not"),
        (
            {"roles": {"first": {"opponent": "random", "url": "x"}}},
            "only opponent: endpoint and past have further keys",
        ),
        ({"roles": {"first": "past"}}, "environment.roles.first.every is missing"),
        (
            {"roles": {"first": {"opponent": "past", "every": 0}}},
            "first.every must be a whole number, 1 to 1,000,000,000, not 0",
        ),
        ({"roles": {"first": {"opponent": "past", "every": True}}}, "first.every must be a whole number, 1 to"),
        (
            {"evaluate_against": {"old": {"opponent": "past", "every": 5, "step": 1}}},
            "environment.evaluate_against.old.step is not a key of opponent: past; its key: every",
        ),
        ({"roles": {"first": {"opponent": "endpoint", "url": "http://h"}}}, "roles.first.model is missing"),
        (
            {"roles": {"first": {"opponent": "endpoint", "url": "http://h", "modell": "m"}}},
            "roles.first.modell is not a key of an endpoint (did you mean model?)",
        ),
        (
            {"roles": {"first": {"opponent": "endpoint", "url": "http://a:b@h", "model": "m"}}},
            "roles.first.url must begin with http:// or https:// and hold no user",
        ),
        (
            {"roles": {"first": {"opponent": "endpoint", "url": "http://h", "model": "m", "deadline_s": "1"}}},
            "roles.first.deadline_s must be float, not '1'",
        ),
        ({"evaluate_against": {"self": "policy"}}, "evaluate_against.self must be an opponent, not policy"),
        ({"evaluate_against": {"a b": "random"}}, "'a b' is part of a metric's name"),
        ({"name": ""}, "environment.roles needs environment.name"),
    ],
)
def test_malformed_players_are_problems(environment, message):
    assert any(message in problem for problem in check(nim_config(**environment)))


def test_one_mean_for_both_roles_is_refused():
    config = nim_config()
    config.train.baseline = "batch"
    with pytest.raises(ConfigError, match=r"train\.baseline batch would compare the rewards of first and second"):
        load_checked_prompts(config)
    config.environment.roles = {"second": "random"}
    load_checked_prompts(config)


def test_checked_configuration_of_nim_is_sound():
    assert check(nim_config()) == []
    assert check(KrayConfig(model=nim_config().model)) == []
    check_environment("nim", {})
    assert roles_of("nim", {}) == ("first", "second")
    assert roles_of("calculator", {}) == ()
    check_players("nim", {}, {"first": Player("random")}, {"start": Player("start"), "past": Player("past", every=2)})


def test_each_version_of_the_policy_that_plays_has_an_engine():
    """The same opponent in training and in evaluations shares one."""
    past = {"opponent": "past", "every": 10}
    config = nim_config(roles={"second": past}, evaluate_against={"then": past, "older": {**past, "every": 50}})
    assert check(config) == []
    assert frozen_players(config.environment) == [Player("past", every=10), Player("past", every=50)]
    alone = requested(nim_config(evaluate_against={"random": "random"}))[0]
    assert requested(config)[0] == alone + 2 * config.rollout.cpus_per_engine
    assert requested(nim_config(evaluate_against={"start": "start"}))[0] == alone + config.rollout.cpus_per_engine


# -- Nim ---------------------------------------------------------------------------------------------------------------


@given(HEAPS, st.integers(0, 10**6))
def test_perfect_player_wins_what_can_be_won(heaps, seed):
    """Against any play: the theorem of Bouton, played out against moves of chance."""
    rng, game = random.Random(seed), Nim()
    game.heaps, winner = list(heaps), "first" if won(heaps) else "second"
    role, done = "first", False
    while not done:
        move = game.play(role, "perfect" if role == winner else "random", rng.randrange(10**9))
        role, _, done = game.step(role, move)
    assert game.rewards()[winner] == 1.0
    assert sum(game.rewards().values()) == 1.0


@given(HEAPS, st.text("abcd0123456789 ", max_size=3))
def test_only_legal_moves_change_the_position(heaps, move):
    left = after(heaps, move)
    assert (left is not None) == (move in moves(heaps))
    if left is not None:
        changed = [(a, b) for a, b in zip(heaps, left, strict=True) if a != b]
        assert len(changed) == 1
        assert 0 <= changed[0][1] < changed[0][0]
    assert read_position(position(heaps)) == list(heaps)


@pytest.mark.parametrize("text", ["", "000>", "ab>", "123456789>", "-1>", "²>"])
def test_texts_that_are_no_position_are_refused(text):
    with pytest.raises(ValueError, match="is no position of Nim"):
        Nim().reset(Prompt("p", "", "exact", "nim", text=text), 0)


def test_positions_are_split_and_know_their_winner():
    config = nim_config()
    train, test = load_prompts(config.prompts.train, "exact"), load_prompts(config.prompts.test, "exact")
    texts = [{prompt.text for prompt in part} for part in (train, test)]
    assert len(texts[0]) + len(texts[1]) == 7**3
    assert not texts[0] & texts[1]
    for prompt in (*train, *test):
        assert (prompt.answer == "first") == won(read_position(prompt.text))
    assert train == load_prompts(config.prompts.train, "exact")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"a": {"heap": 3}}, "tasks.a: Nim's options are heaps, largest"),
        ({"a": {"heaps": 9}}, r"tasks.a.heaps must be a whole number from 1 to 8"),
        ({"a": {"heaps": 8, "largest": 9}}, "43,046,721 positions"),
        ({"a": {"largest": True}}, "tasks.a.largest must be a whole number"),
    ],
)
def test_options_of_positions_are_checked(tasks, message):
    source = nim_config().prompts.train
    source.tasks = tasks
    with pytest.raises(DataError, match=message):
        load_prompts(source, "exact")


# -- turns -------------------------------------------------------------------------------------------------------------


def test_turns_survive_their_plain_form():
    opened = role_turns.begin("", ("sample_roles:Chat", {}, START, 1))
    assert opened.role == "first"
    assert opened.observed == [(role, ({"role": "user", "content": f"You are {role}."},)) for role in Nim.roles]
    turn = role_turns.step("", Move(opened.state, "first", "b4", {}, 0))
    assert (turn.role, turn.observed) == ("second", [("second", ({"role": "user", "content": "312>"},))])
    ended = role_turns.step("", Move(turn.state, "second", "z", {}, 0))
    assert (ended.ended, ended.rewards) == (True, {"first": (1.0, ""), "second": (0.0, "")})
    for each in (opened, turn, ended):
        assert RoleTurn.read(json.loads(json.dumps(each.plain()))) == each


def test_rewards_of_roles_are_in_a_declared_range():
    game = sample_roles.ZeroSum()
    game.reset(START, 0)
    game.step("first", "z")
    assert set(game.rewards().values()) == {-1.0, 1.0}
    assert dict(role_turns._rewards(game)) == {"first": (0.0, ""), "second": (1.0, "")}
    game.reward_range = (0.0, 1.0)
    with pytest.raises(ValueError, match=r"ZeroSum: the reward of first is -1, not in \[0, 1\], its reward_range"):
        role_turns._rewards(game)


def test_scripted_turns_depend_on_the_seed_alone():
    opened = role_turns.begin("", ("nim", {}, START, 1))

    def played(seed, scripted):
        turn = role_turns.step("", Move(opened.state, "first", "a1", scripted, seed))
        return turn.role, turn.observed

    assert played(3, {"second": "random"}) == played(3, {"second": "random"})
    assert len({str(played(seed, {"second": "random"})) for seed in range(20)}) > 3
    role, observed = played(3, {"second": "random"})
    assert role == "first"
    assert [reader for reader, _ in observed] == ["second", "first"]
    assert played(3, {}) == ("second", [("second", "252>")])


def test_processes_run_turns_and_lose_what_breaks():
    async def scenario():
        config = nim_config().environment
        workers = RoleWorkers(config)
        broken = RoleWorkers(load_config("configs/nim.yaml", ["environment.name=sample_roles:Raises"]).environment)
        try:
            (opened,) = await workers.begin_episodes([(START, 0)])
            bad = Prompt("q", "", "exact", "nim", text="zzz")
            (refused,) = await workers.begin_episodes([(bad, 0)])
            good, wrong = await workers.move(
                [Move(opened.state, "first", "b4", {}, 0), Move(b"", "first", "b4", {}, 0)]
            )
            (started,) = await broken.begin_episodes([(START, 0)])
            (lost,) = await broken.move([Move(started.state, "first", "b4", {}, 0)])
            return refused, good, wrong, lost
        finally:
            workers.close()
            broken.close()

    refused, good, wrong, lost = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert refused.startswith("environment: ValueError: 'zzz' is no position of Nim")
    assert good.observed == [("second", "312>")]
    assert wrong.startswith("environment: EOFError")
    assert lost.startswith("environment: RuntimeError: it broke")


# -- opponents behind a server -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def server(*replies):
    """Yield a base URL and the bodies received; each request gets the next reply, (status, JSON or seconds to wait)."""
    bodies, left = [], list(replies)

    async def answer(request):
        bodies.append((request.path, request.headers.get("Authorization"), await request.json()))
        status, reply = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reply, float):
            await asyncio.sleep(reply)
            reply = {}
        return web.json_response(reply, status=status)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", bodies
    finally:
        await runner.cleanup()


def says(text):
    return 200, {"choices": [{"message": {"content": text}, "text": text}]}


def ask(*replies, stops=(), key="", **options):
    """Return (turn or error, bodies, retries)."""

    async def scenario():
        async with server(*replies) as (url, bodies):
            player = EndpointPlayer(
                EndpointConfig(**{"url": url, "model": "m", "deadline_s": 5.0} | options), key, stops
            )
            messages = [{"role": "user", "content": "352>"}, {"role": "assistant", "content": "a1"}]
            try:
                found = await player.play(messages, 2**40 + 7)
            except KrayError as error:
                found = error
            player.close()
            await asyncio.sleep(0)
            return found, bodies, player.retries

    return asyncio.run(scenario())


def test_endpoint_gets_the_view_and_gives_a_turn():
    found, ((path, key, body),), _ = ask(says("b4"), key="secret", temperature=0.5)
    assert (found, path, key) == ("b4", "/v1/chat/completions", "Bearer secret")
    assert body == {
        "model": "m",
        "max_tokens": 256,
        "temperature": 0.5,
        "seed": 7,
        "messages": [{"role": "user", "content": "352>"}, {"role": "assistant", "content": "a1"}],
    }
    found, ((path, key, body),), _ = ask(says("c1.a2."), api="completions", stops=(".",))
    assert (found, path, key, body["prompt"]) == ("c1.", "/v1/completions", None, "352>a1")


def test_endpoint_is_asked_again_within_its_deadline():
    found, bodies, retries = ask((503, {}), (429, {}), says("b4"))
    assert (found, len(bodies), retries) == ("b4", 3, 2)
    found, _, _ = ask((503, {"error": {"message": "busy"}}), deadline_s=0.5)
    assert isinstance(found, DataError)
    assert "opponent m gave no turn within 0.5 s; last: " in str(found)
    found, _, _ = ask((200, 5.0), deadline_s=0.3)
    assert isinstance(found, DataError)
    assert "no answer after" in str(found)


def test_endpoint_that_refuses():
    found, bodies, _ = ask((400, {"error": {"message": "too long"}}))
    assert isinstance(found, DataError)
    assert "refused the request (400): too long" in str(found)
    assert len(bodies) == 1
    found, _, _ = ask((401, {}), key="wrong")
    assert isinstance(found, KrayError)
    assert not isinstance(found, DataError)
    assert "refuses the key of KRAY_API_KEY" in str(found)
    assert "wrong" not in str(found)
    found, _, _ = ask((200, {"choices": []}))
    assert "its reply holds no turn" in str(found)


def test_sample_environments_have_roles():
    check_environment("sample_roles:Edge", {})
    assert roles_of("sample_roles:Chat", {}) == sample_roles.Chat.roles
    assert read_player("start", "x") == Player("start")


def test_example_of_the_documentation_is_a_game():
    page = (ROOT / "docs" / "agents.md").read_text()
    made: dict = {}
    exec(page.split("```python\n")[1].split("```")[0], made)
    game = made["Higher"]()
    assert game.reset(START, 0) == ("first", {})
    assert game.step("first", game.play("first", "nine", 0)) == ("second", {"second": "9, "}, False)
    assert game.step("second", "a lot") == ("first", {}, True)
    assert game.rewards() == {"first": 1.0, "second": 0.0}
