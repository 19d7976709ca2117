"""One simulated run: a population of prompts, a planner, rollouts that arrive in time, and a policy updated as by GRPO.

The policy is one logit z_i per prompt, p_i = sigmoid(z_i). A prompt whose group had S successes in N rollouts and weight w_i in
the loss has the expected gradient g_i = (w_i / N) sqrt(S (N - S)) along its own logit (grad p / (p q) is the gradient of the
logit), and each of its rollouts adds noise in directions that improve no prompt: variance noise^2 w_i^2 / N for a mixed group,
whose squared advantages sum to N. The update has a bounded length, as under gradient clipping and Adam:

    dz = rate * sqrt(prompts a step) * g / sqrt(sum g^2 + noise^2 sum_mixed w^2 / N)    and all z gain `transfer` * mean dz

So small mixed groups improve the policy less than large ones (the signal grows like N, the noise like sqrt N): learning follows
the realised gradient, not the number of mixed groups. Between steps the policy drifts: z += N(0, drift^2) for every prompt.
Prompts with p = 0 never change. The true rates are used for outcomes and for measuring, never for planning, except by mode
`oracle`.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kray.metrics import PROMPTS_LONGEST_WAIT
from kray.planner import KnapsackPlanner, PointValue, StepPlan, solve
from kray.planner.beliefs import Beliefs
from kray.planner.limits import most_due
from kray.prompts.admission import Admission
from kray.prompts.sampler import PromptSampler
from kray.simulate.populations import Population

# Modes for which the order of arrivals matters.
FEEDBACK = ("online", "rounds", "pilot_commit", "dynamic_sampling")


@dataclass(frozen=True)
class World:
    """Settings of a simulation.

    Attributes:
        population: draws the true success rates.
        prompts: in the population.
        per_step: prompts of a step.
        rollouts: mean number per prompt of a step.
        steps: whose budgets are spent.
        in_flight: share of a step's rollouts that are generated at a time.
        rate: of learning, in logits a step (root mean square) without noise.
        noise: of a rollout's gradient, in units of its signal; 1 gives differences as in small real runs.
        transfer: share of the mean update that every prompt gets.
        drift: standard deviation of each logit's change, a step.
        latency_sigma: of the logarithm of a rollout's duration.
        unit: rollouts or tokens, whichever is equal for all plans.
        discount: of the beliefs.
    """

    population: Population
    prompts: int = 1024
    per_step: int = 128
    rollouts: int = 8
    steps: int = 32
    in_flight: float = 0.25
    rate: float = 0.3
    noise: float = 1.0
    transfer: float = 0.02
    drift: float = 0.05
    latency_sigma: float = 0.6
    unit: str = "rollouts"
    discount: float = 0.5

    @property
    def budget(self) -> int:
        """Rollouts of one step."""
        return self.per_step * self.rollouts


@dataclass
class Tally:
    """Sums over the steps of one run, and figures of each step."""

    steps: int = 0
    rollouts: float = 0.0
    tokens: float = 0.0
    planner_s: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)


def simulate(world: World, seed: int, plan: dict[str, Any]) -> dict[str, float]:
    """Run one plan on one seed.

    Every plan on the same seed gets the same prompts in the same order. The run ends when the rollouts (or tokens) of `steps`
    whole budgets are spent, so modes with larger steps get fewer of them. The first epoch, in which nothing is known, is left
    out of the figures of a step.

    Args:
        world: what is simulated.
        seed: of the population and of all that is drawn.
        plan: keys of PlanConfig. Besides, mode may be `oracle`; `wide` multiplies the prompts, not the rollouts, of a step;
            `most` multiplies the rollouts that a step may spend; target_groups -1 means as many as the step has prompts.

    Returns:
        Figure (FIGURES in kray/simulate/study.py, and some more) -> number.
    """
    rng = np.random.default_rng([seed, 1])
    p = world.population(world.prompts, np.random.default_rng([seed, 0]))
    lengths = _lengths(p, np.random.default_rng([seed, 2]))
    with np.errstate(divide="ignore"):
        z = np.log(p) - np.log1p(-p)
    plan = dict(plan)
    oracle, wide = plan.get("mode") == "oracle", plan.pop("wide", 1)
    planner = _planner(world, plan, float(lengths.mean()))
    offered = round(planner.settings.candidates * world.per_step * wide) or world.prompts
    stream = PromptSampler([str(i) for i in range(world.prompts)], 1, seed)
    admission = Admission(stream, min(offered, world.prompts), 8, most_due(planner.settings))
    # running mean of each prompt's response tokens
    cost = np.full(world.prompts, lengths.mean())
    tally, before = Tally(), float(np.mean(p))
    goal = world.steps * (world.budget if world.unit == "rollouts" else world.budget * lengths.mean())
    while (tally.rollouts if world.unit == "rollouts" else tally.tokens) < goal - 0.5 * world.budget:
        indices, due = admission.offer(tally.steps)
        rows = np.array(indices)
        p = 1 / (1 + np.exp(-z))
        if oracle:
            budgets, passed, weights, seconds = _oracle_step(world, p[rows], lengths[rows], rng)
        else:
            started = time.perf_counter()
            step = planner.begin([str(i) for i in indices], cost=cost[rows], due=due)
            clock = time.perf_counter() - started
            limit = max(1, int(world.in_flight * world.budget))
            if planner.mode in FEEDBACK:
                seconds = clock + _arrivals(step, dict(zip(indices, p[rows], strict=True)), limit, world, rng)
            else:
                seconds = clock + _at_once(step, p, rng)
            allocation = step.allocation()
            rows, budgets, weights = rows[step.positions], allocation.budgets, allocation.weights
            passed = np.array([s for s, _ in step.labels()])
        used = _tokens(budgets, lengths[rows], rng)
        seen = budgets > 0
        cost[rows[seen]] = (cost[rows[seen]] + used[seen] / budgets[seen]) / 2
        tally.rows.append(_measure(p[rows], budgets, passed) | {"step": tally.steps})
        _learn(z, rows, budgets, passed, weights, world, rng)
        admission.visited(tally.steps, rows[seen].tolist())
        tally.steps += 1
        tally.rollouts += float(budgets.sum())
        tally.tokens += float(used.sum())
        tally.planner_s += seconds
    return _summary(world, tally, admission) | {"learned": float((1 / (1 + np.exp(-z))).mean()) - before}


def _planner(world: World, plan: dict[str, Any], mean_tokens: float) -> KnapsackPlanner:
    if plan.get("mode") == "oracle":
        plan["mode"] = "static"
    if plan["mode"] == "dynamic_sampling":
        plan = {"candidates": 3.0} | plan
    unit = world.unit if plan["mode"] != "dynamic_sampling" else "rollouts"
    sizes: dict[str, Any] = {"budget": world.budget, "unit": unit, "token_budget": int(world.budget * mean_tokens)}
    most = plan.pop("most", 1)
    plan = sizes | plan
    if plan.get("target_groups", 0) < 0:
        plan["target_groups"] = world.per_step
    plan["budget"] *= most
    plan["token_budget"] *= most
    return KnapsackPlanner(beliefs=Beliefs(world.discount), **plan)


def _lengths(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the mean response tokens of each prompt: hard ones are up to twice as long, and prompts differ."""
    return 200 * (2 - p) * rng.lognormal(0, 0.3, len(p))


def _tokens(budgets: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the tokens that each prompt's rollouts took together, (M,); a rollout's coefficient of variation is 0.5."""
    noise = rng.normal(0, 1, len(budgets)) * 0.5 * np.sqrt(budgets)
    return lengths * np.maximum(0.2 * budgets, budgets + noise)


def _arrivals(step: StepPlan, rate: dict[int, float], limit: int, world: World, rng: np.random.Generator) -> float:
    """Carry a step out in simulated time, at most `limit` rollouts in flight; return the planner's seconds."""
    now, number, spent = 0.0, 0, 0.0
    # heap of (arrival, number, prompt, reward)
    in_flight: list[tuple[float, int, str, float]] = []
    draws: Iterator[tuple[float, float]] = iter(())
    while True:
        started = time.perf_counter()
        chunks = step.take(limit - len(in_flight)) if len(in_flight) < limit else []
        spent += time.perf_counter() - started
        for prompt, rollouts in chunks:
            for _ in range(rollouts):
                if number % 4096 == 0:
                    late, luck = rng.lognormal(0, world.latency_sigma, 4096), rng.random(4096)
                    draws = iter(zip(late.tolist(), luck.tolist(), strict=True))
                wait, draw = next(draws)
                heapq.heappush(in_flight, (now + wait, number, prompt, float(draw < rate[int(prompt)])))
                number += 1
        if not in_flight:
            assert step.done
            return spent
        now, _, prompt, reward = heapq.heappop(in_flight)
        started = time.perf_counter()
        step.observe(prompt, [reward])
        spent += time.perf_counter() - started


def _at_once(step: StepPlan, p: np.ndarray, rng: np.random.Generator) -> float:
    started = time.perf_counter()
    chunks = step.take(None)
    spent = time.perf_counter() - started
    for prompt, rollouts in chunks:
        step.observe(prompt, (rng.random(rollouts) < p[int(prompt)]).astype(float).tolist())
    assert step.done
    return spent


def _oracle_step(
    world: World, p: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Plan a step by the knapsack on the true success rates; return (budgets, successes, weights, seconds)."""
    started = time.perf_counter()
    if world.unit == "tokens":
        budgets = solve(PointValue(p), world.rollouts * float(lengths.sum()), 2, 128, lengths)
    else:
        budgets = solve(PointValue(p), world.budget, 2, 128)
    spent = time.perf_counter() - started
    return budgets, rng.binomial(budgets, p).astype(float), budgets.astype(float), spent


def _learn(
    z: np.ndarray,
    rows: np.ndarray,
    budgets: np.ndarray,
    passed: np.ndarray,
    weights: np.ndarray,
    world: World,
    rng: np.random.Generator,
) -> None:
    """Update the logits in place, as the docstring of the module has it."""
    mixed = np.sqrt(np.maximum(passed * (budgets - passed), 0.0))
    gradient = np.divide(weights * mixed, budgets, out=np.zeros(len(rows)), where=budgets > 0)
    on = mixed > 0
    noise = world.noise**2 * float((weights[on] ** 2 / budgets[on]).sum())
    length = np.sqrt(float((gradient**2).sum()) + noise)
    step = world.rate * np.sqrt(world.per_step) * gradient / max(length, 1e-9)
    moving = np.isfinite(z)
    z[rows] += np.where(moving[rows], step, 0.0)
    z[moving] += world.transfer * float(step.sum()) / world.per_step
    z[moving] += rng.normal(0, world.drift, int(moving.sum()))


def _measure(p: np.ndarray, budgets: np.ndarray, passed: np.ndarray) -> dict[str, float]:
    """Compute the figures of one step from the true rates."""
    opened = budgets > 0
    mixed = (passed > 0) & (passed < budgets)
    rare = opened & (p > 0) & (p < 0.1)
    total = max(1.0, float(budgets.sum()))
    return {
        "value": float(PointValue(p).total(budgets).sum()) / total,
        "realised": float((p * (1 - p) ** 2)[mixed].sum()) / total,
        "effective_prompts": float(mixed.sum() / max(1, opened.sum())),
        "effective_rollouts": float(budgets[mixed].sum()) / total,
        "hit_rare": float((passed[rare] > 0).mean()) if rare.any() else float("nan"),
        "largest": float(budgets.max()),
        "mixed": float(mixed.sum()),
        "rollouts": total,
    }


def _summary(world: World, tally: Tally, admission: Admission) -> dict[str, float]:
    first = -(-world.prompts // world.per_step)
    late = [row for row in tally.rows if row["step"] >= first] or tally.rows
    out = {key: float(np.nanmean([row[key] for row in late])) for key in late[0] if key not in ("step", "rollouts")}
    # per mean budget of rollouts, so that steps of different sizes can be compared
    for key in ("value", "realised"):
        out[key] *= 1000 * world.rollouts
    out["largest"] = float(max(row["largest"] for row in late))
    out["planner_ms"] = 1000 * tally.planner_s / tally.steps
    out["rollouts_a_step"], out["steps"] = tally.rollouts / tally.steps, float(tally.steps)
    out["tokens_a_rollout"] = tally.tokens / tally.rollouts
    out["longest_wait"] = admission.metrics()[PROMPTS_LONGEST_WAIT]
    return out
