"""What is read and checked before anything is started: prompts, verifiers, the environment."""

from __future__ import annotations

from kray.config import KrayConfig
from kray.driver.output import SilentConsole, logged_to
from kray.errors import ConfigError, DataError
from kray.records import Prompt


def load_both(config: KrayConfig) -> tuple[list[Prompt], list[Prompt]]:
    """(train, test) prompts, so that bad data shows before anything is started. Raises DataError, ConfigError."""
    from kray.driver.prepare import load_sources

    # The driver loads them again and reports what is to be known about them.
    with logged_to(SilentConsole()):
        train, test = (
            [prompt for loaded in load_sources(config, part) for prompt in loaded.prompts] for part in ("train", "test")
        )
    check_prompts(config, train, test)
    return train, test


def check_prompts(config: KrayConfig, train: list[Prompt], test: list[Prompt]) -> None:
    """Refuse verifiers, an environment and answers that cannot be used. Raises DataError, ConfigError."""
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
