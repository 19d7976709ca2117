"""Environments that tests name as pkg.mod:Class."""

from __future__ import annotations

import asyncio
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


class Ranged(OneTurn):
    """Gives the number that the turn is, among those from -2 to 2."""

    reward_range = (-2, 2)

    def step(self, action):
        self.given = float(action)
        return "", True

    def reward(self):
        return self.given


class WronglyRanged(Ranged):
    reward_range = (2, -2)


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


class LiveEcho:
    """A live environment: repeats each turn; the reward is the share of `times` turns. Turns may ask it to fail."""

    stops = (";",)

    def __init__(self, times: int = 2, opening: str = "", static: bool = False, log: str = ""):
        self.times, self.text, self.static, self.log = times, opening, static, log
        self.resets = 0

    def check(self):
        if self.times > 99:
            raise ValueError("times must be below 100")

    async def start(self):
        if self.text == "never":
            raise RuntimeError("it cannot be started")
        self.note("start")

    async def ready(self, prompt):
        pass

    def opening(self, prompt):
        return self.text if self.static else None

    def session(self, prompt, seed):
        return LiveEchoSession(self, prompt, seed)

    async def close(self):
        self.note("stop")

    def note(self, what):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{what} {os.getpid()}\n")


class LiveEchoSession:
    def __init__(self, environment, prompt, seed):
        self.environment, self.prompt, self.seed, self.seen = environment, prompt, seed, []

    async def reset(self):
        self.environment.note("reset")
        if self.prompt.text == "broken":
            raise RuntimeError("it does not start")
        self.environment.resets += 1
        return self.environment.text.format(seed=self.seed, reset=self.environment.resets)

    async def step(self, action):
        if action == "hang":
            await asyncio.sleep(60)
        if action == "block":
            time.sleep(60)
        if action == "die":
            os._exit(3)
        if action == "raise":
            raise RuntimeError("it broke")
        self.seen.append(action)
        return {"number": 3}.get(action, f"<{action}>"), len(self.seen) > self.environment.times

    async def reward(self):
        return 2.0 if "worth2" in self.seen else min(1.0, len(self.seen) / (self.environment.times + 1))

    async def close(self):
        self.environment.note("close")
