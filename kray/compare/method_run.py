"""One child's training: the usual loop, which also writes down what the comparison asks for.

visits.jsonl, a line a step, see kray/driver/visits.py. rates.jsonl, a line an evaluation: step, exact success rates of all
test prompts, and before training those of all training prompts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from kray.compare.controlled import ControlledPlanner, NoisyCollector, known_beliefs
from kray.compare.controls import Controls
from kray.compare.exact import ExactRates
from kray.compare.study import RATES, VISITS
from kray.driver.components import OfferedPrompts
from kray.driver.loop import Training
from kray.driver.visits import DIGITS, rounded, visit
from kray.metrics import EVAL_EXACT_ACCURACY, TIMING_S_EXACT
from kray.records import EncodedPrompt
from kray.rollout.collected import CollectedStep


class ComparedTraining(Training):
    """A training that records visits and exact success rates.

    Attributes:
        exact: Computes success rates; None where they are not asked for. Its seconds are recorded apart (timing_s/exact).
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.exact: ExactRates | None = None
        self._controls = Controls()
        # Of the step that is being collected: prompt id -> exact success rate, and the seconds that they took.
        self._rates: dict[str, float] = {}
        self._rates_s = 0.0

    def control(self, controls: Controls) -> None:
        """Apply the controls of the method that are not the planner's."""
        self._controls = controls
        if controls.label_noise:
            self.steps.collector = NoisyCollector(self.steps.collector, controls.label_noise)

    async def before_plan(self, step: int, offered: OfferedPrompts) -> None:
        """Compute the exact success rates of the step's candidates where the plan knows them."""
        self._rates, self._rates_s = {}, 0.0
        if self.exact is not None and self._controls.knows_plan:
            self._rates, self._rates_s = await self._exact_rates(offered.prompts, self.config.rollout.temperature)
            assert isinstance(self.components.planner, ControlledPlanner)
            self.components.planner.rates = self._rates

    async def after_collect(self, step: int, collected: CollectedStep) -> None:
        """Write the step's line of visits.jsonl; give the groups their exact success rates where the baseline knows them."""
        if self.exact is not None:
            if not self._rates:
                # The learner has not yet updated: these are the rates that the step was planned with.
                visited = set(collected.allocation.prompt_ids)
                prompts = [pair for pair in self.components.train if pair.prompt.id in visited]
                self._rates, self._rates_s = await self._exact_rates(prompts, self.config.rollout.temperature)
            collected.plan_metrics[TIMING_S_EXACT] = self._rates_s
        if self._controls.knows_baseline:
            tell_baseline(collected, self._rates)
        if self._controls.mixed_only:
            silence_equal_groups(collected)
        self._append(VISITS, visit(step + 1, collected, self._rates))

    async def after_evaluation(self) -> None:
        """Compute the exact success rates of the test prompts and write a line of rates.jsonl."""
        if self.exact is None:
            return
        test, _ = await self._exact_rates(self.components.test, self.config.evaluate.temperature)
        line: dict[str, Any] = {"step": self.state.step, "test": rounded(test.values())}
        if not self.state.step:
            train, _ = await self._exact_rates(self.components.train, self.config.rollout.temperature)
            line["train"] = {prompt_id: round(p, DIGITS) for prompt_id, p in train.items()}
        accuracy = sum(test.values()) / len(test)
        self.tracker.log_step(self.state.step, {EVAL_EXACT_ACCURACY: accuracy})
        self._append(RATES, line)

    async def _exact_rates(self, prompts: list[EncodedPrompt], temperature: float) -> tuple[dict[str, float], float]:
        """Return prompt id -> exact success rate, and the seconds that it took."""
        assert self.exact is not None
        started = time.monotonic()
        found = await self.exact.of(prompts, temperature)
        ids = [prompt.id for prompt, _ in prompts]
        return dict(zip(ids, found.tolist(), strict=True)), time.monotonic() - started

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self.store.run_folder / name).open("a") as file:
            file.write(json.dumps(line) + "\n")


def tell_baseline(collected: CollectedStep, rates: Mapping[str, float]) -> None:
    """Replace the beliefs that travel with a step's groups by ones that are as good as certain.

    Args:
        collected: The step.
        rates: Prompt id -> exact success rate.
    """
    allocation = collected.allocation
    allocation.beliefs = known_beliefs(np.array([rates[i] for i in allocation.prompt_ids]))
    known = dict(zip(allocation.prompt_ids, allocation.beliefs.tolist(), strict=True))
    for group in collected.groups:
        alpha, beta = known[group.prompt.id]
        group.belief = alpha, beta


def silence_equal_groups(collected: CollectedStep) -> None:
    """Take away the beliefs of groups whose rewards are all equal, so that their advantages are exactly 0."""
    for group in collected.groups:
        if not group.mixed:
            group.belief = 0.0, 0.0
