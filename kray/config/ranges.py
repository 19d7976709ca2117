"""The range of every numeric key of a configuration.

Every numeric key of the schema is in LIMITS or FIXED exactly once (a test holds it). Ranges are wide: they exclude what no run
can mean and what breaks arithmetic further on, such as 1e308, 1e-320 or a size that no memory holds. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a key may have.

    Attributes:
        least: Smallest number.
        most: Largest number.
        also: Further numbers.
        below: Whether `most` itself is excluded.
    """

    least: float
    most: float
    also: tuple[float, ...] = ()
    below: bool = False

    def problem(self, value: float) -> str:
        """Return what a number must be where it is outside the range, as "at most 10"; "" where it is inside."""
        if value in self.also or self.least <= value < self.most or (value == self.most and not self.below):
            return ""
        # NaN is neither.
        if value >= self.most:
            return f"{'below' if self.below else 'at most'} {_shown(self.most)}"
        return "".join(f"{_shown(each)} or " for each in self.also) + f"at least {_shown(self.least)}"

    def __str__(self) -> str:
        alone = "".join(f"{_shown(each)}, " for each in self.also)
        return f"{alone}{_shown(self.least)} to {'below ' if self.below else ''}{_shown(self.most)}"


def _shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


# Seeds are 64-bit integers.
_SEED = Range(0, 2**63 - 1)
_COUNT, _COUNT_OR_0 = Range(1, 10**9), Range(0, 10**9)
# What is held in memory, one by one; what has a process of its own.
_PROMPTS = Range(1, 10**7)
_FEW, _FEW_OR_0 = Range(1, 100_000), Range(0, 100_000)
_SHARE = Range(1e-9, 1.0, also=(0.0,))
# Numbers of losses and optimizers; 0 usually means none.
_COEFFICIENT = Range(1e-9, 1e9, also=(0.0,))
# Three years: longer is a mistake, and operating systems refuse much longer timeouts.
_SECONDS, _SECONDS_OR_0 = Range(0.001, 1e8), Range(0.001, 1e8, also=(0.0,))
# vLLM replaces lower temperatures by .01.
_TEMPERATURE = Range(0.01, 100.0)
_GIB, _GIB_OR_0 = Range(0.001, 1e6), Range(0.001, 1e6, also=(0.0,))

# Range -> keys that it applies to.
LIMITS: dict[Range, str] = {
    _SEED: "run.seed model.tiny.seed prompts.train.seed prompts.test.seed",
    _COUNT: """
        run.steps run.keep_checkpoints prompts.max_tokens
        plan.budget plan.upper plan.rounds plan.max_wait plan.refit_every rollout.max_response_tokens
        rollout.max_sequences rollout.split rollout.max_attempts environment.max_turns reward.judge.max_tokens
        train.updates train.epochs train.microbatch_tokens track.every evaluate.samples
        """,
    _COUNT_OR_0: """
        run.checkpoint_every run.max_restarts run.max_failed_saves train.max_restarts rollout.max_restarts
        prompts.quarantine_after prompts.train.limit prompts.test.limit rollout.max_context_tokens train.lr_warmup_steps
        train.constant_tokens train.max_nonfinite evaluate.every track.samples track.traces plan.lower
        plan.token_budget plan.in_flight plan.pilot plan.target_groups async.max_staleness
        """,
    Range(2, 10**9): "plan.target_size",
    _PROMPTS: "prompts.per_step prompts.train.size prompts.test.size",
    _FEW: """
        rollout.engines reward.workers reward.judge.concurrency environment.workers train.ranks train.replicas
        train.context_parallel
        """,
    Range(1, 65_536): """
        model.tiny.hidden_size model.tiny.layers model.tiny.heads model.tiny.kv_heads model.tiny.intermediate_size
        model.tiny.batch_size model.lora.rank
        """,
    _FEW_OR_0: "rollout.min_engines rollout.cpus_per_engine train.cpus_per_rank",
    # More than a node has.
    Range(0, 64): "rollout.gpus_per_engine",
    Range(0, 10**7): "model.tiny.warmup_steps",
    Range(1, 2**20, also=(0,)): "rollout.sync_bucket_mib",
    Range(0, 1000): "model.tiny.draft_digits",
    Range(1, 100_000, also=(-1, 0)): "rollout.threads_per_engine train.threads_per_rank",
    Range(0, 1): "train.gpus_per_rank",
    Range(1.0, 1e9, also=(-1.0, 0.0)): "plan.candidates",
    Range(1e-12, 10.0): "model.tiny.lr",
    Range(1e-12, 10.0, also=(0.0,)): "train.lr",
    Range(1e-30, 1.0): "train.eps",
    _COEFFICIENT: """
        rollout.probe_tolerance train.weight_decay train.grad_clip train.clip_high train.advantage_clip train.tis
        train.kl train.advantage_floor train.max_kl plan.tau reward.judge.prompt_price reward.judge.completion_price
        """,
    Range(1e-9, 1e9): "model.lora.alpha plan.prior_alpha plan.prior_beta",
    _SHARE: """
        run.max_failed_share plan.discount train.clip_low train.lr_final model.tiny.clean_share model.tiny.tool_share
        model.tiny.check_share
        """,
    Range(1e-6, 1.0): "rollout.gpu_memory_share train.thin",
    Range(1e-9, 1.0, also=(0.0,), below=True): "train.beta1 train.beta2",
    _TEMPERATURE: "rollout.temperature evaluate.temperature",
    Range(1e-6, 100.0, also=(0.0,)): "reward.judge.temperature",
    _SECONDS: """
        rollout.task_timeout_s rollout.start_timeout_s rollout.sync_timeout_s rollout.idle_s reward.timeout_s
        reward.deadline_s reward.judge.deadline_s environment.step_timeout_s train.timeout_s
        """,
    _SECONDS_OR_0: "run.restart_window_s run.stop_after_s",
    _GIB: "rollout.kv_cache_gib",
    _GIB_OR_0: "reward.memory_gib",
}

# Key -> the one value that training allows, and why.
FIXED = {
    "rollout.top_p": (1.0, "truncated sampling draws from another distribution than the one of the logprobs"),
    "rollout.top_k": (0, "truncated sampling draws from another distribution than the one of the logprobs"),
}

# Key -> its range.
RANGES: Mapping[str, Range] = {key: each for each, keys in LIMITS.items() for key in keys.split()}
# The size of a weight of reward.functions, and of the ends of a range of rewards and their distance.
WEIGHT = Range(1e-9, 1e9, also=(0.0,))


def number_problem(key: str, value: float, place: str = "") -> str:
    """Return a sentence about a number that its key may not have; "" where it may.

    Args:
        key: Of the schema.
        value: The number.
        place: Where it was written, if not under this key, such as reward.functions.polite.options.temperature.
    """
    found = RANGES[key].problem(value)
    return f"{place or key} must be {found}, not {value}" if found else ""
