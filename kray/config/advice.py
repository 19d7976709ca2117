"""Warnings about configurations that can run but are probably a mistake, printed by `--check` and at the start of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from kray import plan_modes as plan_rules
from kray.config.devices import dtype_of
from kray.config.rounding import rounds_cache, rounds_weights
from kray.config.schema import KrayConfig
from kray.config.train_schema import TrainConfig, advantage_of

# Plan modes that give every prompt the same number of rollouts.
UNIFORM = ("uniform", "weight_only")

# Clips of GSPO's paper, arXiv 2507.18071, section 5.1.
GSPO_CLIPS = (3e-4, 4e-4)

# Clip beyond which the mean ratio of a whole rollout is hardly ever clipped.
GSPO_LARGE = 0.05


def warnings(config: KrayConfig) -> list[str]:
    """Return a sentence for each doubtful choice of a configuration that has passed `check`."""
    found = [*_advantage_clip(config), *_clips(config.train), *_memory(config), *_rendering(config)]
    return [*found, *_partial_credit(config), *_baseline(config), *_float32_on_gpus(config), *_rounding(config)]


def first_cut(clip: float, scaled: bool) -> float:
    """Return the smallest group size at which `clip` cuts the advantage of a single success (rewards 0 and 1); inf: none.

    In a group of N its advantage is sqrt(N - 1) where it is divided by the group's standard deviation (scaled), else
    1 - 1 / N.
    """
    if scaled:
        return math.floor(clip**2 + 1) + 1
    return math.floor(1 / (1 - clip)) + 1 if clip < 1 else math.inf


def largest_group(config: KrayConfig) -> int:
    """Return the most rollouts that the plan can give one prompt in a step."""
    plan, per_step = config.plan, config.prompts.per_step
    if plan.mode in UNIFORM and plan.unit == "rollouts":
        return math.ceil(plan.budget / per_step)
    others = plan.lower * (per_step - 1) if plan_rules.offered_share(plan) == 1 and plan.unit == "rollouts" else 0
    return min(plan.upper, plan.budget - others) if plan.unit == "rollouts" else plan.upper


def _advantage_clip(config: KrayConfig) -> Iterator[str]:
    clip = config.train.advantage_clip
    size, largest = first_cut(clip, advantage_of(config.train) == "std"), largest_group(config)
    # With other baselines train.advantage_floor bounds advantages already.
    if clip and size <= largest and config.train.baseline == "group":
        yield (
            f"train.advantage_clip {clip:g} cuts the advantage of a single success in groups of {size} rollouts and more, and "
            f"the plan gives a prompt up to {largest}: hard prompts then contribute less than their budget pays for"
        )


def _baseline(config: KrayConfig) -> Iterator[str]:
    plan, train = config.plan, config.train
    alone = plan.budget < 2 * config.prompts.per_step if plan.mode in UNIFORM else plan.lower < 2
    if train.baseline == "group" and alone and plan.unit == "rollouts":
        keys = "plan.budget" if plan.mode in UNIFORM else "plan.lower"
        yield (
            f"{keys} lets a prompt have a single rollout, which has no gradient with train.baseline group; train.baseline "
            "belief learns from it"
        )
    if train.baseline == "batch" and train.epochs > 1:
        yield (
            f"train.epochs {train.epochs} uses rollouts several times, which amplifies the noise of train.baseline batch: "
            "easy prompts look better than the mean and hard ones worse; belief compares each prompt with itself"
        )


def _clips(train: TrainConfig) -> Iterator[str]:
    defaults = TrainConfig()
    low, high = train.clip_low, train.clip_high
    once = train.updates == train.epochs == 1
    if once and (low, high) != (defaults.clip_low, defaults.clip_high):
        yield (
            f"train.clip_low {low:g} and train.clip_high {high:g} do nothing: with train.updates 1 and train.epochs 1 every "
            "probability ratio is 1, since the policy is updated only once"
        )
    if not once and train.loss == "gspo" and max(low, high) > GSPO_LARGE:
        paper = " and ".join(f"{clip:g}" for clip in GSPO_CLIPS)
        yield (
            f"train.clip_low {low:g} and train.clip_high {high:g} are wide for train.loss gspo, which clips the mean ratio "
            f"of whole rollouts: its paper has {paper}"
        )
    if not once and train.loss == "cispo" and low < 1:
        yield (
            f"train.clip_low {low:g} bounds the weight of a token from below, which the paper of train.loss cispo does not do: "
            "there it is 1"
        )


def _memory(config: KrayConfig) -> Iterator[str]:
    longest = config.prompts.max_tokens + config.rollout.max_response_tokens
    tokens = config.train.microbatch_tokens
    if tokens < longest:
        yield (
            f"train.microbatch_tokens {tokens} is below prompts.max_tokens + rollout.max_response_tokens = {longest}: a "
            "rollout is never split over micro-batches, so a forward pass can need the memory of that many tokens"
        )


def _float32_on_gpus(config: KrayConfig) -> Iterator[str]:
    if dtype_of(config) == "float32" and (config.rollout.gpus_per_engine or config.train.gpus_per_rank):
        tolerance = (
            "" if config.rollout.probe_tolerance else ", and engines may round more than rollout.probe_tolerance allows"
        )
        yield f"model.dtype float32 on GPUs: there is no flash attention for it{tolerance}; auto is bfloat16 there"


def _rounding(config: KrayConfig) -> Iterator[str]:
    options = config.rollout.vllm
    if (rounds_weights(options) or rounds_cache(options)) and not config.train.tis:
        yield (
            "rollout.vllm lets engines compute with 8-bit numbers, and train.tis 0 does not correct for the difference to the "
            "learner: null is 2 here"
        )


def _rendering(config: KrayConfig) -> Iterator[str]:
    train, test = config.prompts.train, config.prompts.test
    if train.chat_template_kwargs != test.chat_template_kwargs:
        yield (
            "prompts.train.chat_template_kwargs and prompts.test.chat_template_kwargs differ: the policy is evaluated on "
            "prompts of another form than those that it is trained on"
        )


def _partial_credit(config: KrayConfig) -> Iterator[str]:
    reward, name = config.reward, "reasoning_gym"
    inherited = [
        (s.verifier, name if s.kind == name else reward.verifier) for s in (config.prompts.train, config.prompts.test)
    ]
    options = reward.options if reward.verifier == name else {}
    if options.get("partial", True) and any((own or default) == name for own, default in inherited):
        sentence = (
            "" if options.get("extract") else ", reward.options.extract=true takes the final answer out of a sentence"
        )
        whose = "" if reward.verifier == name else f" (options need reward.verifier={name})"
        yield (
            f"the verifier {name} gives partial credit: an answer that merely contains the right one, such as a sentence, "
            f"earns the task's partial credit. reward.options.partial=false gives full marks or nothing{sentence}{whose}"
        )
