"""Environments that tests name as pkg.mod:Class."""

from __future__ import annotations

import os
import time


class OneTurn:
    """Is over after the first turn; the prompt's verifier judges it."""

    def reset(self, prompt, seed):
        return ""

    def step(self, action):
        return "", True

    def reward(self):
        return None


class Echo(OneTurn):
    """Repeats each turn, `times` times; the reward is the share of the turns that it received."""

    stops = (";",)

    def __init__(self, times: int = 2, opening: str = ""):
        self.times, self.opening, self.seen = times, opening, []

    def reset(self, prompt, seed):
        self.seed = seed
        return self.opening

    def step(self, action):
        self.seen.append(action)
        return f"<{action}>", len(self.seen) > self.times

    def reward(self):
        return min(1.0, len(self.seen) / (self.times + 1))


class Broken(OneTurn):
    """Fails in the way that the turn names: raise, hang, die, unpicklable, worth2, half (of a character), number."""

    def reset(self, prompt, seed):
        if prompt.text == "broken":
            raise RuntimeError("it does not start")
        return ""

    def step(self, action):
        if action == "hang":
            time.sleep(60)
        if action == "die":
            os._exit(3)
        if action == "raise":
            raise RuntimeError("it broke")
        self.kept = (lambda: 0) if action == "unpicklable" else action
        return {"half": "\ud800", "number": 3}.get(action, "go on"), action == "worth2"

    def reward(self):
        return 2.0 if self.kept == "worth2" else 0.5


class BreaksOnOdd(OneTurn):
    """Raises where a turn begins with an odd digit."""

    def step(self, action):
        if action[:1] in ("1", "3", "5", "7", "9"):
            raise RuntimeError("an odd digit")
        return "", True


class Nudge(OneTurn):
    """Asks once more, in a chat message. A turn ends at a small letter, which a policy of chance soon writes."""

    stops = tuple("abcdefghijklmnopqrstuvwxyz")

    def __init__(self):
        self.turns = 0

    def step(self, action):
        self.turns += 1
        return [{"role": "user", "content": "Look again."}], self.turns > 1
