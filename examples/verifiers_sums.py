"""A taskset and environment of verifiers for configs/verifiers.yaml: a sum, and a second attempt after a wrong answer.

An installed package would be named in the same way. This one is found because examples/ is on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import verifiers.v1 as vf

from kray.prompts.arithmetic import KINDS, make_problems

__all__ = ["SumsEnv", "SumsTaskset"]


class SumsData(vf.TaskData):
    answer: str
    kind: str


class SumsConfig(vf.TasksetConfig):
    split: Literal["train", "test"] = "train"
    size: int = 1024


class SumsTask(vf.Task[SumsData]):
    """Half of the reward for an answer that is right in the second attempt."""

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        correct = (trace.last_reply or "").strip() == self.data.answer
        return correct / max(1, trace.num_turns)


class SumsTaskset(vf.Taskset[SumsTask, SumsConfig]):
    def load(self) -> Iterable[SumsTask]:
        for problem in make_problems(KINDS, self.config.size, 0, self.config.split):
            yield SumsTask(SumsData(prompt=problem.text, answer=problem.answer, kind=problem.kind), self.config.task)


class SumsEnvConfig(vf.EnvConfig):
    solver: vf.AgentConfig = vf.AgentConfig()


class SumsEnv(vf.Env[SumsEnvConfig]):
    async def run(self, task, agents):
        async with agents.solver.interaction(task) as interaction:
            segment = await interaction.turn()
            if not segment.terminated and segment.last_reply != task.data.answer:
                await interaction.turn(task.data.prompt)
