"""Whole episodes with two roles through the collector, with a policy of chance and environments in this process."""

from __future__ import annotations

import asyncio
import random

import conversations_of_chance as conversations
import numpy as np
import pytest
from chat_tokenizers import make_tokenizer as chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from role_episodes import EOS, POSITIONS, TOKENIZER, LocalRoleWorkers, Table, collect, encoded, make_collector

from kray.config.players import Player, read_player, read_players
from kray.config.prompts_schema import SourceConfig
from kray.config.schema import EvaluateConfig, RolloutConfig
from kray.config.train_schema import TrainConfig
from kray.driver.evaluation import evaluate
from kray.driver.matches import Match
from kray.environments.nim import Nim, after, position, read_position
from kray.errors import DataError
from kray.metrics import documented
from kray.prompts.tokenize import encode_prompt
from kray.records import EncodedPrompt, Prompt, Rollout, Sampling, derive_seed
from kray.rollout.collector import TRAINING, Collector, Draw
from kray.rollout.conversation import ConversationRunner
from kray.rollout.episodes import EpisodeRunner
from kray.rollout.frozen import FrozenPool
from kray.rollout.plans import FixedPlan
from kray.rollout.views import Encoder
from kray.train.training_rows import step_rows

ORDERS = st.randoms(use_true_random=False)


def described(collected):
    return [
        (group.prompt.id, group.role, group.prompt_tokens, r.index, r.tokens.tolist(), r.sampled.tolist(), r.reward)
        for group in (*collected.groups, *collected.others)
        for r in group.rollouts
    ]


def pairs_of(collected):
    """Return (first's rollout, second's rollout, both prompts) of each episode."""
    others = {group.prompt.id: group for group in collected.others}
    for group in collected.groups:
        other = others[group.prompt.id]
        for one, two in zip(group.rollouts, other.rollouts, strict=True):
            assert one.index == two.index
            yield group.prompt.id, (group.prompt_tokens, one), (other.prompt_tokens, two)


def text_of(prompt, rollout):
    return TOKENIZER.decode([*prompt, *rollout.tokens.tolist()]).replace("<eos>", ".")


def actions_of(rollout):
    """Return the texts of the role's own turns: runs of sampled tokens, each of which ends with the end of sequence."""
    tokens = rollout.tokens[rollout.sampled].tolist()
    return TOKENIZER.decode(tokens).split("<eos>")[:-1]


@settings(max_examples=20)
@given(ORDERS, st.sampled_from([0.0, 0.1, 0.5]))
def test_views_are_the_games_that_were_played(order, illegal):
    """Each view is rebuilt from both sides' moves by the rules of the game."""
    table = Table(order, illegal=illegal)
    found = collect(table)
    assert found.rollouts == 24
    assert found.failed == 0
    games = 0
    for prompt, (tokens_1, one), (tokens_2, two) in pairs_of(found):
        heaps, views, winner = read_position(prompt), [prompt, prompt], ""
        moves = [actions_of(one), actions_of(two)]
        for turn in range(len(moves[0]) + len(moves[1])):
            side = turn % 2
            move = moves[side][turn // 2]
            views[side] += move + "."
            left = after(heaps, move)
            if left is None:
                winner = ("second", "first")[side]
                break
            heaps = left
            if not any(heaps):
                winner = ("first", "second")[side]
                break
            views[1 - side] += position(heaps)
        assert turn == len(moves[0]) + len(moves[1]) - 1
        assert (one.reward, two.reward) == ((1.0, 0.0) if winner == "first" else (0.0, 1.0))
        assert text_of(tokens_1, one) == views[0]
        if two.turns:
            assert text_of(tokens_2, two) == views[1]
        games += 1
    assert games == 24


@settings(max_examples=10)
@given(ORDERS)
def test_sampled_tokens_are_kept_as_they_were_sampled(order):
    table = Table(order)
    found = collect(table)
    whole = {}
    for prompt, one, two in pairs_of(found):
        for tokens, rollout in (one, two):
            context = [*tokens, *rollout.tokens.tolist()]
            sampled = np.concatenate([np.zeros(len(tokens), bool), rollout.sampled])
            starts = [i for i in np.flatnonzero(sampled) if not sampled[i - 1] or context[i - 1] == EOS]
            assert len(starts) == rollout.turns
            for start in starts:
                whole[(prompt, rollout.index, tuple(context[:start]))] = context[start:]
            assert (rollout.logprobs[~rollout.sampled] == 0).all()
            ends = [0, *(b for _, _, b in rollout.policy_versions)]
            assert all(rollout.sampled[a:b].all() for _, a, b in rollout.policy_versions)
            assert sum(b - a for _, a, b in rollout.policy_versions) == rollout.sampled_tokens
            assert ends == sorted(ends)
    assert len(whole) == len(table.sampled)
    for task, turn in table.sampled:
        rest = whole[(task.prompt_id, turn.index, task.prompt_tokens)]
        assert rest[: len(turn.tokens)] == turn.tokens.tolist()


@settings(max_examples=10)
@given(ORDERS, st.sampled_from([{}, {"second": "random"}, {"first": "random"}, {"first": "perfect"}]))
def test_arrival_does_not_change_episodes(order, players):
    found = collect(Table(order), players)
    assert described(found) == described(collect(Table(random.Random(1)), players))
    assert found.rollouts == 24
    assert {group.role for group in found.groups} == {"second" if "first" in players else "first"}
    assert {group.role for group in found.others} == (set() if players else {"second"})


def test_seeds_differ_by_role_turn_and_index():
    table = Table(random.Random(0), illegal=0.0)
    collect(table, texts=("352>",))
    seeds = {}
    for task, turn in table.sampled:
        key = (len(task.prompt_tokens), turn.index)
        seeds.setdefault(task.seed + turn.index, set()).add(key)
    assert all(len(keys) == 1 for keys in seeds.values())
    assert len(seeds) == len(table.sampled)
    group = derive_seed(0, "352>")
    assert {group + i for i in range(6)} < set(seeds)
    assert derive_seed(derive_seed(group, "role", "second"), "turn", 1, 0) in seeds


@settings(max_examples=10)
@given(ORDERS)
def test_failure_of_one_role_costs_the_episode(order):
    found = collect(Table(order, failing=25))
    assert found.failed > 0
    assert found.rollouts + found.failed == 24
    assert {failure.why for failure in found.failures} == {"no engine"}
    for _, (_, one), (_, two) in pairs_of(found):
        assert {one.reward, two.reward} == {0.0, 1.0}
        assert (one.role, two.role) == ("first", "second")


def test_illegal_move_loses():
    found = collect(Table(random.Random(0), illegal=1.0))
    for _, (_, one), (tokens, two) in pairs_of(found):
        assert (one.reward, two.reward, one.turns, two.turns) == (0.0, 1.0, 1, 0)
        assert "illegal" not in one.text
        # never acted: its reward counts for its role, and it has nothing to learn from
        assert len(two.tokens) == two.sampled_tokens == 0
        assert TOKENIZER.decode(tokens) in POSITIONS


def test_what_differs_before_the_first_turn_is_not_learned():
    found = collect(Table(random.Random(0), illegal=0.0), texts=("352>",), rollouts=16)
    (second,) = found.others
    assert TOKENIZER.decode(second.prompt_tokens).startswith("352>")
    assert {r.sampled.tolist()[0] for r in second.rollouts} >= {False}
    prompts = {r.prompt_tokens for r in second.rollouts}
    assert len(prompts) > 1
    for rollout in second.rollouts:
        assert [*second.prompt_tokens, *rollout.tokens.tolist()][: len(rollout.prompt_tokens)] == list(
            rollout.prompt_tokens
        )
    (first,) = found.groups
    assert TOKENIZER.decode(first.prompt_tokens) == "352>"
    assert all(r.sampled[0] for r in first.rollouts)


def test_limits_end_an_episode():
    """Most turns: not finished, half a point each. No tokens left: the role plays nothing, which loses."""
    found = collect(Table(random.Random(0), illegal=0.0), texts=("999>",), max_turns=1)
    assert {(one.reward, two.reward) for _, (_, one), (_, two) in pairs_of(found)} == {(0.5, 0.5)}
    found = collect(Table(random.Random(0), illegal=0.0), texts=("999>",), max_tokens=7)
    assert {(one.reward, two.reward) for _, (_, one), (_, two) in pairs_of(found)} == {(0.0, 1.0)}
    assert all(one.finish_reason == "length" for _, (_, one), _ in pairs_of(found))


def test_perfect_player_beats_chance():
    found = collect(Table(random.Random(0), illegal=0.0), {"first": "perfect"}, texts=("352>", "53>"), rollouts=12)
    assert all(r.reward == 0 for group in found.groups for r in group.rollouts)
    assert all(r.reward_detail == "" and r.role == "second" for group in found.groups for r in group.rollouts)


def test_broken_environments_are_data_failures():
    for name, why in (("Raises", "it broke"), ("NoReward", "has none for second"), ("Stranger", "'third' is none of")):
        found = collect(Table(random.Random(0)), texts=("352>",), name=f"sample_roles:{name}")
        assert found.failed == 6
        assert not found.groups
        assert all(why in failure.why and failure.why.startswith("environment: ") for failure in found.failures)


def test_rows_are_one_for_each_role_and_episode():
    found = collect(Table(random.Random(0), illegal=0.0), texts=("352>",), rollouts=8)
    groups = [*found.groups, *found.others]
    for group in groups:
        group.weight = float(len(group.rollouts))
    rows = step_rows(groups, TrainConfig(baseline="group", updates=1))
    written = sum(r.sampled_tokens > 0 for group in groups for r in group.rollouts)
    mixed = [group for group in groups if group.mixed]
    assert len(rows) == sum(len(group.rollouts) for group in mixed) <= written
    assert int(rows.sampled.sum()) == sum(r.sampled_tokens for group in mixed for r in group.rollouts)


# -- opponents ---------------------------------------------------------------------------------------------------------


class Client:
    """An endpoint that plays perfectly by the view that it is sent, and fails where it is told to."""

    def __init__(self, fails=lambda seen: False):
        self.fails, self.views, self.seeds = fails, [], []

    async def play(self, messages, seed):
        self.views.append([(message["role"], message["content"]) for message in messages])
        self.seeds.append(seed)
        if self.fails(messages):
            raise DataError("opponent m gave no turn within 1 s")
        game = Nim()
        game.heaps = read_position(messages[-1]["content"][-4:])
        return game.play("second", "perfect", 0)


ENDPOINT = {"opponent": "endpoint", "url": "http://h", "model": "m"}


@pytest.mark.parametrize("role", ["first", "second"])
def test_endpoint_reads_its_own_view(role):
    client = Client()
    found = collect(
        Table(random.Random(0), illegal=0.0), {role: ENDPOINT}, texts=("352>",), endpoints=lambda player: client
    )
    assert found.rollouts == 6
    assert found.failed == 0
    assert not found.others
    assert len(set(client.seeds)) == len(client.seeds)
    for view in client.views:
        assert view[0][0] == "user"
        assert view[0][1].startswith("352>")
        assert (view[0][1] == "352>") == (role == "first")
        assert [who for who, _ in view] == ["user", "assistant"] * (len(view) // 2) + ["user"]
        assert all(len(text) == 2 for who, text in view if who == "assistant")
        assert read_position(view[-1][1][-4:])


def test_endpoint_that_fails_costs_its_episodes():
    client = Client(lambda messages: len(messages) > 1)
    found = collect(
        Table(random.Random(0), illegal=0.0), {"second": ENDPOINT}, texts=("352>",), endpoints=lambda player: client
    )
    assert found.failed > 0
    assert found.failed + found.rollouts == 6
    assert {failure.why for failure in found.failures} == {"environment: opponent m gave no turn within 1 s"}


class Frozen:
    """Versions of the policy that do not learn, all on one table."""

    def __init__(self, table):
        self.pool, self.asked = FrozenPool(table), set()

    async def generate(self, player, task):
        self.asked.add(player)
        return await self.pool.generate(task)


@pytest.mark.parametrize("role", ["first", "second"])
@pytest.mark.parametrize("player", ["start", {"opponent": "past", "every": 5}])
def test_frozen_policy_plays_and_does_not_learn(role, player):
    """Its turns are those that it would have as the policy, and no rollout of the step holds them."""
    frozen = Frozen(Table(random.Random(1), illegal=0.0))
    table = Table(random.Random(0), illegal=0.0)
    found = collect(table, {role: player}, frozen=frozen)
    assert frozen.asked == {read_player(player, "")}
    assert found.rollouts == 24
    assert not found.others
    assert {group.role for group in found.groups} == {"second" if role == "first" else "first"}
    assert frozen.pool.pool.sampled
    assert found.tokens == sum(len(turn.tokens) for _, turn in table.sampled)
    self_play = collect(Table(random.Random(0), illegal=0.0))
    rewards = {
        (g.role, g.prompt.id, r.index): r.reward for g in (*self_play.groups, *self_play.others) for r in g.rollouts
    }
    if role == "second":
        # the same policy with the same seeds: the same games
        assert {
            (g.role, g.prompt.id, r.index): r.reward for g in found.groups for r in g.rollouts
        }.items() <= rewards.items()


def test_start_model_that_loses_its_engine_is_a_data_failure():
    frozen = Frozen(Table(random.Random(1), failing=100))
    found = collect(Table(random.Random(0), illegal=0.0), {"second": "start"}, texts=("352>",), frozen=frozen)
    assert found.failed > 0
    assert {failure.why for failure in found.failures} == {
        "environment: the turn of second by opponent start: no engine"
    }


# -- evaluation --------------------------------------------------------------------------------------------------------


def evaluated(opponents, **settings):
    collector = make_collector(Table(random.Random(0), illegal=0.0))
    sampling = Sampling(60, stop_token_ids=(EOS,))
    players = read_players(opponents, "environment.evaluate_against")
    return asyncio.run(evaluate(collector, encoded(), EvaluateConfig(**settings), sampling, 3, 0, players))


def test_policy_plays_both_sides_against_every_opponent():
    found = evaluated({"perfect": "perfect", "random": "random"}, samples=8)
    perfect, chance = found.matches
    assert (perfect.opponent, perfect.games) == ("perfect", 4 * 8 * 2)
    assert found.accuracy == perfect.win_rate < 0.5 < chance.win_rate + 0.25
    assert found.samples == 16
    assert perfect.by_role.keys() == {"first", "second"}
    assert np.mean(list(perfect.by_role.values())) == pytest.approx(perfect.win_rate)
    metrics = found.metrics()
    assert metrics["eval/win_rate_perfect"] == perfect.win_rate
    assert metrics["eval/elo_perfect"] < metrics["eval/elo_random"]
    assert all(documented(name) for name in metrics)
    assert "against perfect (Elo -" in str(perfect)
    assert 0 <= found.greedy <= 1


def test_rating_is_finite_and_symmetric():
    assert Match("a", 10, 0.5, 0.1).elo == 0
    assert Match("a", 10, 1.0, 0.0).elo == pytest.approx(-Match("a", 10, 0.0, 0.0).elo)
    assert 300 < Match("a", 10, 1.0, 0.0).elo < Match("a", 100, 1.0, 0.0).elo < 2000


# -- one role, and chat ------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(ORDERS, st.sampled_from([2, 7, 20, 200]), st.integers(1, 4), st.integers(0, 3), st.sampled_from(["", "12="]))
def test_a_single_role_equals_an_environment_without_roles(order, max_tokens, max_turns, times, opening):
    """The same tokens, seeds, texts and rewards; a role without tokens, though, still has its turn, of no text."""
    options = {"max_turns": max_turns, "options": {"times": times, "opening": opening}}
    texts = [f"{i}+{i}=" for i in range(4)]

    def collected(runner):
        pairs = [
            EncodedPrompt(p, encode_prompt(p, conversations.TOKENIZER, SourceConfig()))
            for p in (Prompt(text, "", "exact", "test", text=text) for text in texts)
        ]
        pool = conversations.Chance(order, 0)
        collector = Collector(pool, conversations.Judge(), conversations.TOKENIZER, RolloutConfig(), runner)
        draw = Draw(lambda name: derive_seed(0, name), Sampling(max_tokens, stop_token_ids=(1,)), 3)
        return asyncio.run(collector.collect(FixedPlan(texts, 5), pairs, draw))

    plain = collected(
        ConversationRunner(
            conversations.LocalWorkers(**options), conversations.TOKENIZER, {TRAINING: SourceConfig()}, 12
        )
    )
    alone = collected(
        EpisodeRunner(
            LocalRoleWorkers("sample_roles:Alone", **options),
            Encoder(conversations.TOKENIZER, 12),
            {TRAINING: SourceConfig()},
            {"policy": Player()},
            lambda player: None,
        )
    )
    assert not alone.others
    assert (plain.rollouts, plain.failed) == (alone.rollouts, alone.failed)
    for group, other in zip(plain.groups, alone.groups, strict=True):
        assert (group.prompt_tokens, group.weight, group.belief) == (other.prompt_tokens, other.weight, other.belief)
        for one, two in zip(group.rollouts, other.rollouts, strict=True):
            assert one.tokens.tolist() == two.tokens.tolist()
            assert one.sampled.tolist() == two.sampled.tolist()
            assert one.logprobs.tolist() == two.logprobs.tolist()
            assert (one.text, one.turns, one.policy_versions) == (two.text, two.turns, two.policy_versions)
    if max_tokens < 200:
        return
    one, two = (step_rows(found.groups, TrainConfig(baseline="group")) for found in (plain, alone))
    for name in ("tokens", "advantages", "weights", "logprobs", "sampled", "group"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_chat_views_are_rendered_by_the_template():
    """Both roles' messages open their own turns; what was sampled stays as it was."""
    tokenizer = chat_tokenizer()
    end = tokenizer.eos_token_id
    workers = LocalRoleWorkers("sample_roles:Chat", max_turns=4)
    players = {"first": Player(), "second": Player()}
    source = SourceConfig()
    runner = EpisodeRunner(workers, Encoder(tokenizer, 400), {TRAINING: source}, players, lambda player: None)
    prompt = Prompt("12>", "", "exact", "test", text="12>")
    pair = EncodedPrompt(prompt, encode_prompt(prompt, tokenizer, source))
    turns = iter(["b1", "a1", "b1"])

    class Lines(Table):
        def _sample(self, task, index):
            tokens = [*tokenizer(next(turns), add_special_tokens=False)["input_ids"], end]
            logprobs = np.full(len(tokens), -1, np.float32)
            return Rollout("12>", index, np.array(tokens, np.int32), logprobs, "stop", ((0, 0, len(tokens)),))

    collector = Collector(Lines(random.Random(0)), None, tokenizer, RolloutConfig(), runner)
    draw = Draw(lambda name: 1, Sampling(400, stop_token_ids=(end,)), 0)
    found = asyncio.run(collector.collect(FixedPlan(["12>"], 1), [pair], draw))
    (first,), (second,) = found.groups, found.others

    def whole(group):
        return tokenizer.decode([*group.prompt_tokens, *group.rollouts[0].tokens.tolist()])

    def says(who, text):
        return f"<|im_start|>{who}\n{text}<|im_end|>\n"

    def written(text):
        return f"<|im_start|>assistant\n{text}<|im_end|>"

    assert whole(first).removeprefix("<s>") == (
        says("user", "12>")
        + says("user", "You are first.")
        + written("b1")
        + "\n"
        + says("user", "01>")
        + written("b1")
    )
    assert whole(second).removeprefix("<s>") == (
        says("user", "12>") + says("user", "You are second.") + says("user", "11>") + written("a1")
    )
    assert first.rollouts[0].reward == 1.0
    assert first.rollouts[0].sampled_tokens == 6
