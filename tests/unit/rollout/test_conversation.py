"""Conversations with a random policy and environments in this process."""

from __future__ import annotations

import asyncio
import pickle
import random
from functools import partial
from pathlib import Path

import pytest
from conversations_of_chance import TOKENIZER, Chance, Judge, LocalWorkers, sampled
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.config.prompts_schema import SourceConfig
from kray.config.schema import EnvironmentConfig, EvaluateConfig, RolloutConfig
from kray.driver.evaluation import evaluate
from kray.driver.tables import sample_rows
from kray.environments.workers import EnvironmentWorkers
from kray.prompts.tokenize import as_read, encode_prompt
from kray.records import EncodedPrompt, Prompt, RolloutTask, Sampling, derive_seed
from kray.rollout.collector import EVALUATION, TRAINING, Collector, Draw
from kray.rollout.conversation import Conversation, ConversationRunner
from kray.rollout.plans import FixedPlan

TOKENS = st.lists(st.integers(3, 16), min_size=1, max_size=5)
TURNS = st.lists(st.tuples(TOKENS, st.lists(st.integers(3, 16), max_size=4)), min_size=1, max_size=5)


def first_task(max_tokens: int = 40, rollouts: int = 3) -> RolloutTask:
    return RolloutTask(0, "p", (5, 6, 7), rollouts, 0, 1234, 3, Sampling(max_tokens, stop_token_ids=(1,)), 60.0, 8.0)


@given(TURNS, st.integers(0, 2))
def test_conversation_concatenates_turns_and_observations(turns, index):
    conversation = Conversation(first_task(100), index, b"0")
    context, seeds = [5, 6, 7], []
    for number, (action, answer) in enumerate(turns):
        conversation.add_action(sampled(index, action, version=number), "text")
        conversation.add_observation(answer, b"1")
        context += action + answer
        order = conversation.next_task(number + 1)
        assert list(order.prompt_tokens) == context
        assert (order.rollouts, order.first_index, order.sampling.max_tokens) == (1, index, 103 - len(context))
        assert order.sampling.max_tokens == conversation.remaining_tokens
        seeds.append(order.seed)
    rollout = conversation.rollout(str)
    assert rollout.tokens.tolist() == context[3:]
    assert rollout.sampled_tokens == sum(len(action) for action, _ in turns) == rollout.sampled.sum()
    assert rollout.tokens[rollout.sampled].tolist() == [token for action, _ in turns for token in action]
    assert (rollout.logprobs[~rollout.sampled] == 0).all()
    assert rollout.logprobs[rollout.sampled].tolist() == [
        -float(i + 1) for action, _ in turns for i in range(len(action))
    ]
    for (version, start, end), (action, _) in zip(rollout.policy_versions, turns, strict=True):
        assert rollout.tokens[start:end].tolist() == action == turns[version][0]
    assert len(set(seeds) | {first_task().seed}) == len(turns) + 1


def test_rollouts_have_different_turn_seeds():
    conversations = [Conversation(first_task(), index, b"") for index in range(3)]
    for conversation in conversations:
        conversation.add_action(sampled(conversation.index, [4]), "")
    assert len({conversation.next_task(9).seed + conversation.index for conversation in conversations}) == 3


# -- a collection with a policy of chance, in this process -----------------------------------------------------------


def collect(order, failing=0, max_tokens=24, prompts=4, rollouts=5, workers=None, **settings):
    source = SourceConfig()
    texts = [f"{i}+{i}=" for i in range(prompts)]
    pairs = [
        EncodedPrompt(p, encode_prompt(p, TOKENIZER, source))
        for p in (Prompt(t, "", "exact", "test", text=t) for t in texts)
    ]
    workers = workers or (LocalWorkers(**settings) if settings else None)
    runner = ConversationRunner(workers, TOKENIZER, {TRAINING: source}, 12) if workers else None
    collector = Collector(Chance(order, failing), Judge(), TOKENIZER, RolloutConfig(), runner)
    sampling = Sampling(max_tokens, stop_token_ids=(1,))
    plan = FixedPlan([p.id for p, _ in pairs], rollouts)
    return asyncio.run(collector.collect(plan, pairs, Draw(lambda p: derive_seed(0, p), sampling, 3)))


def described(collected):
    return [
        (r.prompt_id, r.index, r.tokens.tolist(), r.sampled.tolist(), r.turns, r.reward, r.text)
        for group in collected.groups
        for r in group.rollouts
    ]


@settings(max_examples=25)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([0, 0, 30]),
    st.integers(1, 30),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_every_rollout_ends_or_fails_in_any_order(order, failing, max_tokens, max_turns, times):
    options = {"max_turns": max_turns, "options": {"times": times}}
    found = collect(order, failing, max_tokens, **options)
    done = sum(len(group.rollouts) for group in found.groups)
    assert done + found.failed == 20
    for group in found.groups:
        for rollout in group.rollouts:
            assert 1 <= rollout.turns <= min(max_turns, times + 1)
            assert len(rollout.tokens) <= max_tokens
            assert rollout.sampled[0]
            assert rollout.sampled[-1], "nothing follows the policy's last turn"
            assert rollout.text == TOKENIZER.decode(rollout.tokens.tolist(), skip_special_tokens=True)
            assert rollout.reward == pytest.approx(rollout.turns / (times + 1))
    if not failing:
        assert described(found) == described(collect(order, failing, max_tokens, **options))  # another order


@pytest.mark.parametrize("failing", [0, 30])
def test_sessions_hold_the_same_conversations_as_pickled_environments(failing, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    log = tmp_path / "log"
    live = EnvironmentConfig("sample_environments:LiveEcho", max_turns=3, options={"times": 3, "log": str(log)})
    workers = EnvironmentWorkers(live)
    try:
        found = collect(random.Random(1), failing, workers=workers)
    finally:
        workers.close()
    assert sum(len(group.rollouts) for group in found.groups) + found.failed == 20
    # Which turns fail follows from the order in which they arrive.
    if not failing:
        assert described(found) == described(collect(random.Random(1), max_turns=3, options={"times": 3}))
    noted = [line.split()[0] for line in log.read_text().splitlines()]
    assert noted.count("reset") == noted.count("close") > 4, "every session has been closed"


@settings(max_examples=5)
@given(st.randoms(use_true_random=False))
def test_single_turn_equals_no_environment(order):
    plain, one = collect(order), collect(order, max_turns=1, options={"times": 0})
    for group, other in zip(plain.groups, one.groups, strict=True):
        assert group.prompt_tokens == other.prompt_tokens
        for rollout, same in zip(group.rollouts, other.rollouts, strict=True):
            assert rollout.tokens.tolist() == same.tokens.tolist()
            assert rollout.logprobs.tolist() == same.logprobs.tolist()
            assert (rollout.text, rollout.policy_versions) == (same.text, same.policy_versions)
            assert same.sampled.all()


def test_opening_observation_belongs_to_the_prompt():
    found = collect(random.Random(0), max_turns=2, options={"opening": "12="})
    assert [TOKENIZER.decode(group.prompt_tokens) for group in found.groups] == [f"{i}+{i}=12=" for i in range(4)]
    found = collect(random.Random(0), max_turns=2, options={"opening": "1" * 9})
    assert not found.groups
    assert found.failed == 20
    assert "prompts.max_tokens is 12" in found.failures[0].why


def test_group_shares_one_reset():
    """Its seed is the prompt's, not the rollout's."""
    runner = ConversationRunner(LocalWorkers(max_turns=2), TOKENIZER, {TRAINING: SourceConfig()}, 12)
    pairs = [EncodedPrompt(Prompt(t, "", "exact", "test", text=t), (5,)) for t in "ab"]
    conversations = asyncio.run(runner.open(pairs, lambda p: derive_seed(0, p), TRAINING))
    seeds = [pickle.loads(state).seed for state in conversations.states.values()]
    assert seeds == [derive_seed(derive_seed(0, p), "reset") for p in "ab"]


def test_opening_uses_the_template_of_its_test_set():
    sources = {EVALUATION: SourceConfig(), "test": SourceConfig(), "more": SourceConfig(template="1{prompt}")}
    runner = ConversationRunner(LocalWorkers(max_turns=2, options={"opening": "2="}), TOKENIZER, sources, 12)
    pairs = [
        EncodedPrompt(Prompt(name, "", "exact", "test", text="5+5=", metadata={"set": name}), (5,))
        for name in ("test", "more")
    ]
    conversations = asyncio.run(runner.open(pairs, lambda p: derive_seed(0, p), EVALUATION))
    assert [TOKENIZER.decode(tokens) for _, tokens in conversations.prompts] == ["5+5=2=", "15+5=2="]


# -- what is shown of it -----------------------------------------------------------------------------------------------


def test_rollout_tables_show_rendered_prompts():
    found = collect(random.Random(0), max_turns=2, options={"opening": "12="})
    ids = [group.prompt.id for group in found.groups]
    assert found.allocation.prompt_ids == ids
    rows = sample_rows(found, 3, 0, partial(as_read, tokenizer=TOKENIZER))
    assert len(rows) == 3
    assert [row["rendered_prompt"] for row in rows] == [f"{row['prompt']}12=" for row in rows]
    assert "rendered_prompt" not in sample_rows(found, 3, 0)[0]


def test_evaluation_tables_show_rendered_prompts():
    source = SourceConfig(template="{prompt}7")
    pairs = [
        EncodedPrompt(p, encode_prompt(p, TOKENIZER, source)) for p in [Prompt("a", "", "exact", "test", text="1+1=")]
    ]
    collector = Collector(Chance(random.Random(0), 0), Judge(), TOKENIZER, RolloutConfig(), None)
    sampling = Sampling(24, stop_token_ids=(1,))
    found = asyncio.run(evaluate(collector, pairs, EvaluateConfig(samples=2, greedy=False), sampling, 3, 0))
    assert [(row["prompt"], row["rendered_prompt"]) for row in found.rows] == [("1+1=", "1+1=7")]
