"""What is read and checked before anything is started: prompts, verifiers, the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from kray.config import KrayConfig
from kray.config.players import Player, read_players
from kray.errors import ConfigError, DataError
from kray.records import Prompt
from kray.reward_settings import FUNCTIONS, JUDGE, judges_of, read_range, reward_functions
from kray.rollout.vllm_options import check_options

if TYPE_CHECKING:
    from kray.driver.prepare import LoadedPrompts


def load_checked_prompts(config: KrayConfig) -> LoadedPrompts:
    """Load the prompts of a run and check them, so that bad data is reported before anything is started.

    Raises:
        DataError: A source cannot be read, or its verifier cannot use an answer.
        ConfigError: A verifier or the environment cannot be used, or a step needs more prompts than there are.
    """
    from kray.driver.prepare import load_prompts

    check_options(config.rollout.vllm)
    prompts = load_prompts(config)
    check_prompts(config, prompts.of("train"), prompts.of("test"))
    return prompts


def check_prompts(config: KrayConfig, train: list[Prompt], test: list[Prompt]) -> None:
    """Refuse verifiers, an environment and answers that cannot be used.

    Raises:
        DataError: A verifier cannot use an answer.
        ConfigError: A verifier or the environment cannot be used, or a step needs more prompts than there are.
    """
    from kray.environments import gives_reward

    checks = {name: _checks(config, name) for name in sorted({prompt.verifier for prompt in train + test})}
    if config.environment.name:
        _check_environment(config, train + test)
    judged = not (config.environment.name and gives_reward(config.environment.name))
    for prompt in train + test if judged else []:
        try:
            for check in checks[prompt.verifier]:
                check(prompt)
        except ValueError as error:
            raise DataError(f"prompt {prompt.id}: {error}") from error
    if config.prompts.per_step > len(train):
        raise ConfigError(
            f"prompts.per_step is {config.prompts.per_step}, but there are only {len(train)} training prompts"
        )


def _checks(config: KrayConfig, name: str) -> list[Callable[[Prompt], object]]:
    """Check a verifier, or the functions and judges that it stands for.

    Returns:
        Checks of a prompt that raise ValueError where it cannot be scored, one for each function and judge.

    Raises:
        ConfigError: One cannot be used.
    """
    from kray.rewards import check_prompt, check_verifier, load_verifier
    from kray.rewards.judge import api_key
    from kray.rewards.judge_text import judge_request
    from kray.rewards.outcome import conflict
    from kray.rewards.verifiers import declared_range

    reward = config.reward
    try:
        judges = judges_of(reward, [name])
        if name == FUNCTIONS:
            functions = reward_functions(reward.functions)
            asked = [
                (f"reward.functions.{key}", function.verifier, function.options) for key, function in functions.items()
            ]
        else:
            asked = [("reward.verifier", name, reward.options if name == reward.verifier else {})]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for judge in judges.values():
        api_key(judge)
    checks: list[Callable[[Prompt], object]] = [
        partial(lambda prompt, judge: judge_request(judge, prompt, ""), judge=judge) for judge in judges.values()
    ]
    for key, verifier, options in asked:
        if verifier == JUDGE:
            continue
        try:
            check_verifier(verifier, **options)
            if key == "reward.verifier" and verifier == reward.verifier:
                declared = declared_range(load_verifier(verifier), verifier)
                if wrong := conflict(verifier, declared, read_range(reward.range, "reward.range")):
                    raise ConfigError(wrong)
        except (ValueError, ImportError, AttributeError, TypeError) as error:
            raise ConfigError(f"{key}: {error}") from error
        checks.append(partial(check_prompt, verifier, options=options))
    return checks


def _different(options: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({repr(each): each for each in options}.values())


def _check_environment(config: KrayConfig, prompts: list[Prompt]) -> None:
    """Raise ConfigError for an environment or players that cannot be used."""
    from kray.environments import check_environment, check_players, options_of, roles_of

    environment = config.environment
    name, options = environment.name, environment.options
    players = read_players(environment.roles, "environment.roles")
    try:
        for each in _different(options_of(options, prompt) for prompt in prompts):
            check_environment(name, each)
        check_players(
            name, options, players, read_players(environment.evaluate_against, "environment.evaluate_against")
        )
        roles = roles_of(name, options)
    except ValueError as error:
        raise ConfigError(f"environment: {error}") from error
    learning = [role for role in roles if players.get(role, Player()).learns]
    if config.train.baseline == "batch" and len(learning) > 1:
        both = " and ".join(learning)
        raise ConfigError(
            f"train.baseline batch would compare the rewards of {both} with one mean, so that a role's edge would be learned; "
            "use belief or group"
        )
