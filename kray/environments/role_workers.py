"""Worker processes for environments with roles; see kray/environments/workers.py."""

from __future__ import annotations

from collections.abc import Sequence

from kray.environments.role_turns import Move, RoleTurn
from kray.environments.workers import ENVIRONMENT, EnvironmentWorkers
from kray.records import Prompt
from kray.rewards.scorer import Outcome

_TURNS = "kray.environments.role_turns"


class RoleWorkers(EnvironmentWorkers):
    """Processes that run environments with roles; `step` and `finish` of those without are not used."""

    async def begin_episodes(self, starts: Sequence[tuple[Prompt, int]]) -> list[RoleTurn | str]:
        """Create and reset environments.

        Args:
            starts: (prompt, seed) of each.

        Raises:
            KrayError: No process starts.
        """
        name, options = self.environment.name, self.environment.options
        items = [(f"{_TURNS}:begin", "", (name, options, prompt, seed)) for prompt, seed in starts]
        return [_turn(outcome) for outcome in await self._scorer.score(items)]

    async def move(self, moves: Sequence[Move]) -> list[RoleTurn | str]:
        """Take turns in environments.

        Raises:
            KrayError: No process starts.
        """
        return [_turn(outcome) for outcome in await self._scorer.score([(f"{_TURNS}:step", "", m) for m in moves])]


def _turn(outcome: Outcome) -> RoleTurn | str:
    if outcome.given is None:
        return f"{ENVIRONMENT}{outcome.error or outcome.detail}"
    try:
        return RoleTurn.read(outcome.given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{ENVIRONMENT}its process returned no turn: {type(error).__name__}: {error}"
