"""A real vLLM engine computes a prompt once for all its rollouts, also a short one."""

from __future__ import annotations

import numpy as np

from kray.records import RolloutTask, Sampling

# Shorter than vLLM's usual blocks on CPU; 64 of its tokens fill whole blocks of kray's.
PROMPT = tuple(int(token) for token in np.random.default_rng(0).integers(2, 40, 70))


def test_rollouts_of_a_short_prompt_share_its_keys_and_values(ray_local, tied_policy):
    from kray.rollout.engine import Engine
    from kray.rollout.engine_spec import EngineSpec

    class Counting(Engine):
        """Counts the prompt tokens of each request that were not computed for it."""

        def cached(self, task):
            cached = []
            step = self._engine.step

            def counted():
                outputs = step()
                cached.extend(output.num_cached_tokens for output in outputs)
                return outputs

            self._engine.step = counted
            self._engine.set_weight_version("0")
            self.submit([task])
            found = []
            while not found:
                found = self.collect(60.0).finished
            return cached, [rollout.tokens.tolist() for rollout in found[0][1]]

    spec = EngineSpec(str(tied_policy), "float32", 128, 16, 1, 0, 0.1, 0.0, eager=True, seed=0)
    actor = ray_local.remote(max_concurrency=2, concurrency_groups={"commands": 1})(Counting)
    engine = actor.options(num_cpus=1, runtime_env={"env_vars": spec.environment()}).remote(spec)
    ray_local.get(engine.start.remote(), timeout=180)
    task = RolloutTask(0, "p", PROMPT, 4, 0, 7, 0, Sampling(6, 1.0, 1.0, 0, ()), 60.0)
    cached, rollouts = ray_local.get(engine.cached.remote(task), timeout=60)
    assert sorted(cached) == [0, 64, 64, 64]
    assert len({tuple(tokens) for tokens in rollouts}) > 1
    ray_local.kill(engine)
