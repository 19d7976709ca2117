"""A taskset of verifiers with tools for tests: numbers in a phone book, which only a tool server knows."""

from __future__ import annotations

import verifiers.v1 as vf

__all__ = ["LookupTaskset"]

NUMBERS = {"Ada": "361", "Bob": "742"}


class PhoneBook(vf.Toolset[vf.SharedToolsetConfig, vf.State]):
    TOOL_PREFIX = "book"

    @vf.tool
    def number(self, name: str) -> str:
        """Return the number of a person.

        Args:
            name: The person.
        """
        if name not in NUMBERS:
            raise ValueError(f"no {name} in the book")
        return NUMBERS[name]


class LookupData(vf.TaskData):
    answer: str


class LookupConfig(vf.TasksetConfig):
    book: vf.SharedToolsetConfig = vf.SharedToolsetConfig()


class LookupTask(vf.Task[LookupData]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float(self.data.answer in trace.last_reply)


class LookupTaskset(vf.Taskset[LookupTask, LookupConfig]):
    def load(self):
        for name, number in NUMBERS.items():
            yield LookupTask(LookupData(prompt=f"What is {name}'s number?", answer=number), self.config.task)

    @classmethod
    def toolsets(cls, config):
        return [PhoneBook(config.book)]


if __name__ == "__main__":
    PhoneBook.run()
