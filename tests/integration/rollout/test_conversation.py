"""Conversations on a real engine, judged and learned from by real processes; then whole runs, of a calculator and in chat."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import numpy as np
import pytest
from chat_models import chat_model, programs
from state_digest import state_digest
from tiny_pool import PlainLearner, make_pool

from kray.config import load_config
from kray.config.prompts_schema import SourceConfig
from kray.config.schema import EnvironmentConfig, RolloutConfig
from kray.config.train_schema import TrainConfig
from kray.driver.remote import run_on_cluster
from kray.environments.workers import EnvironmentWorkers
from kray.metrics import documented
from kray.prompts import load_prompts
from kray.prompts.tokenize import encode_all
from kray.records import Sampling, derive_seed
from kray.rewards.scorer import Scorer
from kray.rollout.collector import TRAINING, Collector, Draw
from kray.rollout.conversation import ConversationRunner
from kray.rollout.plans import FixedPlan
from kray.train.learner import Learner
from kray.train.training_rows import step_rows

CALCULATOR = {"name": "calculator", "options": {"least_first": True, "shown": "{}="}}
SOURCE = SourceConfig(size=16)


class Setup:
    """An engine, a scorer and prompts; `collect` gives each prompt rollouts in the environment with these settings."""

    def __init__(self, pool, tokenizer, pairs):
        self.pool, self.tokenizer, self.pairs = pool, tokenizer, pairs
        self.scorer = Scorer("sample_verifiers:first_is_even")

    async def collect(self, stops=(), rollouts=6, **settings):
        workers = EnvironmentWorkers(EnvironmentConfig(**settings)) if settings else None
        runner = ConversationRunner(workers, self.tokenizer, {TRAINING: SOURCE}, 24) if workers else None
        collector = Collector(self.pool, self.scorer, self.tokenizer, RolloutConfig(), runner)
        sampling = Sampling(24, stop_token_ids=(self.tokenizer.eos_token_id,), stops=stops)
        plan = FixedPlan([prompt.id for prompt, _ in self.pairs], rollouts)
        try:
            return await collector.collect(plan, self.pairs, Draw(partial(derive_seed, 0, 0), sampling, 0))
        finally:
            if workers is not None:
                workers.close()


@pytest.fixture
def run_with_setup(ray_local, tool_policy):
    """What `work(setup)` returns."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tool_policy)
    prompts = load_prompts(SOURCE, "sample_verifiers:first_is_even")
    pairs, _ = encode_all(prompts, tokenizer, SOURCE, 24, len(tokenizer))

    def run(work):
        async def go():
            pool = make_pool(tool_policy, 1, "conversation", reads_text=True)
            setup = Setup(pool, tokenizer, pairs)
            try:
                pool.start()
                await pool.publish(PlainLearner(tool_policy).publication(0, tuple(range(3, 20))))
                return await work(setup)
            finally:
                await pool.close()
                setup.scorer.close()

        return asyncio.run(asyncio.wait_for(go(), 180))

    return run


def rollouts_of(collected):
    return [rollout for group in collected.groups for rollout in group.rollouts]


def test_engine_and_learner_agree_on_every_turn(run_with_setup, tool_policy):
    async def work(setup):
        plain = await setup.collect()
        single = await setup.collect(name="sample_environments:OneTurn", max_turns=1)
        conversations = await setup.collect(stops=("]",), max_turns=3, **CALCULATOR)
        broken = await setup.collect(name="sample_environments:BreaksOnOdd")
        return plain, single, conversations, broken, setup.tokenizer

    plain, single, conversations, broken, tokenizer = run_with_setup(work)

    # the calculator's answers stand where calls ended, and nowhere else
    turns = np.array([rollout.turns for rollout in rollouts_of(conversations)])
    assert len(turns) == 16 * 6
    assert {1, 2, 3} <= set(turns.tolist())
    for rollout in rollouts_of(conversations):
        told_places = np.flatnonzero(~rollout.sampled)
        starts = [at for at in told_places if rollout.sampled[at - 1]]
        assert len(starts) == rollout.turns - 1
        assert all(tokenizer.decode([rollout.tokens[at - 1]]) == "]" for at in starts)
        assert all(tokenizer.decode([rollout.tokens[at]]) in "?0123456789-" for at in starts)
        assert len(rollout.tokens) <= 24

    # what breaks is run_with_setup with its prompt, and costs its own rollout
    assert broken.failed + len(rollouts_of(broken)) == 16 * 6
    assert broken.failed == sum(rollout.text[:1] in tuple("13579") for rollout in rollouts_of(plain))
    assert {failure.why.partition(" (")[0] for failure in broken.failures} == {
        "environment: RuntimeError: an odd digit"
    }
    known = {(rollout.prompt_id, rollout.index) for rollout in rollouts_of(broken)}
    assert all(failure.prompt_id in {group.prompt.id for group in plain.groups} for failure in broken.failures)
    assert len(known) == len(rollouts_of(broken))

    train = TrainConfig(lr=1e-3, timeout_s=60)

    def learn(collected):
        for group in collected.groups:
            group.weight = float(len(group.rollouts))
        learner = Learner(0, 1, "", 0, str(tool_policy), train, "float32", 4, 0)
        try:
            metrics = learner.update(step_rows(collected.groups, train))
            return metrics, state_digest(learner.state())
        finally:
            learner.shutdown()

    (first, learned), (_, again) = learn(plain), learn(single)
    assert learned == again  # bit for bit
    metrics, _ = learn(conversations)
    print(
        f"largest gap between engine and learner: {first['train/logprob_gap_max']:.1e}, {metrics['train/logprob_gap_max']:.1e}"
    )
    assert metrics["train/rows"] > 20
    assert metrics["train/logprob_gap_max"] < 1e-4
    assert metrics["train/tokens"] < metrics["train/computed_tokens"]


def test_calculator_run_learns_from_conversations(ray_local, tool_policy, tmp_path):
    """configs/calculator.yaml with a policy that calls by chance: the path is what is tested."""
    small = [
        "model.tiny=null",
        f"model.path={tool_policy}",
        f"run.dir={tmp_path}",
        "run.steps=2",
        "prompts.per_step=8",
        "prompts.train.size=16",
        "prompts.test.size=8",
        "plan.mode=online",
        "plan.budget=48",
        "plan.upper=16",
        "rollout.max_sequences=32",
        "rollout.kv_cache_gib=0.05",
        "reward.verifier=sample_verifiers:first_is_even",
        "evaluate.every=0",
        "evaluate.samples=2",
        "track.every=1",
        "track.system_metrics=false",
    ]
    config = load_config("configs/calculator.yaml", small)
    summary = run_on_cluster(config, str(tool_policy), tmp_path / "run", None, "run")
    assert (summary.steps, summary.rollouts) == (2, 2 * 48)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "environment/turns_mean" in line]
    assert len(steps) == 2
    assert {name for line in lines for name in line if name not in ("step", "time") and not documented(name)} == set()
    for line in steps:
        assert 0 < line["environment/multi_turn_ratio"] < 1
        assert 1 < line["environment/turns_mean"] < line["environment/turns_max"] == 3
        assert 0 < line["environment/tokens_ratio"] < 0.5
        assert line["environment/failed"] == 0
        assert line["train/logprob_gap_max"] < 1e-4
    assert lines[0]["eval/turns_mean"] > 1
    rows = json.loads((tmp_path / "run/samples/step-000002.json").read_text())
    response = rows["columns"].index("response")
    assert any("]" in row[response] for row in rows["data"])


def test_chat_model_trains_in_conversations(ray_local, tmp_path):
    """Both verifiers, the chat template between turns, and an environment of one's own, in one run."""
    model = chat_model(tmp_path / "model")
    logic = load_config("configs/logic.yaml").prompts.test
    tasks = ", ".join(f"{name}: {{}}" for name in logic.tasks)
    config = load_config(
        "configs/code.yaml",
        [
            programs(tmp_path)[0],
            f"model.path={model}",
            f"run.dir={tmp_path}",
            "run.steps=2",
            "model.dtype=float32",
            "prompts.per_step=4",
            "prompts.max_tokens=1500",
            "plan.budget=8",
            "plan.candidates=1",
            "prompts.test.kind=reasoning_gym",
            f"prompts.test.tasks={{{tasks}}}",
            "prompts.test.verifier=reasoning_gym",
            "prompts.test.size=6",
            "prompts.test.template=",
            "environment.name=sample_environments:Nudge",
            "rollout.max_response_tokens=120",
            "rollout.max_sequences=16",
            "rollout.kv_cache_gib=0.2",
            "rollout.engines=1",
            "rollout.gpus_per_engine=0",
            "train.gpus_per_rank=0",
            "train.ranks=1",
            "reward.workers=1",
            "evaluate.every=0",
            "evaluate.samples=1",
            "evaluate.greedy=false",
            "track.every=1",
            "track.system_metrics=false",
        ],
    )
    summary = run_on_cluster(config, str(model), tmp_path / "code", None, "run")
    assert (summary.steps, summary.rollouts) == (2, 16)
    assert summary.accuracy_after is not None
    lines = [json.loads(line) for line in (tmp_path / "code/metrics.jsonl").read_text().splitlines()]
    assert all(line["reward/failed"] == line["environment/failed"] == 0 for line in lines if "reward/failed" in line)
    table = json.loads((tmp_path / "code/samples/step-000002.json").read_text())
    responses = [row[table["columns"].index("response")] for row in table["data"]]
    assert all("\nuser\nLook again.\nassistant\n" in response for response in responses)
    assert lines[0]["eval/turns_mean"] == 2
