"""One simulated run: a population of prompts, a planner, rollouts that arrive in time, and a policy that learns from them.

The policy is one logit z_i per prompt, p_i = sigmoid(z_i); how it learns stands in kray/simulate/policy.py. Between steps it
drifts: z += N(0, drift^2) for every prompt. Prompts with p = 0 never change. The true rates are used for outcomes and for
measuring, never for planning, except by mode `oracle`.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kray.metrics import PROMPTS_LONGEST_WAIT
from kray.plan_modes import PlanConfig
from kray.planner import KnapsackPlanner, PointValue, StepPlan, solve
from kray.planner.beliefs import Beliefs
from kray.planner.limits import most_due
from kray.prompts.admission import Admission
from kray.prompts.sampler import PromptSampler
from kray.simulate.policy import StepGroups, Update, learn
from kray.simulate.populations import Population

# Modes for which the order of arrivals matters.
FEEDBACK = ("online", "rounds", "pilot_commit", "dynamic_sampling")

# Strength of the belief of mode `oracle`, in rollouts.
KNOWN = 1e6


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
        discount: of the beliefs; with the belief as baseline it is fitted and this is the start value, as by default in runs.
        overshoot: loss of every logit where several passes over the same rollouts (epochs) make a step longer than one pass,
            for a squared logit per prompt of a step.
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
    overshoot: float = 0.1

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
        plan: keys of PlanConfig. Besides, mode may be `oracle`; `wide` multiplies the prompts, not the rollouts, of a step, and
            `each` sets its mean rollouts of a prompt instead; `most` multiplies the rollouts that a step may spend, `times`
            these and the rollouts of the run; target_groups -1 means as many as the step has prompts; `baseline` and `epochs`
            are those of `train`.

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
    wide *= world.rollouts / plan.pop("each", world.rollouts)
    world = replace(world, rollouts=world.rollouts * plan.pop("times", 1))
    update = _update(world, plan.pop("baseline", "group"), plan.pop("epochs", 1))
    beliefs = Beliefs(world.discount, fit_discount=update.baseline == "belief")
    planner = _planner(world, plan, beliefs, float(lengths.mean()))
    admission = _admission(world, wide, seed, planner.settings)
    # running mean of each prompt's response tokens
    cost = np.full(world.prompts, lengths.mean())
    tally, before = Tally(), float(np.mean(p))
    goal = world.steps * (world.budget if world.unit == "rollouts" else world.budget * lengths.mean())
    while (tally.rollouts if world.unit == "rollouts" else tally.tokens) < goal - 0.5 * world.budget:
        indices, due = admission.offer(tally.steps)
        rows = np.array(indices)
        p = 1 / (1 + np.exp(-z))
        if oracle:
            groups, seconds = _oracle_step(world, rows, p[rows], lengths[rows], rng)
        else:
            started = time.perf_counter()
            step = planner.begin([str(i) for i in indices], cost=cost[rows], due=due)
            seconds = time.perf_counter() - started + _carry_out(step, planner.mode, p, world, rng)
            groups = _drawn(step, rows)
        rows, budgets = groups.rows, groups.budgets
        used = _tokens(budgets, lengths[rows], rng)
        seen = budgets > 0
        cost[rows[seen]] = (cost[rows[seen]] + used[seen] / budgets[seen]) / 2
        tally.rows.append(_measure(p[rows], budgets, groups.passed) | {"step": tally.steps})
        learn(z, groups, update)
        moving = np.isfinite(z)
        z[moving] += rng.normal(0, world.drift, int(moving.sum()))
        admission.visited(tally.steps, rows[seen].tolist())
        tally.steps += 1
        tally.rollouts += float(budgets.sum())
        tally.tokens += float(used.sum())
        tally.planner_s += seconds
    return _summary(world, tally, admission) | {"learned": float((1 / (1 + np.exp(-z))).mean()) - before}


def _admission(world: World, wide: float, seed: int, plan: PlanConfig) -> Admission:
    offered = round(plan.candidates * world.per_step * wide) or world.prompts
    stream = PromptSampler([str(i) for i in range(world.prompts)], 1, seed)
    return Admission(stream, min(offered, world.prompts), 8, most_due(plan))


def _update(world: World, baseline: str, epochs: int) -> Update:
    return Update(
        length=world.rate * np.sqrt(world.per_step),
        noise=world.noise,
        transfer=world.transfer / world.per_step,
        baseline=baseline,
        epochs=epochs,
        overshoot=world.overshoot / world.per_step,
    )


def _planner(world: World, plan: dict[str, Any], beliefs: Beliefs, mean_tokens: float) -> KnapsackPlanner:
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
    return KnapsackPlanner(beliefs=beliefs, **plan)


def _lengths(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the mean response tokens of each prompt: hard ones are up to twice as long, and prompts differ."""
    return 200 * (2 - p) * rng.lognormal(0, 0.3, len(p))


def _tokens(budgets: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the tokens that each prompt's rollouts took together, (M,); a rollout's coefficient of variation is 0.5."""
    noise = rng.normal(0, 1, len(budgets)) * 0.5 * np.sqrt(budgets)
    return lengths * np.maximum(0.2 * budgets, budgets + noise)


def _carry_out(step: StepPlan, mode: str, p: np.ndarray, world: World, rng: np.random.Generator) -> float:
    """Draw the rewards of a step at the success rates p of all prompts; return the planner's seconds."""
    if mode in FEEDBACK:
        return _arrivals(step, p, max(1, int(world.in_flight * world.budget)), world, rng)
    return _at_once(step, p, rng)


def _drawn(step: StepPlan, rows: np.ndarray) -> StepGroups:
    """Return what a step that is done has drawn; `rows` are the prompts that it was offered."""
    allocation, passed = step.allocation(), np.array([s for s, _ in step.labels()])
    return StepGroups(rows[step.positions], allocation.budgets, passed, allocation.weights, allocation.beliefs)


def _arrivals(step: StepPlan, p: np.ndarray, limit: int, world: World, rng: np.random.Generator) -> float:
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
                heapq.heappush(in_flight, (now + wait, number, prompt, float(draw < p[int(prompt)])))
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
    world: World, rows: np.ndarray, p: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
) -> tuple[StepGroups, float]:
    """Plan a step by the knapsack on the true success rates; return what it drew, and seconds."""
    started = time.perf_counter()
    if world.unit == "tokens":
        budgets = solve(PointValue(p), world.rollouts * float(lengths.sum()), 2, 128, lengths)
    else:
        budgets = solve(PointValue(p), world.budget, 2, 128)
    spent = time.perf_counter() - started
    known = KNOWN * np.stack([p, 1 - p], axis=1)
    return StepGroups(rows, budgets, rng.binomial(budgets, p).astype(float), budgets.astype(float), known), spent


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
