"""Environments with roles that tests name as pkg.mod:Class."""

from __future__ import annotations

from kray.environments.nim import Nim


class Raises(Nim):
    """Raises at the first move."""

    def step(self, role, action):
        raise RuntimeError("it broke")


class NoReward(Nim):
    """Forgets the second player."""

    def rewards(self):
        return {"first": 1.0}


class Stranger(Nim):
    """Names a role that it does not have."""

    def step(self, role, action):
        return "third", {}, False


class Chat(Nim):
    """Nim in chat messages."""

    def reset(self, prompt, seed):
        first, _ = super().reset(prompt, seed)
        return first, {role: [{"role": "user", "content": f"You are {role}."}] for role in self.roles}

    def step(self, role, action):
        following, seen, done = super().step(role, action)
        return following, {who: [{"role": "user", "content": text}] for who, text in seen.items()}, done


class Edge:
    """The second player wins nine times in ten, whatever is played: moving second is an edge, and no skill."""

    roles = ("first", "second")

    def __init__(self) -> None:
        self.left, self.text = 2, ""

    def reset(self, prompt, seed):
        return "first", {}

    def step(self, role, action):
        self.left -= 1
        self.text += action
        return ("second", {"second": "1>"}, False) if self.left else ("first", {}, True)

    def rewards(self):
        first = 1.0 if sum(map(ord, self.text)) % 10 == 0 else 0.0
        return {"first": first, "second": 1.0 - first}


class ZeroSum(Nim):
    """Gives the winner 1 and the loser -1."""

    reward_range = (-1, 1)

    def rewards(self):
        return {role: 2 * reward - 1 for role, reward in super().rewards().items()}


class OneName(Nim):
    """Has the same role twice."""

    roles = ("first", "first")


class Alone:
    """An environment without roles, as one with a single role, which leaves the reward to nobody."""

    roles = ("policy",)
    stops = (";",)

    def __init__(self, times: int = 2, opening: str = ""):
        from sample_environments import Echo

        self.echo = Echo(times, opening)

    def reset(self, prompt, seed):
        return "policy", {"policy": self.echo.reset(prompt, seed)}

    def step(self, role, action):
        observation, done = self.echo.step(action)
        return "policy", {"policy": observation}, done

    def rewards(self):
        return {"policy": self.echo.reward()}
