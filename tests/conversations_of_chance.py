"""Conversations in this process: a pool with a policy of chance, environment workers without processes, a judge."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np

from kray.config.schema import EnvironmentConfig
from kray.environments import turns as acts
from kray.records import Rollout, RolloutTask, derive_seed
from kray.rewards.scorer import Outcome as Verdict
from kray.rollout.outcome import TaskOutcome
from kray.train.tiny_files import make_tokenizer

TOKENIZER = make_tokenizer()


def sampled(index: int, tokens: list[int], version: int = 3) -> Rollout:
    logprobs = -np.arange(1, len(tokens) + 1, dtype=np.float32)
    return Rollout("p", index, np.array(tokens, np.int32), logprobs, "stop", ((version, 0, len(tokens)),))


class LocalWorkers:
    """Environment workers without processes."""

    def __init__(self, **settings):
        self.environment = EnvironmentConfig(name="sample_environments:Echo", **settings)

    async def begin(self, starts):
        return [self._do(acts.begin, "", (self.environment.name, self.environment.options, *start)) for start in starts]

    async def step(self, moves):
        return [self._do(acts.step, action, (state, last)) for state, action, last in moves]

    async def finish(self, states):
        return [self._do(acts.finish, "", state) for state in states]

    def release(self, states):
        pass

    @staticmethod
    def _do(act, *arguments):
        try:
            return act(*arguments)
        except Exception as error:
            return f"environment: {error}"


class Chance:
    """A pool whose policy samples from prompt and seed; tasks end in any order, and some fail."""

    def __init__(self, order, failing):
        self.order, self.failing, self.tasks, self.left = order, failing, [], set()
        self.task_ids = itertools.count()

    def open(self, priority):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, tasks):
        self.tasks += tasks
        self.left |= {task.id for task in tasks}

    async def next(self):
        await asyncio.sleep(0)
        task = self.tasks.pop(self.order.randrange(len(self.tasks)))
        self.left.discard(task.id)
        if derive_seed(task.seed, task.id) % 100 < self.failing:
            return TaskOutcome(task, [], "no engine")
        return TaskOutcome(task, [sample(task, task.first_index + i) for i in range(task.rollouts)])


def sample(task: RolloutTask, index: int) -> Rollout:
    rng = np.random.default_rng([task.seed + index, *task.prompt_tokens])
    tokens = [*rng.integers(3, 17, rng.integers(0, 6)).tolist(), 1][: task.sampling.max_tokens]
    rollout = sampled(index, tokens)
    rollout.prompt_id = task.prompt_id
    rollout.finish_reason = "stop" if tokens[-1] == 1 else "length"
    return rollout


class Judge:
    async def score(self, items):
        return [Verdict(float(len(text) % 2)) for _, text, _ in items]
