"""A real OpenEnv server: guess a digit. Started by the tests with a Python that has openenv, see tests/openenv_python.py."""

from __future__ import annotations

import asyncio
import os
import random
import time

from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Guess(Action):
    guess: int


class Hint(Observation):
    hint: str


class GuessState(State):
    score: float = 0.0


class GuessTheDigit(Environment):
    """The reward of a right guess is 1; 13 and what lies above make the server fail in some way."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = GuessState()
        self.target = 0

    def reset(self, seed=None, episode_id=None, digits=10, target=None, changing=False, **kwargs):
        self.target = random.Random(seed).randrange(digits) if target is None else target
        self._state = GuessState(episode_id=episode_id)
        return Hint(hint=f"{time.monotonic_ns()}" if changing else f"0-{digits - 1}?")

    def step(self, action, timeout_s=None, **kwargs):
        self._state.step_count += 1
        if action.guess == 13:
            os._exit(13)
        if action.guess == 14:
            time.sleep(60)
        if action.guess == 15:
            raise RuntimeError("the guess is unlucky")
        if action.guess == 16:
            return Hint(hint="", done=True, reward=7.0)
        right = action.guess == self.target
        self._state.score += right
        hint = "yes" if right else "+" if action.guess < self.target else "-"
        return Hint(hint=hint, done=right, reward=float(right))

    @property
    def state(self):
        return self._state


class Blocking(GuessTheDigit):
    """Blocks the server's event loop when 17 is guessed."""

    async def step_async(self, action, timeout_s=None, **kwargs):
        if action.guess == 17:
            time.sleep(600)
        await asyncio.sleep(0)
        return self.step(action)


app = create_fastapi_app(GuessTheDigit, Guess, Hint, max_concurrent_envs=256, state_cls=GuessState)
narrow = create_fastapi_app(GuessTheDigit, Guess, Hint, max_concurrent_envs=2)
blocking = create_fastapi_app(Blocking, Guess, Hint, max_concurrent_envs=16)
