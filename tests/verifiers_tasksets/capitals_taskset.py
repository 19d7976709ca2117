"""A taskset of verifiers for tests: single turns, a system prompt, two weighted rewards."""

from __future__ import annotations

import verifiers.v1 as vf

__all__ = ["CapitalsTaskset"]

CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Peru": "Lima"}


class CapitalsData(vf.TaskData):
    answer: str


class CapitalsConfig(vf.TasksetConfig):
    continent: str = ""


class CapitalsTask(vf.Task[CapitalsData]):
    @vf.reward(weight=0.8)
    async def right(self, trace: vf.Trace) -> float:
        if "raise" in trace.last_reply:
            raise RuntimeError("it cannot be judged")
        return float(self.data.answer in trace.last_reply) * (10 if "!" in trace.last_reply else 1)

    @vf.reward(weight=0.2)
    async def short(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply) < 20)

    @vf.metric
    async def letters(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))


class CapitalsTaskset(vf.Taskset[CapitalsTask, CapitalsConfig]):
    def load(self):
        for country, capital in CAPITALS.items():
            data = CapitalsData(prompt=f"The capital of {country}?", system_prompt="One word.", answer=capital)
            yield CapitalsTask(data, self.config.task)
