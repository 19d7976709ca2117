"""What a run is made of before anything is started: tokenizer, prompts, sampler, planner, probe, an engine's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kray.config import KrayConfig
from kray.config.schema import SourceConfig
from kray.environments import stops_of
from kray.plan_rules import offered_share
from kray.planner import KnapsackPlanner
from kray.prompts import PromptSampler, load_prompts, load_tests
from kray.prompts.model_files import check_context, load_tokenizer, read_config, stop_ids
from kray.prompts.tokenize import encode_all
from kray.prompts.waiting import Waiting
from kray.records import ConfigError, DataError, Prompt, Sampling
from kray.rollout.engine import EngineSpec
from kray.train.supported import check_supported

PROBE_TOKENS = 64

Encoded = list[tuple[Prompt, tuple[int, ...]]]  # prompts with their tokens


@dataclass(frozen=True, slots=True)
class Parts:
    """stop_ids, stops: tokens and texts that end a response. probe: tokens on which engines must agree with the learner."""

    tokenizer: Any
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    train: Encoded
    test: Encoded
    sampler: PromptSampler
    waiting: Waiting | None  # in place of the sampler where the planner admits prompts
    planner: KnapsackPlanner
    labels: dict[str, str] | None  # prompt id -> whose prior it shares (plan.prior_by); None: all share one
    features: dict[str, np.ndarray] | None  # prompt id -> what is known about it (plan.prior_features)
    probe: tuple[int, ...]

    def choose(self, step: int) -> tuple[Encoded, list[bool] | None]:
        """The prompts of a step, and which of them the planner must not leave out (None: it may leave none out)."""
        if self.waiting is None:
            return [self.train[i] for i in self.sampler.take(step)], None
        offered, due = self.waiting.offer(step)
        return [self.train[i] for i in offered], due


def load_parts(config: KrayConfig, model_path: str, say: Callable[[str], None]) -> Parts:
    """Reads tokenizer and prompts. Raises DataError, ConfigError."""
    check_supported(read_config(model_path))
    tokenizer, vocabulary = load_tokenizer(model_path)
    check_context(model_path, context_tokens(config))
    train, test = (_encoded(config, part, tokenizer, vocabulary, say) for part in ("train", "test"))
    ids = [prompt.id for prompt, _ in train]
    plan, prompts = config.plan, config.prompts
    return Parts(
        tokenizer=tokenizer,
        stop_ids=stop_ids(model_path, tokenizer),
        stops=turn_stops(config),
        train=train,
        test=test,
        sampler=PromptSampler(ids, prompts.per_step, config.run.seed, prompts.shuffle),
        waiting=_waiting(config, ids),
        planner=KnapsackPlanner.of(plan),
        labels=prior_labels(train, plan.prior_by),
        features=_features(train) if plan.prior_features else None,
        probe=_probe(test[0][1], vocabulary, min(PROBE_TOKENS, context_tokens(config) - 1)),
    )


def unlearned(parts: Parts, config: KrayConfig) -> Parts:
    """The same parts as `load_parts` made them, without what labels have taught since."""
    ids = [prompt.id for prompt, _ in parts.train]
    return replace(parts, planner=KnapsackPlanner.of(config.plan), waiting=_waiting(config, ids))


def _waiting(config: KrayConfig, ids: list[str]) -> Waiting | None:
    share = offered_share(config.plan)
    if share <= 1:
        return None
    offered = min(len(ids), round(share * config.prompts.per_step))
    stream = PromptSampler(ids, 1, config.run.seed, config.prompts.shuffle)
    return Waiting(stream, offered, config.plan.max_wait)


def sampling(config: KrayConfig, parts: Parts, temperature: float | None = None) -> Sampling:
    """How responses are drawn in training, or at another temperature."""
    rollout = config.rollout
    heat = rollout.temperature if temperature is None else temperature
    return Sampling(rollout.max_response_tokens, heat, rollout.top_p, rollout.top_k, parts.stop_ids, parts.stops)


def turn_stops(config: KrayConfig) -> tuple[str, ...]:
    """Texts that end the policy's turn in the environment, if there is one. Raises ConfigError."""
    try:
        return stops_of(config.environment.name) if config.environment.name else ()
    except ValueError as error:
        raise ConfigError(f"environment.name: {error}") from error


def context_tokens(config: KrayConfig) -> int:
    """Prompt and response together."""
    return config.rollout.max_context_tokens or config.prompts.max_tokens + config.rollout.max_response_tokens


def engine_spec(config: KrayConfig, model_path: str) -> EngineSpec:
    """What every engine of the run is started with."""
    rollout = config.rollout
    return EngineSpec(
        model_path=model_path,
        dtype=config.model.dtype,
        context_tokens=context_tokens(config),
        max_sequences=rollout.max_sequences,
        cpus=rollout.cpus_per_engine,
        gpus=rollout.gpus_per_engine,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_share=rollout.gpu_memory_share,
        eager=rollout.eager,
        seed=config.run.seed % 2**31,
        reads_text=bool(turn_stops(config)),
        overlap=config.async_.max_staleness > 0,
    )


def prior_labels(prompts: Encoded, by: str) -> dict[str, str] | None:
    """Prompt id -> whose prior it shares, or None: all share one."""
    if by == "all":
        return None
    labels = {}
    for prompt, _ in prompts:
        kind = prompt.metadata.get("kind") if by == "kind" else None
        labels[prompt.id] = f"{prompt.source}/{kind}" if kind else prompt.source
    return labels if len(set(labels.values())) > 1 else None


def _features(prompts: Encoded) -> dict[str, np.ndarray]:
    """Of each prompt: the log of its length in tokens, and which source and kind it is of."""
    names = sorted({name for prompt, _ in prompts for name in _belongs(prompt)})
    return {
        prompt.id: np.array([np.log(len(tokens)), *(float(name in _belongs(prompt)) for name in names)])
        for prompt, tokens in prompts
    }


def _belongs(prompt: Prompt) -> set[str]:
    known = {"source": prompt.source} | {key: prompt.metadata.get(key) for key in ("kind", "difficulty")}
    return {f"{key}={value}" for key, value in known.items() if value is not None}


def _encoded(config: KrayConfig, part: str, tokenizer: Any, vocabulary: int, say: Callable[[str], None]) -> Encoded:
    limit = f"prompts.max_tokens is {config.prompts.max_tokens}"
    encoded: Encoded = []
    for source, prompts in _sources(config, part):
        kept, dropped = encode_all(prompts, tokenizer, source, config.prompts.max_tokens, vocabulary)
        if dropped:
            say(
                f"note: {len(dropped)} of {len(prompts)} {part} prompts dropped, longer than {limit}; first {dropped[0]}"
            )
        least = config.prompts.per_step if part == "train" else 1
        if len(kept) < least:
            left = f"{len(kept)} of {len(prompts)} prompts are left, {least} are needed; {limit}"
            raise DataError(f"prompts.{part}: {left}")
        encoded += kept
    return encoded


def _sources(config: KrayConfig, part: str) -> list[tuple[SourceConfig, list[Prompt]]]:
    verifier = config.reward.verifier
    if part == "test":
        return load_tests(config.prompts, verifier)
    return [(config.prompts.train, load_prompts(config.prompts.train, verifier))]


def _probe(start: tuple[int, ...], vocabulary: int, length: int) -> tuple[int, ...]:
    """The start of a prompt, then tokens at random: fixed for a run, and sensitive to every layer."""
    real = list(start[: length // 2])
    return (*real, *np.random.default_rng(0).integers(vocabulary, size=length - len(real)).tolist())
