"""A taskset without an end and a multi-turn environment of verifiers for tests: guess a digit."""

from __future__ import annotations

import asyncio
import itertools
import time

import verifiers.v1 as vf

__all__ = ["GuessEnv", "GuessTaskset"]


class GuessData(vf.TaskData):
    target: int


class GuessTask(vf.Task[GuessData]):
    pass


class GuessTaskset(vf.Taskset[GuessTask, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        for number in itertools.count():
            yield GuessTask(GuessData(prompt=f"Game {number}. A digit?", target=number % 10), self.config.task)


class GuessEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class GuessEnv(vf.Env[GuessEnvConfig]):
    async def run(self, task, agents):
        won = 0.0
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated:
                if segment.last_reply == "hang":
                    await asyncio.sleep(600)
                if segment.last_reply == "block":
                    time.sleep(600)
                if segment.last_reply == "raise":
                    raise RuntimeError("the game is broken")
                if segment.last_reply == str(task.data.target):
                    won = 1.0
                    break
                segment = await interaction.turn(f"Not {segment.last_reply}.")
        interaction.trace.record_reward("won", won)
