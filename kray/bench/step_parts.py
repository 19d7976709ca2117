"""Measures engines and learner alone: engines that get a step's tasks at once, then the learner on their groups.

They take turns, so each has the machine to itself, and the engines load the learner's weights after each step. Both do what
they do in the run, on the same rollouts as far as only the seeds are random. No driver, pool, planner or scorer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import ray

from kray.config import KrayConfig
from kray.driver.components import Components, engine_spec, load_components
from kray.errors import KrayError
from kray.metrics import TRAIN_UPDATE_S
from kray.records import EncodedPrompt, Rollout, RolloutGroup, RolloutTask, Sampling, derive_seed
from kray.rewards import score
from kray.rollout.receiving_engine import EngineActor
from kray.train.learner_group import LearnerGroup
from kray.train.training_rows import step_rows

# Seconds that a call for an engine's report waits.
POLL_S = 2.0
MEASURED = ("generate_s", "engine_busy_s", "update_s", "learner_busy_s")


def run_alone(config: KrayConfig, model: str, steps: int, warm: int) -> dict[str, Any]:
    """Run the steps and return medians over those after `warm`, and the response tokens of every step.

    Returns:
        generate_s, from sending the tasks to receiving the last rollouts; update_s, from sending the rows to receiving the
        metrics; engine_busy_s (mean over engines) and learner_busy_s, as these measure it themselves; tokens.
    """
    components = load_components(config, model)
    spec = engine_spec(config, model)
    options = {"num_cpus": spec.cpus, "max_concurrency": 4, "runtime_env": {"env_vars": spec.environment()}}
    engines = [EngineActor.options(**options).remote(spec) for _ in range(config.rollout.engines)]
    learners = LearnerGroup(config.train, config.model.dtype, model, steps, config.run.seed, config.rollout.temperature)
    try:
        rows = asyncio.run(_run(config, components, engines, learners, steps))
    finally:
        learners.close()
        for engine in engines:
            ray.kill(engine)
    medians = {name: float(np.median([row[name] for row in rows[warm:]])) for name in MEASURED}
    return medians | {"tokens": [row["tokens"] for row in rows]}


async def _run(
    config: KrayConfig, components: Components, engines: list[Any], learners: LearnerGroup, steps: int
) -> list[dict[str, float]]:
    """Run the steps and return the figures of each."""
    await learners.start()
    await _all(engines, "start", config.rollout.start_timeout_s)
    rows = []
    for step in range(steps):
        weights = await learners.weights()
        await _all(engines, "update", config.rollout.sync_timeout_s, step, weights, list(components.probe))
        chosen = components.offer(step).prompts
        groups, made = await _generate(config, components, engines, chosen, step)
        for group in groups:
            for rollout in group.rollouts:
                text = components.tokenizer.decode(rollout.tokens.tolist(), skip_special_tokens=True)
                rollout.reward = score(group.prompt.verifier, text, group.prompt.answer).value
        learned = await _update(config, learners, groups)
        rows.append(made | learned | {"tokens": sum(group.tokens for group in groups)})
    return rows


async def _generate(
    config: KrayConfig, components: Components, engines: list[Any], chosen: list[EncodedPrompt], step: int
) -> tuple[list[RolloutGroup], dict[str, float]]:
    rollout = config.rollout
    each = config.plan.budget // len(chosen)
    sampling = Sampling(
        rollout.max_response_tokens, rollout.temperature, rollout.top_p, rollout.top_k, components.stop_ids
    )
    tasks = [
        RolloutTask(
            id=step * len(chosen) + i,
            prompt_id=prompt.id,
            prompt_tokens=tokens,
            rollouts=each,
            first_index=0,
            seed=derive_seed(config.run.seed, step, prompt.id),
            policy_version=step,
            sampling=sampling,
            timeout_s=rollout.task_timeout_s,
        )
        for i, (prompt, tokens) in enumerate(chosen)
    ]
    started = time.monotonic()
    shares = [tasks[i :: len(engines)] for i in range(len(engines))]
    made = await asyncio.gather(*(_work(engine, share) for engine, share in zip(engines, shares, strict=True)))
    took = {"generate_s": time.monotonic() - started, "engine_busy_s": float(np.mean([busy_s for _, busy_s in made]))}
    finished = {task_id: rollouts for found, _ in made for task_id, rollouts in found.items()}
    pairs = zip(tasks, chosen, strict=True)
    return [RolloutGroup(*pair, finished[task.id], float(each)) for task, pair in pairs], took


async def _work(engine: Any, tasks: list[RolloutTask]) -> tuple[dict[int, list[Rollout]], float]:
    """Return (rollouts by task id, seconds of stepping) of one engine that gets all the tasks at once."""
    finished: dict[int, list[Rollout]] = {}
    started, busy_s = time.monotonic(), 0.0
    engine.submit.remote(tasks)
    while len(finished) < len(tasks):
        report = await engine.collect.remote(POLL_S)
        busy_s += report.busy_s
        finished |= dict(report.finished)
        if report.refused or time.monotonic() - started > tasks[0].timeout_s:
            raise KrayError(f"the engine alone: {len(finished)} of {len(tasks)} tasks came back; {report.refused[:1]}")
    return finished, busy_s


async def _update(config: KrayConfig, learners: LearnerGroup, groups: list[RolloutGroup]) -> dict[str, float]:
    rows = ray.put(step_rows(groups, config.train))
    started = time.monotonic()
    metrics = (await _all(learners.actors, "update", config.train.timeout_s, rows))[0]
    return {"update_s": time.monotonic() - started, "learner_busy_s": metrics[TRAIN_UPDATE_S]}


async def _all(actors: list[Any], method: str, limit_s: float, *arguments: Any) -> list[Any]:
    """Call a method on all actors and return the results; raise KrayError when they take longer than the limit."""
    calls = [_value(getattr(actor, method).remote(*arguments)) for actor in actors]
    try:
        return await asyncio.wait_for(asyncio.gather(*calls), limit_s)
    except TimeoutError:
        raise KrayError(f"parts alone: {method} took longer than {limit_s:.0f} s") from None


async def _value(reference: Any) -> Any:
    return await reference
