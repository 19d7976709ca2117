"""Episodes of real environments of verifiers: single turns, several turns, tools; and what happens when they fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from chat_tokenizers import make_tokenizer

from kray.config.prompts_schema import SourceConfig
from kray.config.schema import EnvironmentConfig, RolloutConfig
from kray.environments import check_environment
from kray.environments.workers import EnvironmentWorkers
from kray.errors import DataError
from kray.prompts import load_prompts
from kray.prompts.tokenize import encode_all
from kray.records import Rollout, Sampling
from kray.rollout.collector import TRAINING, Collector, Draw
from kray.rollout.conversation import ConversationRunner
from kray.rollout.outcome import TaskOutcome
from kray.rollout.plans import FixedPlan

TASKSETS = Path(__file__).parents[2] / "verifiers_tasksets"


@pytest.fixture(autouse=True)
def _findable(monkeypatch, tmp_path):
    """Let this process, hosts and tool servers import the tasksets, as installed packages."""
    monkeypatch.syspath_prepend(str(TASKSETS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TASKSETS), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HOME", str(tmp_path))


def prompts_of(taskset: str, **settings):
    return load_prompts(SourceConfig(kind="verifiers", path=taskset, **settings), "exact")


def play(work, step_timeout_s: float = 30.0, **options):
    async def go():
        settings = EnvironmentConfig("verifiers", options=options, step_timeout_s=step_timeout_s)
        workers = EnvironmentWorkers(settings, start_timeout_s=120.0)
        try:
            return await asyncio.wait_for(work(workers), 200)
        finally:
            workers.close()

    return asyncio.run(go())


def call(tool: str, **arguments) -> str:
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"


def test_tasks_become_prompts():
    prompts = prompts_of("capitals_taskset", subset="1:3")
    assert [prompt.id for prompt in prompts] == ["capitals_taskset:1", "capitals_taskset:2"]
    assert [prompt.answer for prompt in prompts] == ["Rome", "Tokyo"]
    assert prompts[0].messages == (
        {"role": "system", "content": "One word."},
        {"role": "user", "content": "The capital of Italy?"},
    )
    assert len(prompts_of("guess_taskset", size=12)) == 12
    assert len(prompts_of("guess_taskset", subset="5:", size=12, limit=3)) == 3
    assert prompts_of("guess_taskset", size=1, chat=False)[0].text == "Game 0. A digit?"
    (system, user) = prompts_of("lookup_taskset")[0].messages
    assert user["content"] == "What is Ada's number?"
    assert '"name": "book_number"' in system["content"]
    assert "Return the number of a person." in system["content"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"path": "no_such_taskset"},
            "verifiers taskset no_such_taskset: ModuleNotFoundError: taskset 'no_such_taskset'.*PYTHONPATH=FOLDER",
        ),
        (
            {"path": "capitals_taskset", "tasks": {"continents": 3}},
            "verifiers taskset capitals_taskset: ValidationError",
        ),
        ({"path": "capitals_taskset", "subset": "3"}, "write the range of tasks as first:end"),
        ({"path": "capitals_taskset", "subset": "9:12"}, "it holds no prompts"),
        ({"path": "lookup_taskset", "chat": False}, "chat must be true"),
    ],
)
def test_invalid_sources_are_named(settings, message):
    with pytest.raises(DataError, match=message):
        load_prompts(SourceConfig(kind="verifiers", **settings), "exact")


def test_single_turns_have_the_rewards_of_the_task():
    italy = prompts_of("capitals_taskset")[1]

    async def work(workers):
        (start,) = await workers.begin([(italy, 0)])
        turns = await workers.step(
            [(start.state, action, False) for action in ("Rome", "Rome, if I remember well", "")]
        )
        beyond, broken = await workers.step([(start.state, action, True) for action in ("Rome!", "raise")])
        return start, turns, beyond, broken

    start, turns, beyond, broken = play(work)
    assert start.observation == ""
    assert [(turn.ended, pytest.approx(turn.reward)) for turn in turns] == [(True, 1.0), (True, 0.8), (True, 0.2)]
    assert turns[1].detail == "right 0.8, short 0"
    assert "the reward is 8.2, not in [0, 1]; environment.options.reward_range states the range" in beyond
    assert "environment: ValueError: the episode failed: TaskError" in broken
    assert "RuntimeError: it cannot be judged" in broken


def test_reward_range_is_mapped():
    prompt = prompts_of("capitals_taskset")[1]

    async def work(workers):
        (start,) = await workers.begin([(prompt, 0)])
        return await workers.step([(start.state, "Rome!", False)])

    assert play(work, reward_range=[0, 10])[0].reward == pytest.approx(0.82)


def test_several_turns_are_played_to_the_end_or_cut():
    games = prompts_of("guess_taskset", size=5)

    async def work(workers):
        starts = await workers.begin([(game, 0) for game in games])
        first = await workers.step([(start.state, "2", False) for start in starts])
        going = [turn.state for turn in first if not turn.ended]
        second = await workers.step([(state, "3", False) for state in going])
        (cut,) = await workers.step([(starts[4].state, "1", True)])
        return starts, first, second, cut, await workers.finish([turn.state for turn in second if not turn.ended])

    starts, first, second, cut, finished = play(work)
    assert {start.observation for start in starts} == {""}
    assert [turn.ended for turn in first] == [False, False, True, False, False]
    assert first[2].reward == 1.0
    assert first[0].observation == ({"role": "user", "content": "Not 2."},)
    assert [turn.ended for turn in second] == [False, False, True, False]
    assert [(turn.ended, turn.reward) for turn in [cut, *finished]] == [(True, 0.0)] * 4


class Script:
    """A pool whose policy writes these turns in order, in every rollout."""

    def __init__(self, turns, tokenizer):
        self.turns, self.tokenizer, self.tasks, self.task_ids = turns, tokenizer, [], itertools.count()

    def open(self, priority):
        return contextlib.nullcontext(self)

    @property
    def left(self):
        return self.tasks

    def submit(self, tasks):
        self.tasks += tasks

    async def next(self):
        while not self.tasks:
            await asyncio.sleep(0.01)
        task = self.tasks.pop(0)
        said = self.tokenizer.decode(list(task.prompt_tokens)).count("assistant\n") - 1
        tokens = [*self.tokenizer.encode(self.turns[said], add_special_tokens=False), self.tokenizer.eos_token_id]
        sampled, logprobs = np.array(tokens, np.int32), np.full(len(tokens), -1, np.float32)
        indices = range(task.first_index, task.first_index + task.rollouts)
        return TaskOutcome(
            task, [Rollout(task.prompt_id, i, sampled, logprobs, "stop", ((0, 0, len(tokens)),)) for i in indices]
        )


def test_conversation_is_what_the_chat_template_makes_of_it():
    """Token by token, though the turns are never encoded again."""
    tokenizer, source = make_tokenizer(), SourceConfig(kind="verifiers", path="guess_taskset")
    pairs, _ = encode_all(prompts_of("guess_taskset", subset="7:9"), tokenizer, source, 200, len(tokenizer))

    async def work(workers):
        runner = ConversationRunner(workers, tokenizer, {TRAINING: source}, 200)
        collector = Collector(Script(["1", " 2", "7", "8"], tokenizer), None, tokenizer, RolloutConfig(), runner)
        sampling = Sampling(400, stop_token_ids=(tokenizer.eos_token_id,))
        plan = FixedPlan([pair.prompt.id for pair in pairs], 3)
        return await collector.collect(plan, pairs, Draw(lambda _: 0, sampling, 0))

    found = play(work)
    assert found.failed == 0
    for group, turns in zip(found.groups, (["1", " 2", "7"], ["1", " 2", "7", "8"]), strict=True):
        messages = [dict(message) for message in group.prompt.messages]
        for turn in turns:
            messages += [{"role": "assistant", "content": turn}, {"role": "user", "content": f"Not {turn.strip()}."}]
        whole = tokenizer.apply_chat_template(messages[:-1], tokenize=False).removesuffix("\n")
        for rollout in group.rollouts:
            assert tokenizer.decode([*group.prompt_tokens, *rollout.tokens.tolist()]) == whole
            assert tokenizer.decode(rollout.tokens[rollout.sampled].tolist()) == "".join(
                f"{t}<|im_end|>" for t in turns
            )
            assert (rollout.turns, rollout.reward) == (len(turns), 1.0)


def test_tools_are_called_and_their_results_observed():
    ada, bob = prompts_of("lookup_taskset")

    async def work(workers):
        starts = await workers.begin([(ada, 0), (bob, 0)])
        asked = await workers.step(
            [
                (starts[0].state, f"Let me see. {call('book_number', name='Ada')}", False),
                (starts[1].state, call("book_number", name="Bob") + call("book_number", name="Eve"), False),
                (starts[1].state, call("book_name", number="742"), False),
                (starts[1].state, "<tool_call>{", False),
            ]
        )
        states = [turn.state for turn in asked if not turn.ended]
        return starts, asked, await workers.step([(state, "361", False) for state in states])

    starts, asked, ended = play(work)
    assert starts[0].observation == ""
    assert asked[0].observation == ({"role": "tool", "content": "361"},)
    assert [message["content"][:3] for message in asked[1].observation] == ["742", "Err"]
    assert asked[2].observation[0]["content"] == "error: no tool 'book_name'; there are book_number"
    assert (asked[3].ended, asked[3].reward) == (True, 0.0)
    assert [turn.reward for turn in ended] == [1.0, 0.0, 0.0]
    names = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert not [name for name in names if "lookup_taskset" in name], "a tool server is left"


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ("hang", "timeout after 3 s (environment.step_timeout_s) in step"),
        ("raise", "the episode failed: RuntimeError: the game is broken"),
        ("block", "its host did not answer within"),
    ],
)
def test_failing_episodes_fail_alone_or_with_their_host(action, why):
    (game,) = prompts_of("guess_taskset", subset="7:8")

    async def work(workers):
        (start,) = await workers.begin([(game, 0)])
        (going,) = await workers.step([(start.state, "1", False)])
        (failed,) = await workers.step([(start.state, action, False)])
        return (
            failed,
            (await workers.step([(going.state, "7", False)]))[0],
            await workers.step([(start.state, "7", False)]),
        )

    failed, other, (after,) = play(work, step_timeout_s=3.0)
    assert failed.startswith("environment: ")
    assert why in failed
    assert after.reward == 1.0
    if action == "block":
        assert other == "environment: the host of its session was lost"
    else:
        assert other.reward == 1.0


def test_changed_taskset_is_refused():
    (game,) = prompts_of("guess_taskset", subset="7:8")
    game.metadata["verifiers"]["key"] = "another"

    async def work(workers):
        (start,) = await workers.begin([(game, 0)])
        return start

    assert "taskset guess_taskset has another task 7 than when the prompts were loaded" in play(work)


def test_options_are_checked():
    check_environment("verifiers", {"env": {"player": {"max_turns": 3}}})
    with pytest.raises(ValueError, match=r"env.taskset: the environment is options.id"):
        check_environment("verifiers", {"env": {"taskset": {"id": "x"}}})
