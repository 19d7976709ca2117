"""Simulated steps on pools of several sizes against a lower bound and static sharding. Used by jobs/bench_pool.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from kray.bench.engine_model import (
    ENGINE_MODELS,
    EngineModel,
    lower_bound,
    make_work,
    schedule_overhead_s,
    simulate,
    simulate_static,
)

# Makespans over the bound: static sharding; kray with engines that report whole tasks and hold one or three batches; kray
# with engines that report single rollouts; and the same with every length known.
COLUMNS = ("static", "1 batch", "3 batches", "singles", "known")
NAMES = ("rollouts", "bound s", *COLUMNS, "idle static", "idle kray", "us", "prompts computed")
HEADS = ("engines", "prompts", "bound s", *COLUMNS, "idle static", "idle kray", "us")


def measure(
    kind: str, engines: Sequence[int], max_sequences: int, prompts: Sequence[int], seeds: int
) -> dict[str, Any]:
    """Simulate steps, print a table of medians over the seeds, and measure the schedule's own time.

    Args:
        kind: A key of ENGINE_MODELS.
        engines: Numbers of engines.
        max_sequences: Rollouts in one batch.
        prompts: Numbers of prompts for each engine.
        seeds: Number of steps for each combination.
    """
    print("  ".join(f"{head:>9}" for head in HEADS))
    rows = []
    for count in engines:
        model = replace(ENGINE_MODELS[kind], engines=count, max_sequences=max_sequences)
        for each in prompts:
            by_seed = [_figures(model, each * count, seed) for seed in range(seeds)]
            medians = np.median(by_seed, axis=0).tolist()
            row = {"engines": count, "prompts": each * count, **dict(zip(NAMES, medians, strict=True))}
            rows.append(row | {"seeds": by_seed})
            over = [f"{row[name]:.3f}" for name in COLUMNS]
            idle = [f"{row[name]:.1%}" for name in ("idle static", "idle kray")]
            cells = [f"{count}", f"{row['prompts']}", f"{row['bound s']:.1f}", *over, *idle, f"{row['us']:.1f}"]
            print("  ".join(f"{c:>{max(9, len(head))}}" for c, head in zip(cells, HEADS, strict=True)), flush=True)
    costs = {count: 1e6 * schedule_overhead_s(count, 100_000) for count in (1, 64, 1000)}
    listed = ", ".join(f"{us:.1f} us a task on {count} engines" for count, us in costs.items())
    print(f"schedule alone, 100,000 tasks: {listed}")
    return {"fleet": asdict(ENGINE_MODELS[kind]), "steps": rows, "overhead_us": costs}


def _figures(model: EngineModel, prompts: int, seed: int) -> list[float]:
    """Simulate one step under every policy; the values of NAMES."""
    work = make_work(prompts, seed)
    bound = lower_bound(model, work)
    runs = (
        simulate_static(model, work),
        simulate(model, work, progress=False),
        simulate(model, work, progress=False, capacity=3),
        simulate(model, work),
    )
    known = simulate(model, work.known).makespan_s / lower_bound(model, work.known)
    schedule_us = 1e6 * runs[3].driver_s / runs[3].tasks
    ratios = [run.makespan_s / bound for run in runs]
    return [work.rollouts, bound, *ratios, known, runs[0].idle, runs[3].idle, schedule_us, runs[3].prompts]
