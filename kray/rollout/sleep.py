"""The memory of an engine that sleeps while a learner uses its device, as vLLM's sleep mode treats it. Pure.

    AWAKE --sleep--> ASLEEP --wake--> MAPPED --loaded--> LOADED --wake_cache--> AWAKE

Sleep of level 2 discards the weights, and keys and values. Waking gives memory for weights back, with nothing in it; that for
keys and values comes after new weights have been loaded. vLLM itself would compute with whatever the memory holds, so that each
operation asks here first.
"""

from __future__ import annotations

from enum import Enum

# vLLM's level of sleep that discards weights: new ones are always loaded before the engine serves again.
SLEEP_LEVEL = 2


class Memory(Enum):
    """What an engine holds on its device."""

    AWAKE = "awake"
    ASLEEP = "asleep"
    MAPPED = "awake but for its weights, keys and values"
    LOADED = "awake but for its keys and values"


class EngineSleep:
    """The state of one engine's memory.

    Attributes:
        memory: What it holds.
    """

    def __init__(self) -> None:
        """Begin awake."""
        self.memory = Memory.AWAKE

    def sleep(self, unfinished: int) -> None:
        """Record that the engine discards its memory.

        Args:
            unfinished: Its rollout tasks.

        Raises:
            RuntimeError: It has tasks, or sleeps.
        """
        if unfinished:
            raise RuntimeError(f"an engine with {unfinished} unfinished tasks cannot sleep")
        # The learner may be lost while the engine wakes.
        self.require(Memory.AWAKE, Memory.MAPPED, Memory.LOADED)
        self.memory = Memory.ASLEEP

    def wake(self) -> None:
        """Record that the engine takes memory for its weights."""
        self._move(Memory.ASLEEP, Memory.MAPPED)

    def loaded(self) -> None:
        """Record that new weights are loaded."""
        if self.memory is not Memory.AWAKE:
            self._move(Memory.MAPPED, Memory.LOADED)

    @property
    def lacks_cache(self) -> bool:
        """Whether weights are loaded and the memory for keys and values is to be taken."""
        return self.memory is Memory.LOADED

    def wake_cache(self) -> None:
        """Record that the engine takes memory for keys and values."""
        self._move(Memory.LOADED, Memory.AWAKE)

    def require(self, *allowed: Memory) -> None:
        """Raise RuntimeError unless the memory is in one of these states."""
        if self.memory not in allowed:
            raise RuntimeError(f"the engine is {self.memory.value}")

    def _move(self, expected: Memory, to: Memory) -> None:
        self.require(expected)
        self.memory = to
