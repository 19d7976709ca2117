"""Where environments act: processes of their own, each turn under a deadline, so that none can stop a run.

Every turn that is asked for gets exactly one answer, in the order given: a Turn, or a text that says why there is none.
A process that dies or hangs is replaced, and the conversations of others go on in its successor.
"""

from __future__ import annotations

from collections.abc import Sequence

from kray.config.schema import EnvironmentConfig
from kray.environments.registry import path_of
from kray.environments.turns import Turn
from kray.records import Prompt
from kray.rewards.scorer import Outcome, Scorer

ENVIRONMENT = "environment: "  # begins the reason of a failure that is an environment's
_TURNS = "kray.environments.turns"


class EnvironmentWorkers:
    """Processes start when first needed. memory_gib: of one process; 0: no limit."""

    def __init__(self, environment: EnvironmentConfig, memory_gib: float = 4.0, start_timeout_s: float = 60.0):
        self.environment = environment
        # The class as the scorer's default, so that its module is imported before the first turn's deadline runs.
        self._scorer = Scorer(
            path_of(environment.name),
            workers=environment.workers,
            timeout_s=environment.step_timeout_s,
            start_timeout_s=start_timeout_s,
            memory_gib=memory_gib,
        )

    async def begin(self, starts: Sequence[tuple[Prompt, int]]) -> list[Turn | str]:
        """New environments for (prompt, seed). Raises KrayError when no process starts."""
        name, options = self.environment.name, self.environment.options
        items = [(f"{_TURNS}:begin", "", (name, options, prompt, seed)) for prompt, seed in starts]
        return [_turn(outcome) for outcome in await self._scorer.score(items)]

    async def step(self, moves: Sequence[tuple[bytes, str, bool]]) -> list[Turn | str]:
        """What becomes of environments by (state, action, whether it is the policy's last). Raises KrayError as above."""
        items = [(f"{_TURNS}:step", action, (state, last)) for state, action, last in moves]
        return [_turn(outcome) for outcome in await self._scorer.score(items)]

    async def finish(self, states: Sequence[bytes]) -> list[Turn | str]:
        """The ends of conversations that could have gone on. Raises KrayError as above."""
        outcomes = await self._scorer.score([(f"{_TURNS}:finish", "", state) for state in states])
        return [_turn(outcome) for outcome in outcomes]

    def close(self) -> None:
        self._scorer.close()


def _turn(outcome: Outcome) -> Turn | str:
    if outcome.given is None:
        return f"{ENVIRONMENT}{outcome.error or outcome.detail}"
    try:
        return Turn.read(outcome.given)
    except (ValueError, KeyError, TypeError) as error:
        return f"{ENVIRONMENT}its process gave no turn: {type(error).__name__}: {error}"
