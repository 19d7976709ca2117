"""What a run and `--check` do alike before anything is started: read the policy's files, load the prompts, encode them.

Loads no Ray; torch only where transformers does, which is where a named model's configuration is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kray.config import KrayConfig, TinyPolicyConfig
from kray.config.schema import SourceConfig
from kray.environments import stops_of
from kray.prompts import load_prompts, load_tests
from kray.prompts.model_files import check_context, load_tokenizer, read_config, stop_ids
from kray.prompts.tokenize import as_read, check_template, encode_all, special_text
from kray.records import ConfigError, DataError, Prompt
from kray.train.supported import check_supported
from kray.train.tiny import MAX_POSITIONS, check_tiny, folder_of, lessons_of, tokenizer_of

Encoded = list[tuple[Prompt, tuple[int, ...]]]  # prompts with their tokens
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Reader:
    """What prompts need of a policy. vocabulary: how many tokens the model has; stop_ids: tokens that end a response."""

    tokenizer: Any
    vocabulary: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A source with its prompts. part: train | test. key: of the source in the configuration."""

    part: str
    key: str
    source: SourceConfig
    prompts: list[Prompt]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A source with the prompts that fit, encoded. dropped: ids of those longer than prompts.max_tokens."""

    loaded: Loaded
    encoded: Encoded
    dropped: list[str]


def context_tokens(config: KrayConfig) -> int:
    """Prompt and response together."""
    return config.rollout.max_context_tokens or config.prompts.max_tokens + config.rollout.max_response_tokens


def turn_stops(config: KrayConfig) -> tuple[str, ...]:
    """Texts that end the policy's turn in the environment, if there is one. Raises ConfigError."""
    try:
        return stops_of(config.environment.name) if config.environment.name else ()
    except ValueError as error:
        raise ConfigError(f"environment.name: {error}") from error


def read_policy(config: KrayConfig, model_path: str) -> Reader:
    """Read what prompts need of a model's folder or hub id, no weights.

    Raises:
        ConfigError: The model is not supported, its tokenizer cannot be used or is larger than it, or it has fewer positions
            than prompt and response take.
    """
    check_supported(read_config(model_path), context_tokens(config))
    tokenizer, vocabulary = load_tokenizer(model_path)
    check_context(model_path, context_tokens(config))
    stops = stop_ids(model_path, tokenizer)
    if min(stops) >= vocabulary:
        which = f"its end of sequence is token {min(stops)}, and the model has {vocabulary}"
        raise ConfigError(f"model.path: {model_path}: {which}, so that no response would end")
    return Reader(tokenizer, vocabulary, stops)


def read_tiny(config: KrayConfig, tiny: TinyPolicyConfig) -> Reader:
    """The same for a tiny policy, whether or not it has been made. Raises ConfigError."""
    check_tiny(tiny)
    folder = folder_of(tiny)
    if (folder / "config.json").is_file():
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    else:
        tokenizer = tokenizer_of(tiny, lessons_of(tiny))
    if (needed := context_tokens(config)) > MAX_POSITIONS:
        keys = "prompts.max_tokens + rollout.max_response_tokens (or rollout.max_context_tokens)"
        raise ConfigError(f"{keys} = {needed} is above the {MAX_POSITIONS} positions of a tiny policy (model.tiny)")
    return Reader(tokenizer, len(tokenizer), (tokenizer.eos_token_id,))


def load_sources(config: KrayConfig, part: str, say: Say) -> list[Loaded]:
    """Load the prompts of a part, train or test. Raises DataError, ConfigError."""
    verifier = config.reward.verifier
    if part == "train":
        source = config.prompts.train
        return [Loaded(part, "prompts.train", source, load_prompts(source, verifier, say))]
    names = ["prompts.test", *(f"prompts.more_tests.{name}" for name in config.prompts.more_tests)]
    found = load_tests(config.prompts, verifier, say)
    return [Loaded(part, name, source, prompts) for name, (source, prompts) in zip(names, found, strict=True)]


def encode(config: KrayConfig, loaded: Loaded, reader: Reader, say: Say) -> Prepared:
    """Encode a source's prompts as the policy reads them, without those that are too long.

    Raises:
        ConfigError: The chat template has no such variable.
        DataError: A prompt cannot be encoded, or too few are left.
    """
    source = loaded.source
    check_template(source, reader.tokenizer, loaded.key)
    if source.system and not (source.chat and getattr(reader.tokenizer, "chat_template", None)):
        why = "the tokenizer has no chat template" if source.chat else f"{loaded.key}.chat is false"
        say(f"warning: {loaded.key}.system is not used: {why}")
        source = replace(source, system="")
    limit = f"prompts.max_tokens is {config.prompts.max_tokens}"
    prompts, part = loaded.prompts, loaded.part
    kept, dropped = encode_all(prompts, reader.tokenizer, source, config.prompts.max_tokens, reader.vocabulary)
    if dropped:
        say(f"note: {len(dropped)} of {len(prompts)} {part} prompts dropped, longer than {limit}; first {dropped[0]}")
    least = config.prompts.per_step if part == "train" else 1
    if len(kept) < least:
        raise DataError(f"{loaded.key}: {len(kept)} of {len(prompts)} prompts are left, {least} are needed; {limit}")
    text = next((tokens for prompt, tokens in kept if prompt.text is not None), None)
    if source.system and text is not None and source.system.strip() not in as_read(text, reader.tokenizer):
        say(f"warning: {loaded.key}.system is not found in what the chat template makes of a prompt")
    spelt = {} if source.special_tokens else {p.id: special_text(p, reader.tokenizer) for p, _ in kept}
    if spelt := {prompt_id: token for prompt_id, token in spelt.items() if token}:
        first, token = next(iter(spelt.items()))
        say(
            f"note: {loaded.key}: special tokens in the text of {len(spelt)} of {len(kept)} prompts are read as text (first "
            f"{first}: {token!r}); prompts that have been through a chat template need chat: false and special_tokens: true"
        )
    return Prepared(loaded, kept, dropped)
