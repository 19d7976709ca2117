"""autoscaled_pool.py POLICY: a pool on an autoscaling cluster, from no node to two, to none, and past a preemption.

A process of its own: a test process has one Ray, and this one's must be the autoscaling cluster. Prints what happened as JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import sys
import time

from autoscaling_cluster import autoscaling_cluster, preempt, wait_for_nodes, workers
from logged_lines import logged_lines
from tiny_pool import PlainLearner, gather, make_pool, tasks

from kray.records import Sampling


async def until(reached, limit_s: float, what: str) -> float:
    started = time.monotonic()
    while not reached():
        assert time.monotonic() - started < limit_s, f"not {what} after {limit_s:.0f} s"
        await asyncio.sleep(0.1)
    return time.monotonic() - started


async def grow_shrink_and_preempt(ray, policy: str) -> dict:
    learner = PlainLearner(policy)
    pool = make_pool(policy, 2, "elastic", min_engines=0, idle_s=4.0)
    long = Sampling(max_tokens=100)
    pool.start()
    try:
        gap = await pool.publish(learner.publication(0))
        found = {"gap_without_engines_is_nan": math.isnan(gap), "nodes_before": len(workers(ray))}
        orders = [dataclasses.replace(t, sampling=long) for t in tasks(60, rollouts=8)]
        started = time.monotonic()
        working = asyncio.create_task(gather(pool, orders))
        await until(lambda: len(workers(ray)) == 2, 120, "two nodes")
        found["up_s"] = time.monotonic() - started
        found["first"] = sum(len(rollouts) for rollouts in (await working).values())
        found["down_s"] = await until(lambda: not workers(ray), 120, "without nodes again")
        learner.shake()
        found["gap_of_nobody_is_nan"] = math.isnan(await pool.publish(learner.publication(1)))
        again = (
            [
                dataclasses.replace(t, id=1000 * k + t.id, prompt_id=f"{k}-{t.prompt_id}", policy_version=1)
                for t in orders
            ]
            for k in itertools.count(1)
        )

        async def work_until_preempted() -> dict:
            done = await gather(pool, next(again))
            while not pool.preemptions:
                done |= await gather(pool, next(again))
            return done | await gather(pool, next(again))

        working = asyncio.create_task(work_until_preempted())
        await until(lambda: pool.serving > 0 and pool.schedule.running > 0, 120, "at work again")
        busy = next(e for e in pool.engines if pool.schedule.load(e.name))
        where = {a["ActorID"]: a["Address"]["NodeID"] for a in ray._private.state.actors().values()}
        await preempt(ray, where[busy.actor._actor_id.hex()])
        second = await asyncio.wait_for(working, 120)
        found["second"] = sum(len(rollouts) for rollouts in second.values()) == 8 * len(second)
        versions = {v for rollouts in second.values() for r in rollouts for v, _, _ in r.policy_versions}
        found |= {"versions": sorted(versions), "preemptions": pool.preemptions, "losses": pool.losses}
        found["restarts"] = sum(engine.health.restarts for engine in pool.engines)
    finally:
        await pool.close()
    found["nodes_after"] = wait_for_nodes(ray, 0, 120.0) >= 0 and len(workers(ray))
    return found


if __name__ == "__main__":
    with autoscaling_cluster({"rollout": {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": 2}}) as ray:
        with logged_lines() as lines:
            found = asyncio.run(grow_shrink_and_preempt(ray, sys.argv[1]))
        print("FOUND " + json.dumps(found | {"lines": lines}), flush=True)
