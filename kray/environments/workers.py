"""Worker processes for environments, with a deadline for every turn, so that no environment can stop a run.

Every requested turn gets exactly one result, in the order given: a Turn, or a text with the reason why there is none. A
process that exits or hangs is replaced. The rollouts of other environments continue in its successor; live environments
(live.py) lose the sessions that the process held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kray.config.schema import EnvironmentConfig
from kray.environments.live import is_live
from kray.environments.registry import load_environment, path_of
from kray.environments.session_hosts import SessionHosts
from kray.environments.turns import Turn
from kray.records import Prompt
from kray.rewards.scorer import Outcome, Scorer

# Prefix of the reasons of failures that an environment caused.
ENVIRONMENT = "environment: "
_TURNS = "kray.environments.turns"


class EnvironmentWorkers:
    """Processes that run environments; they start when first needed."""

    def __init__(self, environment: EnvironmentConfig, memory_gib: float = 4.0, start_timeout_s: float = 60.0):
        """Create the workers without starting a process.

        Args:
            environment: The run's environment.
            memory_gib: Memory limit of one process in GiB; 0: none.
            start_timeout_s: Seconds for a process to start and import the environment.

        Raises:
            ValueError: There is no such environment.
        """
        self.environment = environment
        self._hosts: SessionHosts | None = None
        if is_live(load_environment(environment.name)):
            self._hosts = SessionHosts(environment, memory_gib, start_timeout_s)
        # The environment's class is the scorer's default verifier, so that its module is imported before the first deadline.
        self._scorer = Scorer(
            path_of(environment.name),
            workers=environment.workers,
            timeout_s=environment.step_timeout_s,
            start_timeout_s=start_timeout_s,
            memory_gib=memory_gib,
        )

    async def begin(self, starts: Sequence[tuple[Prompt, int]]) -> list[Turn | str]:
        """Create and reset environments.

        Args:
            starts: (prompt, seed) of each.

        Raises:
            KrayError: No process starts.
        """
        if self._hosts is not None:
            return _failures_named(await self._hosts.begin(starts))
        name, options = self.environment.name, self.environment.options
        items = [(f"{_TURNS}:begin", "", (name, options, prompt, seed)) for prompt, seed in starts]
        return [_turn(outcome) for outcome in await self._scorer.score(items)]

    async def step(self, moves: Sequence[tuple[Any, str, bool]]) -> list[Turn | str]:
        """Pass turns of the policy to their environments.

        Args:
            moves: (state of the rollout, text of the turn, whether it is the policy's last turn) of each.

        Raises:
            KrayError: No process starts.
        """
        if self._hosts is not None:
            return _failures_named(await self._hosts.step(moves))
        items = [(f"{_TURNS}:step", action, (state, last)) for state, action, last in moves]
        return [_turn(outcome) for outcome in await self._scorer.score(items)]

    async def finish(self, states: Sequence[Any]) -> list[Turn | str]:
        """End rollouts that their environments would have continued.

        Args:
            states: The states of the rollouts.

        Raises:
            KrayError: No process starts.
        """
        if self._hosts is not None:
            return _failures_named(await self._hosts.finish(states))
        outcomes = await self._scorer.score([(f"{_TURNS}:finish", "", state) for state in states])
        return [_turn(outcome) for outcome in outcomes]

    def release(self, states: Sequence[Any]) -> None:
        """Drop rollouts whose reward is not needed, without waiting.

        Args:
            states: Their states, as `begin` and `step` returned them.
        """
        if self._hosts is not None:
            self._hosts.release(states)

    def close(self) -> None:
        """End the processes."""
        self._scorer.close()
        if self._hosts is not None:
            self._hosts.close()


def _failures_named(turns: Sequence[Turn | str]) -> list[Turn | str]:
    return [f"{ENVIRONMENT}{turn}" if isinstance(turn, str) else turn for turn in turns]


def _turn(outcome: Outcome) -> Turn | str:
    if outcome.given is None:
        return f"{ENVIRONMENT}{outcome.error or outcome.detail}"
    try:
        return Turn.read(outcome.given)
    except (ValueError, KeyError, TypeError) as error:
        return f"{ENVIRONMENT}its process returned no turn: {type(error).__name__}: {error}"
