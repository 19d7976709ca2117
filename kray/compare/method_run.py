"""One child's training: the usual loop, which also writes down what the comparison asks for.

visits.jsonl, a line a step: ids, budgets, weights, successes, trials, tokens of the prompts that were visited, and their
exact success rates p before the step. rates.jsonl, a line an evaluation: step, exact success rates of all test prompts,
and before training those of all training prompts.
"""

from __future__ import annotations

import json
import time
from typing import Any

from kray.compare.exact import ExactRates, OraclePlanner
from kray.compare.study import RATES, VISITS
from kray.driver.loop import Training
from kray.driver.recorder import Carried
from kray.metrics import EVAL_EXACT_ACCURACY, TIMING_S_EXACT
from kray.records import EncodedPrompt

DIGITS = 6


class ComparedTraining(Training):
    """exact: None where success rates are not computed. What is computed here is timed apart (timing_s/exact)."""

    exact: ExactRates | None = None

    async def collect(self, step: int) -> Carried:
        rates: dict[str, float] = {}
        exact_s = 0.0
        if self.exact is not None:
            chosen, _ = self.components.choose(step)
            rates, exact_s = await self._rates(chosen, self.config.rollout.temperature)
            if isinstance(self.planner, OraclePlanner):
                self.planner.rates = rates
        carried = await super().collect(step)
        if self.exact is not None:
            carried.plan_metrics[TIMING_S_EXACT] = exact_s
        self._append(VISITS, visit(step + 1, carried, rates))
        return carried

    async def evaluate(self, when: str = "") -> None:
        await super().evaluate(when)
        if self.exact is None:
            return
        temperature = self.config.evaluate.temperature
        test, _ = await self._rates(self.components.test, temperature)
        line: dict[str, Any] = {"step": self.state.step, "test": _rounded(test.values())}
        if not self.state.step:
            train, _ = await self._rates(self.components.train, self.config.rollout.temperature)
            line["train"] = {prompt_id: round(p, DIGITS) for prompt_id, p in train.items()}
        accuracy = sum(test.values()) / len(test)
        self.tracker.log_step(self.state.step, {EVAL_EXACT_ACCURACY: accuracy})
        self._append(RATES, line)

    async def _rates(self, prompts: list[EncodedPrompt], temperature: float) -> tuple[dict[str, float], float]:
        """(prompt id -> exact success rate, seconds)."""
        assert self.exact is not None
        started = time.monotonic()
        found = await self.exact.of(prompts, temperature)
        ids = [prompt.id for prompt, _ in prompts]
        return dict(zip(ids, found.tolist(), strict=True)), time.monotonic() - started

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self.store.run_folder / name).open("a") as file:
            file.write(json.dumps(line) + "\n")


def visit(number: int, carried: Carried, rates: dict[str, float]) -> dict[str, Any]:
    """Step `number`, counted from 1, as a line of visits.jsonl."""
    allocation = carried.allocation
    successes, trials = carried.labels()
    tokens = {group.prompt.id: group.tokens for group in carried.collected.groups}
    line: dict[str, Any] = {
        "step": number,
        "ids": list(allocation.prompt_ids),
        "budgets": allocation.budgets.tolist(),
        "weights": [round(float(weight), 3) for weight in allocation.weights],
        "successes": successes.tolist(),
        "trials": trials.tolist(),
        "tokens": [tokens.get(i, 0) for i in allocation.prompt_ids],
    }
    if rates:
        line["p"] = _rounded(rates[i] for i in allocation.prompt_ids)
    return line


def _rounded(values: Any) -> list[float]:
    return [round(float(value), DIGITS) for value in values]
