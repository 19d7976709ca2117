"""The components of a run that need no process: tokenizer, prompts, sampler, planner, probe, settings of an engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np

from kray.config import KrayConfig
from kray.config.actor_options import variables_of
from kray.config.devices import dtype_of, eager_of
from kray.config.memory import context_tokens
from kray.config.threads import threads_of
from kray.driver.prepare import LoadedPrompts, encode, load_prompts, read_policy, turn_stops
from kray.driver.restore import make_admission, prior_labels, restore
from kray.driver.state import RunState
from kray.planner import KnapsackPlanner
from kray.prompts import PromptSampler
from kray.prompts.admission import Admission
from kray.prompts.full_admission import FullAdmission
from kray.records import EncodedPrompt, Prompt, Sampling
from kray.rollout.adapters import AdapterSpec
from kray.rollout.engine_spec import EngineSpec

# Tokens of the probe, by compute dtype: enough to involve every layer. On CPU scoring them takes as long as loading weights; in
# float32, where engine and learner agree to 1e-5 nats, a few prove as much as many.
PROBE_TOKENS = {"float32": 32, "bfloat16": 64}


@dataclass(frozen=True)
class OfferedPrompts:
    """The prompts that the planner may visit in a step.

    Attributes:
        indices: (M,) int64, of the training prompts.
        due: (M,) bool, which of them the planner must not leave out; None where it may leave none out.
        train: All training prompts.
    """

    indices: np.ndarray
    due: np.ndarray | None
    train: list[EncodedPrompt]

    @cached_property
    def prompts(self) -> list[EncodedPrompt]:
        """The prompts with their tokens, in the order of `indices`."""
        return [self.train[i] for i in self.indices.tolist()]


@dataclass(frozen=True, slots=True)
class Components:
    """What a run consists of besides its processes.

    Attributes:
        tokenizer: The policy's.
        stop_ids: Tokens that end a response.
        stops: Texts that end a response.
        train: Training prompts.
        test: Test prompts.
        sampler: Names the prompts of each step.
        admission: In place of the sampler where the planner may pass prompts over.
        planner: Gives each prompt its budget.
        labels: Prompt id -> the label of its prior (plan.prior_by); None: all prompts share one.
        features: Prompt id -> (F,) float features (plan.prior_features); None without.
        probe: Token ids of a prompt and at random, from which the run's probe is made (kray/driver/probe.py).
    """

    tokenizer: Any
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    train: list[EncodedPrompt]
    test: list[EncodedPrompt]
    sampler: PromptSampler
    admission: Admission | FullAdmission | None
    planner: KnapsackPlanner
    labels: dict[str, str] | None
    features: dict[str, np.ndarray] | None
    probe: tuple[int, ...]

    def offer(self, step: int) -> OfferedPrompts:
        """Return the prompts of a step, counted from 0."""
        if self.admission is None:
            return OfferedPrompts(np.array(self.sampler.take(step)), None, self.train)
        indices, due = self.admission.offer(step)
        return OfferedPrompts(np.asarray(indices), np.asarray(due), self.train)

    def load(self, state: RunState) -> None:
        """Take over what labels had taught by the time of the checkpoint; everything else is the configuration's."""
        restore(state, self.planner, self.admission, self.labels, self.sampler.per_step)


def load_components(config: KrayConfig, model_path: str, prompts: LoadedPrompts | None = None) -> Components:
    """Read the policy's tokenizer and encode the prompts.

    Args:
        config: The configuration of the run.
        model_path: A Hugging Face folder or hub id.
        prompts: The prompts as they were loaded before; None: they are read from their sources.

    Raises:
        DataError: A prompt cannot be read or encoded.
        ConfigError: The tokenizer cannot be used with the configuration.
    """
    reader = read_policy(config, model_path)
    prompts = prompts or load_prompts(config)
    train, test = (
        [pair for source in sources for pair in encode(config, source, reader).encoded]
        for sources in (prompts.train, prompts.test)
    )
    return Components(
        tokenizer=reader.tokenizer,
        stop_ids=reader.stop_ids,
        stops=turn_stops(config),
        train=train,
        test=test,
        **_planning_parts(config, train),
        probe=_probe(test, reader.vocabulary, min(PROBE_TOKENS[dtype_of(config)], context_tokens(config) - 1)),
    )


def unlearned(components: Components, config: KrayConfig) -> Components:
    """Return the same prompts with a sampler, a planner and priors as a configuration begins with them.

    The configuration must have the prompts and the model of the one that `load_components` was called with.
    """
    return replace(components, **_planning_parts(config, components.train))


def _planning_parts(config: KrayConfig, train: list[EncodedPrompt]) -> dict[str, Any]:
    ids = [prompt.id for prompt, _ in train]
    kinds = prior_labels([prompt for prompt, _ in train], "kind") if config.plan.adapt else None
    return {
        "sampler": PromptSampler(ids, config.prompts.per_step, config.run.seed, config.prompts.shuffle),
        "admission": make_admission(config, ids),
        "planner": KnapsackPlanner.of(config.plan, kinds),
        "labels": prior_labels([prompt for prompt, _ in train], config.plan.prior_by),
        "features": make_features(train) if config.plan.prior_features else None,
    }


def sampling(config: KrayConfig, components: Components, temperature: float | None = None) -> Sampling:
    """Return how responses are drawn in training, or at another temperature."""
    rollout = config.rollout
    heat = rollout.temperature if temperature is None else temperature
    return Sampling(
        rollout.max_response_tokens, heat, rollout.top_p, rollout.top_k, components.stop_ids, components.stops
    )


def engine_spec(config: KrayConfig, model_path: str, adapters: AdapterSpec | None = None) -> EngineSpec:
    """Return the settings with which every engine of the run is started.

    Args:
        config: The configuration.
        model_path: The start model's folder or hub id.
        adapters: What engines take in place of whole weights.
    """
    rollout = config.rollout
    return EngineSpec(
        model_path=model_path,
        dtype=dtype_of(config),
        context_tokens=context_tokens(config),
        max_sequences=rollout.max_sequences,
        cpus=rollout.cpus_per_engine,
        threads=threads_of(rollout.threads_per_engine, rollout.cpus_per_engine),
        gpus=rollout.gpus_per_engine,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_share=rollout.gpu_memory_share,
        eager=eager_of(config),
        seed=config.run.seed % 2**31,
        reads_text=bool(turn_stops(config)),
        overlap=config.async_.max_staleness > 0,
        vllm=dict(rollout.vllm),
        env=variables_of(config.run.env),
        adapters=adapters,
    )


def make_features(prompts: list[EncodedPrompt]) -> dict[str, np.ndarray]:
    """Return the features of each prompt: the log of its length in tokens, and one-hot source, kind and difficulty."""
    names = sorted({name for prompt, _ in prompts for name in _belongs(prompt)})
    return {
        prompt.id: np.array([np.log(len(tokens)), *(float(name in _belongs(prompt)) for name in names)])
        for prompt, tokens in prompts
    }


def _belongs(prompt: Prompt) -> set[str]:
    known = {"source": prompt.source} | {key: prompt.metadata.get(key) for key in ("kind", "difficulty")}
    return {f"{key}={value}" for key, value in known.items() if value is not None}


def _probe(prompts: list[EncodedPrompt], vocabulary: int, length: int) -> tuple[int, ...]:
    """Return half a probe of prompts and half of random tokens: fixed for a run, and sensitive to every layer."""
    real = list(islice(chain.from_iterable(tokens for _, tokens in prompts), max(1, length // 2)))
    return (*real, *np.random.default_rng(0).integers(vocabulary, size=length - len(real)).tolist())
