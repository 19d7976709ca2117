"""One child's training: the usual loop, which also writes down what the comparison asks for.

visits.jsonl, a line a step, see kray/driver/visits.py. rates.jsonl, a line an evaluation: step, exact success rates of all
test prompts, and before training those of all training prompts.
"""

from __future__ import annotations

import json
import time
from typing import Any

from kray.compare.exact import ExactRates, OraclePlanner
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
        # Of the step that is being collected: prompt id -> exact success rate, and the seconds that they took.
        self._rates: dict[str, float] = {}
        self._rates_s = 0.0

    async def before_plan(self, step: int, offered: OfferedPrompts) -> None:
        """Compute the exact success rates of the step's prompts, which the oracle plans with."""
        if self.exact is not None:
            temperature = self.config.rollout.temperature
            self._rates, self._rates_s = await self._exact_rates(offered.prompts, temperature)
            if isinstance(self.components.planner, OraclePlanner):
                self.components.planner.rates = self._rates

    async def after_collect(self, step: int, collected: CollectedStep) -> None:
        """Write the step's line of visits.jsonl."""
        if self.exact is not None:
            collected.plan_metrics[TIMING_S_EXACT] = self._rates_s
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
