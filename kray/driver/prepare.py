"""What a run and `--check` do alike before anything is started: read the policy's tokenizer, load and encode the prompts.

Loads no Ray; torch only where transformers does, which is where a named model's configuration is read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from kray.config import KrayConfig, TinyPolicyConfig
from kray.config.memory import context_tokens
from kray.config.parallel import LayerCounts
from kray.config.prompts_schema import SourceConfig
from kray.environments import stops_of
from kray.errors import ConfigError, DataError
from kray.prompts import load_prompts as load_source
from kray.prompts import load_tests
from kray.prompts.chat_templates import check_template, lost_messages
from kray.prompts.model_files import check_context, check_divisible, load_tokenizer, read_config, stop_ids
from kray.prompts.tokenize import encode_all, reads_chat, special_in, special_text
from kray.records import EncodedPrompt, Prompt
from kray.train.supported_models import check_supported
from kray.train.tiny_files import (
    MAX_POSITIONS,
    VOCABULARY_GAMES,
    check_tiny,
    demonstrations_of,
    folder_of,
    games_of,
    tokenizer_of,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicyTokenizer:
    """What prompts need of a policy.

    Attributes:
        tokenizer: The tokenizer of transformers.
        vocabulary: How many tokens the model has.
        stop_ids: Tokens that end a response.
    """

    tokenizer: Any
    vocabulary: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadedSource:
    """A source with its prompts.

    Attributes:
        part: train or test.
        key: Of the source in the configuration, such as prompts.train.
        source: Its configuration.
        prompts: All prompts of the source.
    """

    part: str
    key: str
    source: SourceConfig
    prompts: list[Prompt]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle prompts as tuples: several times faster than as objects."""
        rows = [(p.id, p.answer, p.verifier, p.source, p.text, p.messages, p.metadata, p.columns) for p in self.prompts]
        return _loaded_source, (self.part, self.key, self.source, rows)


def _loaded_source(part: str, key: str, source: SourceConfig, rows: list[tuple[Any, ...]]) -> LoadedSource:
    return LoadedSource(part, key, source, [Prompt(*row) for row in rows])


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """The prompts of a run: one training source, and one or more test sets."""

    train: list[LoadedSource]
    test: list[LoadedSource]

    def of(self, part: str) -> list[Prompt]:
        """Return all prompts of a part, train or test."""
        return [prompt for source in (self.train if part == "train" else self.test) for prompt in source.prompts]


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """A source with its encoded prompts.

    Attributes:
        loaded: The source with all its prompts.
        encoded: Those that fit into prompts.max_tokens.
        dropped: Ids of the others.
    """

    loaded: LoadedSource
    encoded: list[EncodedPrompt]
    dropped: list[str]


def turn_stops(config: KrayConfig) -> tuple[str, ...]:
    """Return the texts that end the policy's turn in the environment, if there is one.

    Raises:
        ConfigError: There is no such environment.
    """
    try:
        return stops_of(config.environment.name) if config.environment.name else ()
    except ValueError as error:
        raise ConfigError(f"environment.name: {error}") from error


def read_policy(config: KrayConfig, model_path: str) -> PolicyTokenizer:
    """Read what prompts need of a model's folder or hub id, no weights.

    Raises:
        ConfigError: The model is not supported, GPUs of an engine or learner ranks cannot divide it, its tokenizer cannot be
            used or is larger than it, or it has fewer positions than prompt and response take.
    """
    check_supported(read_config(model_path), context_tokens(config))
    check_divisible(model_path, config.rollout.gpus_per_engine, config.train.context_parallel, config.train.ranks)
    tokenizer, vocabulary = load_tokenizer(model_path)
    check_context(model_path, context_tokens(config))
    stops = stop_ids(model_path, tokenizer)
    if min(stops) >= vocabulary:
        which = f"its end of sequence is token {min(stops)}, and the model has {vocabulary}"
        raise ConfigError(f"model.path: {model_path}: {which}, so that no response would end")
    return PolicyTokenizer(tokenizer, vocabulary, stops)


def read_tiny(config: KrayConfig, tiny: TinyPolicyConfig) -> PolicyTokenizer:
    """Read what prompts need of a tiny policy, whether or not it has been made.

    Raises:
        ConfigError: The tiny policy has a setting that it cannot have, or too few positions.
    """
    check_tiny(tiny)
    folder = folder_of(tiny)
    if (folder / "config.json").is_file():
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    else:
        tokenizer = tokenizer_of(tiny, demonstrations_of(tiny), games_of(tiny, VOCABULARY_GAMES))
    if (needed := context_tokens(config)) > MAX_POSITIONS:
        keys = "prompts.max_tokens + rollout.max_response_tokens (or rollout.max_context_tokens)"
        raise ConfigError(f"{keys} = {needed} is above the {MAX_POSITIONS} positions of a tiny policy (model.tiny)")
    counts = LayerCounts(tiny.heads, tiny.kv_heads, tiny.intermediate_size, len(tokenizer))
    train = config.train
    problem = counts.problem(config.rollout.gpus_per_engine)
    if problem := problem or counts.context_problem(train.context_parallel, train.ranks):
        raise ConfigError(f"{problem} (model.tiny)")
    return PolicyTokenizer(tokenizer, len(tokenizer), (tokenizer.eos_token_id,))


def load_prompts(config: KrayConfig) -> LoadedPrompts:
    """Load the prompts of a run from their sources.

    Raises:
        DataError: A source cannot be read; names the file, the line and the field.
        ConfigError: A key of a source is wrong.
    """
    source, verifier = config.prompts.train, config.reward.verifier
    train = [LoadedSource("train", "prompts.train", source, load_source(source, verifier))]
    keys = ["prompts.test", *(f"prompts.more_tests.{name}" for name in config.prompts.more_tests)]
    tests = load_tests(config.prompts, verifier)
    test = [LoadedSource("test", key, source, found) for key, (source, found) in zip(keys, tests, strict=True)]
    return LoadedPrompts(train, test)


def encode(config: KrayConfig, loaded: LoadedSource, reader: PolicyTokenizer) -> EncodedSource:
    """Encode a source's prompts as the policy reads them, without those that are too long.

    Raises:
        ConfigError: The chat template has no such variable.
        DataError: A prompt cannot be encoded, too few are left, or all of them read the same.
    """
    source, key, prompts = loaded.source, loaded.key, loaded.prompts
    tokenizer = reader.tokenizer
    check_template(source, tokenizer, key)
    if not reads_chat(tokenizer, source):
        why = f"{key}.chat is false" if not source.chat else "the tokenizer has no chat template"
        if chats := next((prompt for prompt in prompts if prompt.text is None), None):
            raise DataError(f"prompt {chats.id}: it holds chat messages, but {why}")
        if source.system:
            logger.warning(f"{key}.system is not used: {why}")
            source = replace(source, system="")
    limit = config.prompts.max_tokens
    kept, dropped = encode_all(prompts, tokenizer, source, limit, reader.vocabulary)
    if dropped:
        longer = f"{len(dropped):,} of {counted(len(prompts), f'{loaded.part} prompt')}"
        logger.info(f"note: {longer} dropped: longer than prompts.max_tokens, which is {limit}; first {dropped[0]}")
    least = config.prompts.per_step if loaded.part == "train" else 1
    if len(kept) < least:
        left = f"{len(kept):,} of {counted(len(prompts), 'prompt')} {'is' if len(kept) == 1 else 'are'} left"
        needed = f"{least:,} {'is' if least == 1 else 'are'} needed"
        raise DataError(f"{key}: {left}, {needed}; prompts.max_tokens is {limit}")
    _check_differ(loaded, kept)
    _warn_of_lost_messages(loaded, source, kept, tokenizer)
    _report_special_tokens(loaded, source, kept, tokenizer)
    return EncodedSource(loaded, kept, dropped)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 prompt, 2,000 prompts."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _check_differ(loaded: LoadedSource, kept: list[EncodedPrompt]) -> None:
    """Raise DataError for prompts that differ and that the policy would read as one."""
    (first, tokens), *others = kept
    if all(read == tokens for _, read in others) and any(
        (prompt.text, prompt.messages) != (first.text, first.messages) for prompt, _ in others
    ):
        raise DataError(
            f"{loaded.key}: all {len(kept):,} prompts read the same, though they differ: what makes a difference is lost in "
            "the chat template or in the tokenizer"
        )


def _warn_of_lost_messages(
    loaded: LoadedSource, source: SourceConfig, kept: list[EncodedPrompt], tokenizer: Any
) -> None:
    """Warn of messages that the chat template leaves out or cuts."""
    if not reads_chat(tokenizer, source):
        return
    for role, (lost, of, first) in lost_messages([prompt for prompt, _ in kept], tokenizer, source).items():
        what = (
            f"{loaded.key}.system" if role == "system" and source.system else f"{loaded.key}: a message of the {role}"
        )
        many = (
            f"in {lost:,} of {counted(of, 'prompt')}"
            if of == len(kept)
            else f"in {lost:,} of {of:,} that were looked at"
        )
        logger.warning(f"{what} is not found whole in what the chat template makes of a prompt: {many}, first {first}")


def _report_special_tokens(
    loaded: LoadedSource, source: SourceConfig, kept: list[EncodedPrompt], tokenizer: Any
) -> None:
    """Log special tokens that are spelt in prompts, in their template or in the system message."""
    chat, whole = reads_chat(tokenizer, source), source.special_tokens
    if whole and not chat:
        return
    spelt = [(p.id, token) for p, _ in kept if (token := special_text(p, tokenizer))]
    found = (
        [("in the text of {} of {}".format(f"{len(spelt):,}", counted(len(kept), "prompt")), *spelt[0])]
        if spelt
        else []
    )
    if any(prompt.text is not None for prompt, _ in kept):  # messages have neither template nor system message
        for name, text in (("template", source.template), ("system", source.system)):
            if token := special_in(text, tokenizer):
                found.append((f"in {loaded.key}.{name}", "", token))
    if whole:
        how = "are read as such, inside messages around which the chat template writes its own"
        advice = "prompts that have been through a chat template need chat: false"
    else:
        how = "are read as text"
        advice = "prompts that have been through a chat template need chat: false and special_tokens: true"
    for where, first, token in found:
        example = f"first {first}: {token!r}" if first else f"first {token!r}"
        line = f"{loaded.key}: special tokens {where} {how} ({example}); {advice}"
        if first:
            logger.info(f"note: {line}")
        else:
            logger.warning(line)
