"""Tells when rewards say nothing: every reward of many steps is the same. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kray.config import KrayConfig
from kray.records import Rollout
from kray.rollout.collected import CollectedStep

# Steps in a row whose rewards are all one number, and the fewest rewards in them, before anything is said: a few rollouts that
# all fail are chance, and a policy begins to solve hard prompts within some steps or not at all.
STEPS, LEAST_ROLLOUTS = 10, 100
# Characters of a verifier's detail that are quoted.
DETAIL_CHARACTERS = 80


class FlatRewards:
    """Watches the rewards of a training's steps and says once where they never differ."""

    def __init__(self, config: KrayConfig):
        self.config = config
        self._value: float | None = None
        self._steps = self._rollouts = 0
        self._said = False

    def step(self, collected: CollectedStep) -> str:
        """Take in a step.

        Args:
            collected: The step.

        Returns:
            A sentence for people, once, when every reward of STEPS steps was the same; else "".
        """
        rollouts = [rollout for group in (*collected.groups, *collected.others) for rollout in group.rollouts]
        rewards = {rollout.reward for rollout in rollouts}
        if self._said or not rewards:
            return ""
        (value, *others) = rewards
        if others:
            self._value, self._steps, self._rollouts = None, 0, 0
            return ""
        if value != self._value:
            self._value, self._steps, self._rollouts = value, 0, 0
        self._steps, self._rollouts = self._steps + 1, self._rollouts + len(rollouts)
        if self._steps < STEPS or self._rollouts < LEAST_ROLLOUTS:
            return ""
        self._said = True
        return self._sentence(rollouts, collected.failed)

    def _sentence(self, rollouts: Sequence[Rollout], failed: int) -> str:
        config, value = self.config, self._value or 0.0
        judge = f"environment.name {config.environment.name}" if config.environment.name else "reward.verifier "
        judge += "" if config.environment.name else config.reward.verifier
        said, times = Counter(rollout.reward_detail for rollout in rollouts).most_common(1)[0]
        quoted = f', which says of {times / len(rollouts):.0%} "{said[:DETAIL_CHARACTERS]}"' if said else ""
        cut = sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts)
        causes = [f"what gives the rewards ({judge}{quoted})"]
        if value > 0:
            causes.append("whether the prompts are too easy")
        else:
            causes.append("whether the prompts ask for the form of answer that it looks for (template, system)")
            causes.append("whether they are too hard for the policy")
        if cut:
            causes.append(
                f"rollout.max_response_tokens {config.rollout.max_response_tokens}, which cut off {cut:.0%} of responses"
            )
        if failed:
            causes.append(f"the data failures, {failed} in this step")
        return (
            f"all {self._rollouts:,} rewards of the last {self._steps} steps were {value:g}: there is nothing to learn from. "
            f"See some responses in samples/, and look at {'; '.join(causes)}"
        )
