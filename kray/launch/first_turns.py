"""What an environment's policy reads before its first turn: some episodes of each source are begun for `--check`."""

from __future__ import annotations

from collections.abc import Callable

from kray.config import KrayConfig
from kray.driver.prepare import EncodedSource, PolicyTokenizer, counted
from kray.environments import load_environment, options_of, role_turns, turns
from kray.environments.live import is_live
from kray.environments.registry import has_roles
from kray.environments.turns import PlainObservation
from kray.errors import ConfigError, DataError
from kray.prompts.tokenize import as_read, encode_opening
from kray.records import Prompt, derive_seed
from kray.rollout.views import merged
from kray.text import one_line

# Prompts of a source whose episodes are begun; their beginnings may differ in length.
BEGUN = 8


def first_turns(
    config: KrayConfig, prepared: EncodedSource, reader: PolicyTokenizer, printable: Callable[[str], str]
) -> list[str]:
    """Begin episodes of a source's first prompts, in this process.

    Live environments, whose servers would have to be started, are left out.

    Args:
        config: A configuration whose environment can be created.
        prepared: The source.
        reader: The policy's tokenizer.
        printable: Prepares a text for a terminal.

    Returns:
        Lines that show what is read before the first turn of the first prompt, for each role that reads anything.

    Raises:
        ConfigError: An episode does not begin, or its prompt with what is read is longer than prompts.max_tokens.
    """
    if not config.environment.name or is_live(load_environment(config.environment.name)):
        return []
    limit, lines = config.prompts.max_tokens, []
    for prompt, _ in prepared.encoded[:BEGUN]:
        try:
            read = {role: seen for role, seen in _observed(config, prompt).items() if seen}
            tokens = {
                role: encode_opening(prompt, seen, reader.tokenizer, prepared.loaded.source)
                for role, seen in read.items()
            }
        # Code of the environment's author.
        except Exception as error:
            why = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"environment: no episode of prompt {one_line(prompt.id)} begins: {one_line(why)}"
            ) from error
        for role, opening in tokens.items():
            read_first = f"{counted(len(opening), 'token')} with what {role} reads before the first turn"
            if len(opening) > limit:
                raise ConfigError(f"prompts.max_tokens is {limit}, but prompt {one_line(prompt.id)} has {read_first}")
            if prompt is prepared.encoded[0][0]:
                lines += [f"  {one_line(prompt.id)}, {read_first}"]
                lines += [f"  | {line}" for line in printable(as_read(opening, reader.tokenizer)).split("\n")]
    return lines


def _observed(config: KrayConfig, prompt: Prompt) -> dict[str, PlainObservation]:
    """Return what is read of an episode's reset, by role; "the policy" in an environment without roles."""
    name, options = config.environment.name, options_of(config.environment.options, prompt)
    start = (name, options, prompt, derive_seed(config.run.seed, "check", prompt.id))
    if not has_roles(load_environment(name)):
        return {"the policy": turns.begin("", start).observation}
    observed = role_turns.begin("", start).observed
    return {role: merged([seen for reader, seen in observed if reader == role]) for role, _ in observed}
