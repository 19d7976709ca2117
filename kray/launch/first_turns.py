"""What an environment's policy reads before its first turn: some episodes of each source are begun for `--check`.

They are begun in a process of their own, as a run begins them, so that one that hangs is refused in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from kray.config import KrayConfig
from kray.driver.prepare import EncodedSource, PolicyTokenizer, counted
from kray.environments import load_environment
from kray.environments.live import is_live
from kray.environments.registry import has_roles
from kray.environments.role_workers import RoleWorkers
from kray.environments.turns import PlainObservation
from kray.environments.workers import ENVIRONMENT, EnvironmentWorkers
from kray.errors import ConfigError, DataError
from kray.prompts.tokenize import as_read, encode_opening
from kray.records import Prompt, derive_seed
from kray.rewards.outcome import TIMED_OUT
from kray.rollout.views import merged
from kray.text import one_line

# Prompts of a source whose episodes are begun; their beginnings may differ in length.
BEGUN = 8


def first_turns(
    config: KrayConfig, prepared: EncodedSource, reader: PolicyTokenizer, printable: Callable[[str], str]
) -> list[str]:
    """Begin episodes of a source's first prompts.

    Live environments, whose servers would have to be started, are left out.

    Args:
        config: A configuration whose environment can be created.
        prepared: The source.
        reader: The policy's tokenizer.
        printable: Prepares a text for a terminal.

    Returns:
        Lines that show what is read before the first turn of the first prompt, for each role that reads anything.

    Raises:
        ConfigError: An episode does not begin within environment.step_timeout_s, or its prompt with what is read is longer
            than prompts.max_tokens.
    """
    if not config.environment.name or is_live(load_environment(config.environment.name)):
        return []
    return asyncio.run(_first_turns(config, prepared, reader, printable))


async def _first_turns(
    config: KrayConfig, prepared: EncodedSource, reader: PolicyTokenizer, printable: Callable[[str], str]
) -> list[str]:
    limit, lines = config.prompts.max_tokens, []
    prompts = [prompt for prompt, _ in prepared.encoded[:BEGUN]]
    async with aclosing(_observed(config, prompts)) as begun:
        async for prompt, seen in begun:
            for role, read in seen.items():
                try:
                    opening = encode_opening(prompt, read, reader.tokenizer, prepared.loaded.source)
                except DataError as error:
                    raise _no_episode(config, prompt, str(error)) from error
                read_first = f"{counted(len(opening), 'token')} with what {role} reads before the first turn"
                if len(opening) > limit:
                    raise ConfigError(
                        f"prompts.max_tokens is {limit}, but prompt {one_line(prompt.id)} has {read_first}"
                    )
                if prompt is prompts[0]:
                    lines += [f"  {one_line(prompt.id)}, {read_first}"]
                    lines += [f"  | {line}" for line in printable(as_read(opening, reader.tokenizer)).split("\n")]
    return lines


async def _observed(
    config: KrayConfig, prompts: Sequence[Prompt]
) -> AsyncGenerator[tuple[Prompt, dict[str, PlainObservation]]]:
    """Yield each prompt with what is read of its episode's reset, by role; "the policy" in an environment without roles."""
    environment, memory_gib = config.environment, config.reward.memory_gib
    roles = has_roles(load_environment(environment.name))
    workers = RoleWorkers(environment, memory_gib) if roles else EnvironmentWorkers(environment, memory_gib)
    try:
        # One after the other, so that the first that hangs is the last that is waited for.
        for prompt in prompts:
            start = (prompt, derive_seed(config.run.seed, "check", prompt.id))
            if isinstance(workers, RoleWorkers):
                (episode,) = await workers.begin_episodes([start])
                if isinstance(episode, str):
                    raise _no_episode(config, prompt, episode)
                readers = dict.fromkeys(reader for reader, _ in episode.observed)
                each = {role: merged([seen for who, seen in episode.observed if who == role]) for role in readers}
            else:
                (turn,) = await workers.begin([start])
                if isinstance(turn, str):
                    raise _no_episode(config, prompt, turn)
                each = {"the policy": turn.observation}
            yield prompt, {role: seen for role, seen in each.items() if seen}
    finally:
        workers.close()


def _no_episode(config: KrayConfig, prompt: Prompt, why: str) -> ConfigError:
    environment = config.environment
    why = why.removeprefix(ENVIRONMENT)
    if why.startswith(TIMED_OUT):
        limit = f"within {environment.step_timeout_s:g} s (environment.step_timeout_s)"
        why = f"{environment.name} did not answer to its creation and reset {limit}"
    return ConfigError(f"environment: no episode of prompt {one_line(prompt.id)} begins: {one_line(why)}")
