"""Episodes of environments with roles: who acts next, the turns of opponents, and the end with a reward for every role.

Every episode of an outcome either waits for exactly one new task of the policy, has ended, or has failed with a reason. A turn
of the policy is a rollout task like any other. Opponents that do not learn act while the episode is processed: those of the
environment in its processes, a server over HTTP, a frozen policy on engines of its own.

The plan's item is the prompt, and its label is the reward of the first role that learns: the rollout of an episode is that of
this role, and holds those of the other roles that learn as its partners.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from kray.config.players import Player
from kray.config.prompts_schema import SourceConfig
from kray.environments.endpoint import EndpointPlayer
from kray.environments.role_turns import Move, RoleTurn
from kray.environments.role_workers import RoleWorkers
from kray.environments.workers import ENVIRONMENT
from kray.errors import DataError
from kray.records import EncodedPrompt, RolloutTask, derive_seed
from kray.rollout.conversation import TurnResult
from kray.rollout.outcome import Failure, TaskOutcome
from kray.rollout.views import Encoder, Episode, Opening


class FrozenPolicies(Protocol):
    """Versions of the policy that play and do not learn."""

    async def generate(self, player: Player, task: RolloutTask) -> TaskOutcome:
        """Generate one turn of a player."""


class EpisodeRunner:
    """Starts episodes in the environment of these workers.

    Attributes:
        players: Role -> who plays it, for all roles of the environment in its order.
    """

    def __init__(
        self,
        workers: RoleWorkers,
        encoder: Encoder,
        sources: Mapping[int | str, SourceConfig],
        players: Mapping[str, Player],
        endpoints: Callable[[Player], EndpointPlayer],
        frozen: FrozenPolicies | None = None,
    ):
        """Create a runner; nothing is started.

        Args:
            workers: Processes of the environment.
            encoder: How views become tokens.
            sources: Prompt sources, by the name of their test set where there are several, else by the priority of their
                rollouts.
            players: Role -> who plays it, for all roles of the environment in its order.
            endpoints: Returns the client of a player that is an endpoint.
            frozen: Generates the turns of players that are `frozen`; needed where there are such.
        """
        self.workers, self.encoder, self.sources = workers, encoder, sources
        self.players, self.endpoints, self.frozen = dict(players), endpoints, frozen
        self.max_turns = workers.environment.max_turns

    @property
    def learning(self) -> list[str]:
        """The roles that the policy plays, in the environment's order."""
        return [role for role, player in self.players.items() if player.learns]

    def against(self, players: Mapping[str, Player]) -> EpisodeRunner:
        """Return a runner of the same environment with other players."""
        return EpisodeRunner(self.workers, self.encoder, self.sources, players, self.endpoints, self.frozen)

    async def open(self, prompts: Sequence[EncodedPrompt], seeds: Callable[[str], int], priority: int) -> Episodes:
        """Reset one environment for each prompt; the prompt's episodes start from copies of it.

        Args:
            prompts: Prompts of the collection.
            seeds: Maps a prompt's id to its group's seed.
            priority: Priority of the rollout tasks, which names the source of prompts without a test set.
        """
        starts = [(prompt, derive_seed(seeds(prompt.id), "reset")) for prompt, _ in prompts]
        opened = Episodes(self)
        for pair, turn in zip(prompts, await self.workers.begin_episodes(starts), strict=True):
            opened.add(pair, turn, self.sources[pair.prompt.metadata.get("set", priority)])
        return opened


class Episodes:
    """All episodes of one collection.

    Attributes:
        runner: What they run on.
        prompts: The prompts, each as the role reads it that acts first.
        broken: Prompt id -> why its environment could not be reset.
    """

    def __init__(self, runner: EpisodeRunner):
        self.runner = runner
        self.prompts: list[EncodedPrompt] = []
        self.broken: dict[str, str] = {}
        self._openings: dict[str, Opening] = {}
        # Task id of the turn that is being generated -> its episode, from the second turn on.
        self._continued: dict[int, Episode] = {}
        self._scripted = {role: player.name for role, player in runner.players.items() if player.scripted}

    def close(self) -> None:
        """Drop the episodes that have not ended; their environments are plain data."""
        self._continued.clear()

    def add(self, pair: EncodedPrompt, turn: RoleTurn | str, source: SourceConfig) -> None:
        """Add a prompt whose environment has been reset."""
        prompt, tokens = pair
        try:
            if isinstance(turn, str):
                raise DataError(turn)
            opening = self._openings[prompt.id] = Opening(pair, source, turn)
            if not self.waits(prompt.id):
                tokens = self.runner.encoder.opening(opening, opening.read_by(turn.role))
        except DataError as error:
            self.broken[prompt.id] = f"{ENVIRONMENT}{str(error).removeprefix(ENVIRONMENT)}"
        self.prompts.append(EncodedPrompt(prompt, tokens))

    def waits(self, prompt_id: str) -> bool:
        """Return whether an opponent acts before the policy does, so that the prompt's tasks go to `begin`."""
        return not self.runner.players[self._openings[prompt_id].turn.role].learns

    async def begin(self, task: RolloutTask, new_task_id: Callable[[], int]) -> TurnResult:
        """Begin the episodes of a task that an opponent opens.

        Args:
            task: The task, which no engine gets.
            new_task_id: Returns an unused task id.
        """
        result = TurnResult()
        opened = self._openings[task.prompt_id].turn
        episodes = [
            Episode(task, task.first_index + i, self._openings[task.prompt_id], self._roles)
            for i in range(task.rollouts)
        ]
        await _all(self._follow(episode, opened, result, new_task_id) for episode in episodes)
        return result

    async def process_outcome(self, outcome: TaskOutcome, new_task_id: Callable[[], int]) -> TurnResult:
        """Pass finished turns to the environment and continue or end their episodes.

        Args:
            outcome: A task that ended: the opening turn of several episodes, or a later turn of one.
            new_task_id: Returns an unused task id.
        """
        task, result = outcome.task, TurnResult()
        known = self._continued.pop(task.id, None)
        if outcome.failure:
            result.failures.append(Failure(task.prompt_id, task.rollouts, outcome.failure, outcome.tries))
            return result
        episodes, moves = [], []
        for turn in outcome.rollouts:
            episode = known or self._begin(task, turn.index)
            text = episode.add_turn(turn, self.runner.encoder)
            episodes.append(episode)
            moves.append(self._move(episode, episode.role, text))
        answers = await self.runner.workers.move(moves)
        await _all(
            self._follow(episode, answer, result, new_task_id)
            for episode, answer in zip(episodes, answers, strict=True)
        )
        return result

    async def _follow(
        self, episode: Episode, answer: RoleTurn | str, result: TurnResult, new_task_id: Callable[[], int]
    ) -> None:
        """Let opponents act until the policy is to, the episode has ended, or it has failed."""
        while not isinstance(answer, str):
            episode.take(answer)
            try:
                if answer.ended:
                    result.scored.append(episode.rollout(self.runner.learning, answer, self.runner.encoder))
                    return
                move = await self._act(episode, result, new_task_id)
            except DataError as error:
                answer = f"{ENVIRONMENT}{error}"
                break
            if move is None:
                return
            (answer,) = await self.runner.workers.move([move])
        result.failures.append(Failure(episode.task.prompt_id, 1, answer))

    async def _act(self, episode: Episode, result: TurnResult, new_task_id: Callable[[], int]) -> Move | None:
        """Return the next move; None where a task for it has been made.

        Raises:
            DataError: The role cannot read what it should, or its player gives no turn.
        """
        role = episode.role
        player = self.runner.players[role]
        if player.scripted:
            return self._move(episode, "", "")
        if episode.views[role].turns >= self.runner.max_turns:
            return self._move(episode, "", "", last=True)
        if player.endpoint is not None:
            text = await self.runner.endpoints(player).play(episode.messages(), episode.turn_seed(role))
            episode.add_text(text)
            return self._move(episode, role, text)
        task = episode.next_task(new_task_id(), self.runner.encoder)
        if task is None:
            return self._move(episode, role, "", last=True)
        if not player.frozen:
            self._continued[task.id] = episode
            result.tasks.append(task)
            return None
        assert self.runner.frozen is not None
        outcome = await self.runner.frozen.generate(player, task)
        if outcome.failure:
            raise DataError(f"the turn of {role} by opponent {player}: {outcome.failure}")
        return self._move(episode, role, episode.add_turn(outcome.rollouts[0], self.runner.encoder))

    def _move(self, episode: Episode, role: str, action: str, last: bool = False) -> Move:
        return Move(episode.state, role, action, self._scripted, episode.seed, last)

    def _begin(self, task: RolloutTask, index: int) -> Episode:
        """Return an episode whose opening turn is that of the task."""
        opening = self._openings[task.prompt_id]
        episode = Episode(task, index, opening, self._roles)
        episode.take(opening.turn)
        episode.open_turn()
        return episode

    @property
    def _roles(self) -> list[str]:
        return list(self.runner.players)


async def _all(work: Iterable[Any]) -> None:
    """Wait for all work; when one part raises, the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
