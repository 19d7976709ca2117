"""One training step: plan its rollouts, collect them, learn from them.

The planner, the response lengths and the quarantine change when a step is collected; the learner and the engines change
when it is learned from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kray.config import KrayConfig
from kray.driver.components import Components, OfferedPrompts, sampling
from kray.driver.state import RunState
from kray.driver.workers import Workers
from kray.errors import KrayError
from kray.metrics import POOL_PROBE_GAP
from kray.planner.admitting import Candidates, admits_at_once
from kray.planner.metrics import status
from kray.planner.role_beliefs import RoleBeliefs
from kray.planner.step_plan import StepPlan
from kray.prompts.quarantine import Quarantine
from kray.records import derive_seed
from kray.rollout.collected import CollectedStep, check_failures
from kray.rollout.collector import Draw
from kray.rollout.staleness import fresh
from kray.text import one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Update:
    """What an update gave.

    Attributes:
        metrics: Of the learner, of the staleness of its groups and of the weight probe.
        times: Seconds: wait for the groups, update, sync, step (from the moment the step was waited for), and idle, the
            time in which an engine did not generate, mean over engines.
    """

    metrics: dict[str, float]
    times: dict[str, float]


class StepRunner:
    """Collects steps and learns from them.

    Attributes:
        collector: Carries out plans; its `lengths` are those of the state.
        quarantine: Prompts that are left out.
        roles: Beliefs about the roles that learn beside the first one.
    """

    def __init__(self, config: KrayConfig, components: Components, state: RunState, workers: Workers, base: int):
        """Take over the state.

        Args:
            config: The run's configuration.
            components: Prompts and planner.
            state: What a checkpoint held, or a new one.
            workers: Learner, engines and scorer.
            base: The policy version at step 0, as engines count versions.
        """
        self.config, self.components, self.workers, self.base = config, components, workers, base
        self.planner = components.planner
        self.collector = workers.collector(components)
        self.collector.lengths = dict(state.lengths)
        self.quarantine = Quarantine(config.prompts.quarantine_after)
        self.quarantine.load_dict(state.quarantine)
        self.roles = RoleBeliefs(config.plan)
        self.roles.load_dict(state.roles)
        self._candidates = self._all_candidates() if admits_at_once(config.plan) else None
        # Of the training prompts, which are in quarantine, as of so many of them.
        self._left_out, self._left_out_prompts = np.zeros(len(components.train), dtype=bool), 0

    async def collect(self, step: int, offered: OfferedPrompts, policy_step: int) -> CollectedStep:
        """Plan a step, generate and score its rollouts, and update beliefs with the labels.

        Args:
            step: Completed steps before this one in the order of training.
            offered: The step's prompts.
            policy_step: Steps of the policy that engines serve.

        Raises:
            KrayError: Too many rollouts failed, or every prompt is in quarantine. The planner is then as if the step had
                never been planned.
        """
        kept = self._without_quarantined(offered)
        started = time.monotonic()
        plan = self._plan(step, offered.indices[kept], None if offered.due is None else offered.due[kept])
        plan_s = time.monotonic() - started
        for line in self.planner.adaptation.news() if self.planner.adaptation else []:
            logger.info(f"step {step + 1}: {line}")
        planned = offered.indices[kept][plan.positions]
        chosen = [self.components.train[i] for i in planned.tolist()]
        ids = [prompt.id for prompt, _ in chosen]
        previous = dict(zip(ids, status(*self.planner.beliefs.last_visit(ids)).tolist(), strict=True))

        def seeds(prompt_id: str) -> int:
            return derive_seed(self.config.run.seed, step, prompt_id)

        try:
            draw = Draw(seeds, sampling(self.config, self.components), self.base + policy_step)
            collected = await self.collector.collect(plan, chosen, draw)
            ordered = int(collected.allocation.budgets.sum()) + collected.failed
            check_failures(collected.failures, ordered, self.config.run.max_failed_share)
        except BaseException:
            self.planner.withdraw()
            raise
        self._believe_roles(collected)
        self.collector.remember(collected)
        self._record_visits(step, dict(zip(ids, planned.tolist(), strict=True)), offered.indices[~kept], collected)
        admission, adaptation = self.components.admission, self.planner.adaptation
        waiting = admission.metrics() if admission else {}
        limits = adaptation.metrics() if adaptation else {}
        return replace(
            collected,
            plan_s=plan_s,
            previous_status=np.array([previous[i] for i in collected.allocation.prompt_ids], dtype=np.int64),
            plan_metrics=plan.metrics() | limits | waiting | self.quarantine.metrics(),
        )

    async def learn(self, collected: CollectedStep, version: int, started: float) -> Update:
        """Update the policy with a collected step and have every engine prove the new weights; then refresh opponents.

        Args:
            collected: The step.
            version: The policy version that is updated.
            started: When the step began, in monotonic seconds.
        """
        groups, staleness = fresh([*collected.groups, *collected.others], version, self.config.async_.max_staleness)
        wait_s = time.monotonic() - started
        seed = derive_seed(self.config.run.seed, version - self.base, "update")
        before = self.workers.pool.published
        update, update_s = await timed(self.workers.learners.update(groups, seed))
        gap, sync_s = await timed(self.workers.serve(version + 1))
        _, refresh_s = await timed(self.workers.opponents.refresh(version - self.base, before))
        step_s = time.monotonic() - started
        times = {"wait": wait_s, "update": update_s, "sync": sync_s + refresh_s, "step": step_s}
        times["idle"] = step_s * (1 - self.workers.pool.busy_share())
        probe = {} if np.isnan(gap) else {POOL_PROBE_GAP: gap}
        return Update(update | staleness | probe, times)

    def to_dict(self) -> dict[str, Any]:
        """Return what labels and response lengths have taught, under the names of RunState."""
        admission = self.components.admission
        learned = {"planner": self.planner.to_dict(), "lengths": dict(self.collector.lengths)}
        learned["quarantine"], learned["roles"] = self.quarantine.to_dict(), self.roles.to_dict()
        return learned | ({"waiting": admission.to_dict()} if admission else {})

    def _believe_roles(self, collected: CollectedStep) -> None:
        """Set the beliefs of the groups of further roles, and update them by the rewards."""
        labels = self.components.labels
        for role in dict.fromkeys(group.role for group in collected.others):
            groups = [group for group in collected.others if group.role == role]
            ids = [group.prompt.id for group in groups]
            known = [labels[prompt_id] for prompt_id in ids] if labels else None
            found = self.roles.visit(role, ids, [group.rewards for group in groups], known)
            for group, (alpha, beta) in zip(groups, found.tolist(), strict=True):
                group.belief = (alpha, beta)

    def _all_candidates(self) -> Candidates:
        """Return all training prompts, for a planner that chooses among them at once."""
        labels, features = self.components.labels, self.components.features
        ids = [prompt.id for prompt, _ in self.components.train]
        return Candidates(
            ids,
            labels=[labels[i] for i in ids] if labels else None,
            features=np.array([features[i] for i in ids]) if features else None,
        )

    def _without_quarantined(self, offered: OfferedPrompts) -> np.ndarray:
        """Return which of the prompts that are offered are not in quarantine, (M,) bool."""
        if len(self.quarantine.left_out) != self._left_out_prompts:
            self._left_out_prompts = len(self.quarantine.left_out)
            self._left_out = np.array([prompt.id in self.quarantine for prompt, _ in self.components.train])
        kept: np.ndarray = ~self._left_out[offered.indices]
        if not kept.any():
            raise KrayError(f"all {len(kept)} prompts of a step are in quarantine (prompts.quarantine_after)")
        return kept

    def _plan(self, step: int, indices: np.ndarray, due: np.ndarray | None) -> StepPlan:
        """Begin the plan of a step that may visit the training prompts `indices` (M,), of which those that are `due` must."""
        if self._candidates is not None:
            offer = self._candidates.offer(indices)
            cost = self.collector.expected_tokens(offer) if self.config.plan.unit == "tokens" else None
            return self.planner.begin(offer, self._budget(step, len(offer), cost, due), cost=cost, due=due)
        labels, features = self.components.labels, self.components.features
        ids = [self.components.train[i].prompt.id for i in indices.tolist()]
        cost = self.collector.expected_tokens(ids)
        return self.planner.begin(
            ids,
            self._budget(step, len(ids), cost, due),
            cost=cost,
            due=due,
            labels=[labels[i] for i in ids] if labels else None,
            features=np.array([features[i] for i in ids]) if features else None,
        )

    def _budget(self, step: int, prompts: int, cost: list[float] | None, due: np.ndarray | None) -> float | None:
        """Return the step's budget where it is not the usual one, in rollouts or tokens (plan.unit).

        A budget in rollouts is lowered where the prompts that are not in quarantine may take no more (plan.upper); one in
        tokens is raised where responses are so long that it does not pay for the first rollouts (plan.lower).

        prompts: that the step may visit, M.
        cost: (M,) expected tokens of a rollout of each; needed where the budget counts tokens.
        due: (M,), those that it must visit.
        """
        plan = self.config.plan
        if plan.unit != "tokens":
            most = plan.upper * prompts
            return most if self.quarantine.left_out and most < plan.budget else None
        least = self.planner.least(prompts, cost, due)
        if least <= plan.token_budget:
            return None
        logger.info(
            f"step {step}: plan.token_budget {plan.token_budget} is raised to {least:.0f}, the expected tokens of the "
            f"first rollouts (plan.lower {plan.lower}) of its prompts"
        )
        return least

    def _record_visits(
        self, step: int, planned: dict[str, int], left_out: np.ndarray, collected: CollectedStep
    ) -> None:
        """Mark prompts as visited, and put those that fail again and again into quarantine.

        planned: index of each prompt that the plan could visit, by id.
        left_out: (K,) indices of the prompts that were offered and are in quarantine.
        """
        if self.components.admission is not None:
            visited = {*collected.allocation.prompt_ids, *(failure.prompt_id for failure in collected.failures)}
            # Prompts in quarantine have had their turn.
            indices = [planned[prompt_id] for prompt_id in visited] + left_out.tolist()
            self.components.admission.visited(step, indices)
        for prompt_id in self.quarantine.visited(*collected.results()):
            why = self.quarantine.left_out[prompt_id]
            logger.warning(f"prompt {one_line(prompt_id)} is left out from now on: {why}")


async def timed(work: Awaitable[Any]) -> tuple[Any, float]:
    """Return the result of the work and the seconds that it took."""
    started = time.monotonic()
    return await work, time.monotonic() - started
