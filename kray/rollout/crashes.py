"""Which losses of engines were the fault of a prompt. Pure."""

from __future__ import annotations

from collections.abc import Iterable


class Crashes:
    """Counts losses of engines, and excuses those that prompts have caused, each once.

    A prompt is blamed only where the engine that it was alone on has finished a task since it was lost so before: else the
    engine may be at fault, which dies with whatever it gets.
    """

    def __init__(self) -> None:
        self._count = 0
        # Engines that have finished a task since a prompt was lost alone on them.
        self._works: set[str] = set()
        # Number of a loss -> its engine.
        self._held: dict[int, str] = {}
        self._excused: list[str] = []
        self._blamed: set[str] = set()

    def lost(self, engine: str) -> int:
        """Record the loss of an engine; return its number."""
        self._count += 1
        self._held[self._count] = engine
        return self._count

    def finished(self, engine: str) -> None:
        """Record that an engine has finished a task."""
        self._works.add(engine)

    def identified(self, prompt_id: str, losses: Iterable[int], engine: str) -> None:
        """Record that an engine was lost with nothing but a task of this prompt.

        Args:
            prompt_id: The prompt.
            losses: Numbers of the losses that its tasks were in.
            engine: The engine.
        """
        if engine in self._works or prompt_id in self._blamed:
            self._blamed.add(prompt_id)
            self._excused += [self._held.pop(number) for number in sorted(set(losses)) if number in self._held]
        self._works.discard(engine)

    def take_excused(self) -> list[str]:
        """Return the engines of losses that prompts have caused, one name a loss, each loss once."""
        excused, self._excused = self._excused, []
        return excused
