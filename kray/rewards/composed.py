"""The scorer of a run with judges, or with several reward functions: it asks each for its part and combines them.

The reward of several functions (reward.functions) is a weighted mean in [0, 1]. A function's value is mapped to u in [0, 1] by
its range, w is its weight:

    reward = (sum of w u over w > 0  +  sum of |w| (1 - u) over w < 0) / sum of |w|

over the functions that apply to the prompt. So a negative weight rewards low values, and up to a positive factor and a constant
this is the weighted sum that other trainers use: rewards of one prompt's responses are in the same order at the same relative
distances. One outcome comes of each response:
- a function that fails makes it a data failure that names the function; a function that exceeds its deadline makes it 0;
- a value outside the range that a function declares (`reward_range`) is a data failure;
- a value outside [0, 1] of a function without any range is a data failure; with reward.functions.NAME.range it counts as the
  nearer end;
- where no function with a weight applies, it is a data failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kray.records import Prompt
from kray.reward_settings import FUNCTIONS, RewardFunction, function_key
from kray.rewards.judge import Judge, JudgeUsage
from kray.rewards.outcome import UNIT, Outcome, position, shown
from kray.rewards.remote import RemoteScorer
from kray.rewards.scorer import Scorer
from kray.rewards.signatures import Sample


class ComposedScorer:
    """Scores responses with a scorer for functions, judges and reward.functions.

    Attributes:
        base: Scores with functions, in processes or by the service.
        judges: Judges by their keys: judge, and those of functions that are judges.
        functions: Name -> function of reward.functions.
        usage: What judges were asked for.
    """

    def __init__(
        self,
        base: Scorer | RemoteScorer,
        judges: Mapping[str, Judge],
        functions: Mapping[str, RewardFunction],
        usage: JudgeUsage,
    ):
        self.base, self.judges, self.functions, self.usage = base, dict(judges), dict(functions), usage

    @property
    def timeouts(self) -> int:
        """Answers that exceeded the deadline of a function."""
        return self.base.timeouts

    @property
    def failures(self) -> int:
        """Data failures of functions and judges."""
        return self.base.failures + self.usage.failures

    @property
    def restarts(self) -> int:
        """Processes that were replaced."""
        return self.base.restarts

    async def score(self, items: Iterable[tuple[str, str, Any]]) -> list[Outcome]:
        """Score answers.

        Args:
            items: (verifier or "", response, answer or Sample) each.

        Returns:
            Their outcomes, in the same order.

        Raises:
            KrayError: No process can be started, a key is refused, or the scorer is closed.
        """
        # (index of the item, name of the function or "", key of what scores it, response, subject)
        asked: list[tuple[int, str, str, str, Any]] = []
        count = 0
        for index, (verifier, response, subject) in enumerate(items):
            count += 1
            names = [*self.functions] if verifier == FUNCTIONS else [""]
            asked += [(index, name, function_key(name) if name else verifier, response, subject) for name in names]
        scored = await self._each([(key, response, subject) for _, _, key, response, subject in asked])
        parts: list[dict[str, Outcome]] = [{} for _ in range(count)]
        for (index, name, *_), outcome in zip(asked, scored, strict=True):
            parts[index][name] = outcome
        return [part[""] if "" in part else combine(self.functions, part) for part in parts]

    async def score_one(self, verifier: str, response: str, answer: Any) -> Outcome:
        """Score one answer; see `score`."""
        return (await self.score([(verifier, response, answer)]))[0]

    def close(self) -> None:
        """Close processes and connections. Can be called twice, and from any thread."""
        self.base.close()
        for judge in self.judges.values():
            judge.close()

    async def _each(self, items: Sequence[tuple[str, str, Any]]) -> list[Outcome]:
        """Score items by the judge or the function behind each one's key, all at the same time."""
        by_scorer: dict[str, list[int]] = {}
        for index, (key, _, _) in enumerate(items):
            by_scorer.setdefault(key if key in self.judges else "", []).append(index)
        work = [
            self.judges[name].score([(items[i][1], _sample(items[i][2])) for i in indices])
            if name
            else self.base.score([items[i] for i in indices])
            for name, indices in by_scorer.items()
        ]
        outcomes: list[Outcome | None] = [None] * len(items)
        tasks = [asyncio.ensure_future(each) for each in work]
        try:
            for indices, found in zip(by_scorer.values(), await asyncio.gather(*tasks), strict=True):
                for index, outcome in zip(indices, found, strict=True):
                    outcomes[index] = outcome
        finally:
            for task in tasks:
                task.cancel()
        return outcomes  # type: ignore[return-value]


def combine(functions: Mapping[str, RewardFunction], outcomes: Mapping[str, Outcome]) -> Outcome:
    """Return the outcome of a response from those of its functions.

    Args:
        functions: Name -> function.
        outcomes: Name -> outcome of each.
    """
    elapsed_s = sum(outcome.elapsed_s for outcome in outcomes.values())
    parts = {name: float(found.reward) for name, found in outcomes.items() if found.reward is not None}
    for name, outcome in outcomes.items():
        if outcome.reward is None and not outcome.skipped:
            return Outcome(None, error=f"reward.functions.{name}: {outcome.error}", elapsed_s=elapsed_s)
    late = {name: outcome.detail for name, outcome in outcomes.items() if outcome.timed_out}
    if late:
        name, detail = next(iter(late.items()))
        return Outcome(0.0, f"{detail} in {name}", timed_out=True, elapsed_s=elapsed_s)
    total = share = 0.0
    for name, value in parts.items():
        weight, ends, declared = functions[name].weight, functions[name].range, outcomes[name].ends
        unit = position(value, *(ends or declared or UNIT))
        if (ends is None and unit is None) or (declared and position(value, *declared) is None):
            hint = f"say which values it gives: reward.functions.{name}.range"
            hint = "the reward_range that it declares" if declared else hint
            text = f"reward.functions.{name}: {value:g} is not in {shown(declared or UNIT)}; {hint}"
            return Outcome(None, error=text, elapsed_s=elapsed_s)
        if unit is None:
            assert ends is not None
            unit = float(value > ends[1])
        total += abs(weight) * (unit if weight > 0 else 1 - unit)
        share += abs(weight)
    if not share:
        return Outcome(None, error="no function of reward.functions with a weight applies to this prompt")
    said = [f"{name} {outcomes[name].reward:.4g}" for name in parts]
    details = [f"{name}: {outcomes[name].detail}" for name in parts if outcomes[name].detail]
    return Outcome(min(1.0, total / share), "; ".join([", ".join(said), *details]), elapsed_s=elapsed_s, parts=parts)


def _sample(subject: Any) -> Sample:
    return subject if isinstance(subject, Sample) else Sample(Prompt("", str(subject), "", "", text=""))
