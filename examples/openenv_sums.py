"""An OpenEnv server for configs/openenv.yaml: a sum, and a second attempt after a wrong answer, for half of the reward.

It runs in a Python that has openenv, and needs nothing of kray.
"""

from __future__ import annotations

from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

ATTEMPTS = 2


class Answer(Action):
    text: str


class Reply(Observation):
    text: str = ""


class SumsState(State):
    correct: bool = False


class Sums(Environment):
    """The problem and its answer come with the reset, from the prompt."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._problem = self._answer = ""
        self._state = SumsState()

    def reset(self, seed=None, episode_id=None, problem="", answer="", **kwargs):
        self._problem, self._answer, self._state = problem, answer, SumsState(episode_id=episode_id)
        return Reply()

    def step(self, action, timeout_s=None, **kwargs):
        state = self._state
        state.step_count += 1
        state.correct = action.text == self._answer
        done = state.correct or state.step_count == ATTEMPTS
        return Reply(text=self._problem, done=done, reward=state.correct / state.step_count)

    @property
    def state(self):
        return self._state


app = create_fastapi_app(Sums, Answer, Reply, max_concurrent_envs=1024, state_cls=SumsState)
