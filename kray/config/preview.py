"""The table of derived numbers that `--check` prints before anything is started."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kray.config.advice import warnings
from kray.config.placement import amounts, cluster_rows, requested
from kray.config.players import read_player
from kray.config.schema import KrayConfig
from kray.plan_modes import offered_share
from kray.records import Prompt
from kray.reward_settings import judges_of, reward_functions


def preview(
    config: KrayConfig,
    train: Sequence[Prompt],
    test: Sequence[Prompt],
    cluster: str,
    samples: Sequence[str] | None = None,
    memory: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the text that `--check` prints.

    Args:
        config: of the run.
        train: training prompts.
        test: test prompts.
        cluster: path of a cluster file on which the actors must fit, or "".
        samples: lines that show prompts as the policy reads them; None: some are shown as the data has them.
        memory: rows on memory.

    Raises:
        ConfigError: the actors do not fit on the cluster.
    """
    rows = derived(config, len(train), len(test)) + (cluster_rows(config, cluster) if cluster else [])
    rows += memory
    table = [f"{label:<26} {value}" for label, value in rows]
    warned = [f"warning: {line}" for line in warnings(config)]
    if samples is None:
        title = "first prompts, as the data has them"
        samples = [f"  {p.id}: {(p.text or p.messages)!r:.100} -> {p.answer!r:.40}" for p in train[:3]]
    else:
        title = "first prompts, as the policy reads them (special tokens between « and »; without, such characters are text)"
    return "\n".join([*table, *([""] if warned else []), *warned, "", title, *samples])


def derived(config: KrayConfig, train_prompts: int, test_prompts: int) -> list[tuple[str, str]]:
    """Return (label, value) rows of what follows from a configuration, given the number of prompts in its sources."""
    run, plan, per_step = config.run, config.plan, config.prompts.per_step
    share = offered_share(plan)
    scope = f"offered {share:g} x {per_step:,}" if share < math.inf else "all are offered"
    share = share if share < math.inf else max(1.0, train_prompts / per_step)
    responses = config.evaluate.samples + int(config.evaluate.greedy)
    evaluations = 2 + ((run.steps - 1) // config.evaluate.every if config.evaluate.every else 0)
    epochs = run.steps * per_step / train_prompts if train_prompts else float("nan")
    tokens = plan.budget * config.rollout.max_response_tokens
    return [
        ("model", config.model.path or "tiny policy, made and warmed up"),
        ("train prompts", f"{train_prompts:,}"),
        ("test prompts", f"{test_prompts:,}"),
        ("steps", f"{run.steps:,}"),
        (
            "prompts a step",
            f"up to {round(share * per_step):,}, {scope}" if share > 1 else f"{per_step:,}",
        ),
        ("rollouts a step", f"{plan.budget:,}"),
        (
            "mean rollouts per prompt",
            f"{'at least ' if share > 1 else ''}{plan.budget / (share * per_step):.1f} "
            f"(from {plan.lower} to {plan.upper}, {plan.mode})",
        ),
        ("response tokens a step", f"at most {tokens:,}"),
        ("rollouts in all", f"{run.steps * plan.budget:,}"),
        ("epochs", f"{epochs:.2f}" + (f" to {share * epochs:.2f}" if share > 1 else "")),
        ("optimizer steps", f"{run.steps * config.train.updates:,}"),
        ("evaluations", f"{evaluations:,} x {test_prompts * responses:,} responses"),
        *_actors(config),
    ]


def _actors(config: KrayConfig) -> list[tuple[str, str]]:
    rollout, train = config.rollout, config.train
    shared = ", each on the device of a rank" if rollout.colocate else ""
    return [
        ("driver", f"1 x {amounts(0, 0)}"),
        ("engines", f"{rollout.engines} x {amounts(rollout.cpus_per_engine, rollout.gpus_per_engine)}{shared}"),
        ("learner ranks", f"{train.ranks} x {amounts(train.cpus_per_rank, train.gpus_per_rank)}"),
        ("scorer processes", config.reward.url or f"{config.reward.workers}, in the driver's node"),
        *_functions(config),
        *_environment(config),
        ("actors request", amounts(*requested(config))),
    ]


def _functions(config: KrayConfig) -> list[tuple[str, str]]:
    """Return each of reward.functions with its share in the reward, and the judges."""
    functions = reward_functions(config.reward.functions)
    whole = sum(abs(function.weight) for function in functions.values())
    rows = [
        (
            f"reward of {name}",
            f"{abs(function.weight) / whole:.0%}, {function.verifier}{', low values' if function.weight < 0 else ''}",
        )
        for name, function in functions.items()
    ]
    sources = (config.prompts.train.verifier, config.prompts.test.verifier)
    judges = judges_of(config.reward, (config.reward.verifier, *sources))
    places = dict.fromkeys(f"{judge.model} at {judge.url}" for judge in judges.values())
    return rows + [("judge", place) for place in places]


def _environment(config: KrayConfig) -> list[tuple[str, str]]:
    environment = config.environment
    if not environment.name:
        return []
    players = {role: str(read_player(value, role)) for role, value in environment.roles.items()}
    against = {name: str(read_player(value, name)) for name, value in environment.evaluate_against.items()}
    shown = [("roles", players), ("evaluated against", against)]
    return [
        ("environment", f"{environment.name}, at most {environment.max_turns} turns"),
        *((label, ", ".join(f"{name}: {who}" for name, who in given.items())) for label, given in shown if given),
        ("environment processes", f"{environment.workers}, in the driver's node"),
    ]
