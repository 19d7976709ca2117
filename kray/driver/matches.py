"""Evaluation of a policy against opponents: it plays each of its roles against each opponent, from every test prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kray.config.players import Player
from kray.driver.interval import with_interval
from kray.metrics import EVAL_ELO, EVAL_WIN_RATE, EVAL_WIN_RATE_SE
from kray.records import EncodedPrompt, RolloutGroup, Sampling, derive_seed
from kray.rollout.collected import CollectedStep
from kray.rollout.collector import EVALUATION, Collector, Draw
from kray.rollout.episodes import EpisodeRunner
from kray.rollout.plans import FixedPlan


@dataclass(frozen=True, slots=True)
class Match:
    """How a policy did against one opponent, over all its roles alike.

    Attributes:
        opponent: Its name in environment.evaluate_against.
        games: Episodes.
        win_rate: Mean reward of the policy; a draw counts half.
        win_rate_se: Its standard error over prompts.
        by_role: Role of the policy -> its win rate in it.
    """

    opponent: str
    games: int
    win_rate: float
    win_rate_se: float
    by_role: dict[str, float] = field(default_factory=dict)

    @property
    def elo(self) -> float:
        """Rating above the opponent's by Elo's formula, finite also where every game was won."""
        score = (self.win_rate * self.games + 0.5) / (self.games + 1)
        return 400 * math.log10(score / (1 - score))

    def metrics(self) -> dict[str, float]:
        """Return the metrics under their names in MLflow."""
        rates = {EVAL_WIN_RATE.of(f"{self.opponent}_{role}"): rate for role, rate in self.by_role.items()}
        whole = {EVAL_WIN_RATE.of(self.opponent): self.win_rate, EVAL_WIN_RATE_SE.of(self.opponent): self.win_rate_se}
        return {str(name): value for name, value in (whole | rates | {EVAL_ELO.of(self.opponent): self.elo}).items()}

    def __str__(self) -> str:
        if not self.games:
            return f"no episode against {self.opponent} could be scored"
        rate = with_interval(self.win_rate, self.win_rate_se)
        return f"{rate} against {self.opponent} (Elo {self.elo:+.0f})"


async def play(
    collector: Collector,
    opponents: Mapping[str, Player],
    prompts: Sequence[EncodedPrompt],
    samples: int,
    sampling: Sampling,
    version: int,
    seed: int,
) -> tuple[list[Match], list[CollectedStep]]:
    """Play against opponents.

    Args:
        collector: Of episodes; the policy plays the roles that learn in training.
        opponents: Name -> who plays all other roles.
        prompts: The starting positions.
        samples: Episodes of each position, role and opponent.
        sampling: How the policy's turns are drawn.
        version: The policy version that engines serve.
        seed: The same seed gives the same episodes of the same policies.

    Returns:
        A match for each opponent, and the episodes with it: the groups of all roles of a prompt are one group.
    """
    assert isinstance(collector.host, EpisodeRunner)
    roles, seats = list(collector.host.players), collector.host.learning
    plan_ids = [prompt.id for prompt, _ in prompts]
    matches, played = [], []
    for name, opponent in opponents.items():
        found = {}
        for seat in seats:
            players = {role: Player() if role == seat else opponent for role in roles}
            draw = Draw(_seeds(seed, name, seat), sampling, version)
            found[seat] = await collector.against(players).collect(
                FixedPlan(plan_ids, samples), prompts, draw, EVALUATION
            )
        matches.append(_match(name, found))
        played.append(_joined(list(found.values())))
    return matches, played


def _seeds(seed: int, opponent: str, seat: str) -> Callable[[str], int]:
    return lambda prompt_id: derive_seed(seed, "evaluate", opponent, seat, prompt_id)


def _joined(steps: Sequence[CollectedStep]) -> CollectedStep:
    """Return one step with a single group for each prompt."""
    groups: dict[str, RolloutGroup] = {}
    for group in (group for step in steps for group in step.groups):
        known = groups.get(group.prompt.id)
        groups[group.prompt.id] = group if known is None else replace(known, rollouts=known.rollouts + group.rollouts)
    failures = [failure for step in steps for failure in step.failures]
    return replace(steps[0], groups=list(groups.values()), failures=failures)


def _match(opponent: str, found: Mapping[str, CollectedStep]) -> Match:
    means = np.array([group.rewards.mean() for group in _joined(list(found.values())).groups])
    rewards = {seat: np.concatenate([np.zeros(0), *(g.rewards for g in step.groups)]) for seat, step in found.items()}
    nan = float("nan")
    return Match(
        opponent,
        sum(len(each) for each in rewards.values()),
        float(means.mean()) if len(means) else nan,
        float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else nan,
        {seat: float(each.mean()) if len(each) else nan for seat, each in rewards.items()} if len(found) > 1 else {},
    )
