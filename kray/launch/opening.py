"""The lines with which a training opens: what is going to happen, how long it takes, and where its results go."""

from __future__ import annotations

from pathlib import Path

from kray.config import KrayConfig
from kray.config.schema import TinyPolicyConfig
from kray.driver.prepare import LoadedPrompts
from kray.monitor.durations import format_duration
from kray.plan_modes import offered_prompts, offered_share
from kray.train.packaged_model import folder_of_package, is_packaged
from kray.train.tiny_files import folder_of

# Seconds on two CPU cores without a GPU, measured with configs/tiny.yaml (a tiny policy of 4 layers of width 128, one
# engine and one learner rank): the start of Ray's actors, a response token of training, one of evaluation, and a step of the
# warm-up. Estimates for policies up to that size are made of them; there are none for others.
START_S = 25.0
TRAINING_TOKEN_S = 1.0e-4
EVALUATION_TOKEN_S = 7.5e-5
WARMUP_STEP_S = 0.24
MEASURED_WIDTH, MEASURED_LAYERS = 128, 4


def opening(config: KrayConfig, prompts: LoadedPrompts, folder: Path | None, step: int) -> list[str]:
    """Return three lines for people.

    Args:
        config: The configuration of the run.
        prompts: Its prompts.
        folder: The run folder to go on in, None for a new run.
        step: The completed steps.
    """
    run, plan, tiny = config.run, config.plan, config.model.tiny
    policy = "a tiny policy" if tiny is not None else config.model.path
    begin = f"going on after step {step} of {run.steps}, training" if folder else "training"
    trained, tested = len(prompts.of("train")), len(prompts.of("test"))
    offered = offered_prompts(plan, config.prompts.per_step, trained)
    per_step = f"up to {offered:,}" if offered_share(plan) > 1 else f"{config.prompts.per_step}"
    source = config.prompts.train.kind
    first = (
        f"{begin} {policy} on {trained:,} prompts ({source}): {run.steps - step:,} steps of {per_step} "
        f"prompts and {plan.budget:,} rollouts (plan.mode {plan.mode})"
    )
    times = [] if step else ["before training"]
    times += [f"every {config.evaluate.every} steps"] if 0 < config.evaluate.every < run.steps - step else []
    times += ["after training"]
    evaluated = (
        f"evaluation on {tested:,} held-out prompts {', '.join(times[:-1])}{' and ' if times[:-1] else ''}{times[-1]}"
    )
    warmup = f"the tiny policy is made first, once: {_warmup(tiny)}; " if tiny and not _is_made(tiny) else ""
    if is_packaged(config.model.path) and not (folder_of_package(config.model.path) / "config.json").is_file():
        warmup = "the model is fetched and converted first, once; "
    seconds = _estimate_s(config, tested, step)
    if seconds is None:
        total = "the time left is printed with every step"
    else:
        total = f"about {format_duration(seconds)} in all on two CPU cores"
    where = f"in {folder}" if folder else f"in a new folder in {run.dir}"
    last = f"results: {where}; Ctrl-C saves a checkpoint and ends, resume=auto goes on from it"
    return [first, f"{warmup}{evaluated}; {total}", last]


def _is_made(tiny: TinyPolicyConfig) -> bool:
    return (folder_of(tiny) / "config.json").is_file()


def _is_measured(tiny: TinyPolicyConfig | None) -> bool:
    return tiny is not None and tiny.hidden_size <= MEASURED_WIDTH and tiny.layers <= MEASURED_LAYERS and not tiny.tasks


def _warmup(tiny: TinyPolicyConfig) -> str:
    if not _is_measured(tiny):
        return f"{tiny.warmup_steps} steps of warm-up"
    return f"about {format_duration(tiny.warmup_steps * WARMUP_STEP_S)}"


def _estimate_s(config: KrayConfig, test_prompts: int, step: int) -> float | None:
    """Return the seconds that the rest of the run takes, None where nothing was measured."""
    tiny, rollout, train = config.model.tiny, config.rollout, config.train
    gpus = rollout.gpus_per_engine + train.gpus_per_rank
    if tiny is None or not _is_measured(tiny) or config.environment.name or config.plan.unit != "rollouts" or gpus:
        return None
    steps, tokens = config.run.steps - step, rollout.max_response_tokens
    responses = test_prompts * (config.evaluate.samples + int(config.evaluate.greedy))
    evaluations = (1 if step else 2) + ((steps - 1) // config.evaluate.every if config.evaluate.every else 0)
    seconds = START_S + steps * config.plan.budget * tokens * TRAINING_TOKEN_S
    seconds += evaluations * responses * tokens * EVALUATION_TOKEN_S
    return seconds + (0.0 if _is_made(tiny) else tiny.warmup_steps * WARMUP_STEP_S)
