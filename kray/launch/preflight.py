"""What is read and checked before anything is started: prompts, verifiers, the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kray.config import KrayConfig
from kray.errors import ConfigError, DataError
from kray.records import Prompt

if TYPE_CHECKING:
    from kray.driver.prepare import LoadedPrompts


def load_checked_prompts(config: KrayConfig) -> LoadedPrompts:
    """Load the prompts of a run and check them, so that bad data is reported before anything is started.

    Raises:
        DataError: A source cannot be read, or its verifier cannot use an answer.
        ConfigError: A verifier or the environment cannot be used, or a step needs more prompts than there are.
    """
    from kray.driver.prepare import load_prompts

    prompts = load_prompts(config)
    check_prompts(config, prompts.of("train"), prompts.of("test"))
    return prompts


def check_prompts(config: KrayConfig, train: list[Prompt], test: list[Prompt]) -> None:
    """Refuse verifiers, an environment and answers that cannot be used.

    Raises:
        DataError: A verifier cannot use an answer.
        ConfigError: A verifier or the environment cannot be used, or a step needs more prompts than there are.
    """
    from kray.environments import check_environment
    from kray.rewards import check_answer, check_verifier

    for name in sorted({prompt.verifier for prompt in train + test}):
        try:
            check_verifier(name, **(config.reward.options if name == config.reward.verifier else {}))
        except (ValueError, ImportError, AttributeError, TypeError) as error:
            raise ConfigError(f"reward.verifier: {error}") from error
    if config.environment.name:
        try:
            check_environment(config.environment.name, config.environment.options)
        except ValueError as error:
            raise ConfigError(f"environment: {error}") from error
    for prompt in train + test:
        try:
            check_answer(prompt.verifier, prompt.answer)
        except ValueError as error:
            raise DataError(f"prompt {prompt.id}: {error}") from error
    if config.prompts.per_step > len(train):
        raise ConfigError(
            f"prompts.per_step is {config.prompts.per_step}, but there are only {len(train)} training prompts"
        )
