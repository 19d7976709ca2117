"""From a prompt to the tokens that the policy reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kray.config.schema import SourceConfig
from kray.records import DataError, Prompt


def encode_prompt(prompt: Prompt, tokenizer: Any, source: SourceConfig) -> tuple[int, ...]:
    """The prompt's token ids, (P,) with P >= 1.

    source.template wraps a text prompt. With source.chat and a tokenizer that has a chat template, a text prompt becomes
    a user message (after source.system), the template is applied and the assistant's turn is opened. Otherwise the text
    is encoded with the tokenizer's own leading special tokens, and never an end of sequence.
    Special tokens written inside a prompt's text stay text: they give no control over the conversation.
    Raises DataError that names the prompt.
    """
    if source.chat and getattr(tokenizer, "chat_template", None):
        tokens = _encode_chat(_messages(prompt, source), tokenizer, prompt.id)
    elif prompt.text is None:
        why = "source.chat is off" if not source.chat else "the tokenizer has no chat template"
        raise DataError(f"prompt {prompt.id}: it holds chat messages, but {why}")
    else:
        tokens = list(tokenizer(_wrap(prompt, source), split_special_tokens=True)["input_ids"])
        while tokens and tokens[-1] == tokenizer.eos_token_id:  # some tokenizers close every text
            tokens.pop()
    if not tokens:
        raise DataError(f"prompt {prompt.id}: it has no tokens")
    return tuple(int(token) for token in tokens)


def encode_all(
    prompts: Sequence[Prompt], tokenizer: Any, source: SourceConfig, max_tokens: int
) -> tuple[list[tuple[Prompt, tuple[int, ...]]], list[str]]:
    """(prompts that fit with their tokens, ids of those longer than max_tokens)."""
    kept, dropped = [], []
    for prompt in prompts:
        tokens = encode_prompt(prompt, tokenizer, source)
        if len(tokens) > max_tokens:
            dropped.append(prompt.id)
        else:
            kept.append((prompt, tokens))
    return kept, dropped


def _wrap(prompt: Prompt, source: SourceConfig) -> str:
    if not source.template:
        return prompt.text or ""
    try:
        wrapped = source.template.format(prompt=prompt.text)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        message = f"template {source.template!r}: {type(error).__name__}: {error} (braces of its own are written {{{{ and }}}})"
        raise DataError(message) from None
    if prompt.text and prompt.text not in wrapped:
        raise DataError(f"template {source.template!r} does not hold {{prompt}}")
    return wrapped


def _messages(prompt: Prompt, source: SourceConfig) -> list[dict[str, str]]:
    if prompt.messages is not None:
        return [dict(message) for message in prompt.messages]
    system = [{"role": "system", "content": source.system}] if source.system else []
    return [*system, {"role": "user", "content": _wrap(prompt, source)}]


def _encode_chat(messages: Sequence[Mapping[str, str]], tokenizer: Any, prompt_id: str) -> list[int]:
    special = [token for token in tokenizer.all_special_tokens if token]
    contents = [message["content"] for message in messages]
    if not any(token in content for token in special for content in contents):
        return _encode(_render(messages, tokenizer, prompt_id), tokenizer)
    # Rare: render with placeholders, so that what the template wrote and what the prompt wrote are told apart.
    marks = [f"\ue000{index}\ue001" for index in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    tokens, rest = [], _render(marked, tokenizer, prompt_id)
    for mark, content in zip(marks, contents, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise DataError(
                f"prompt {prompt_id}: it holds a special token, and the chat template rewrites its messages"
            )
        tokens += _encode(before, tokenizer) + _encode(content, tokenizer, split_special_tokens=True)
    return tokens + _encode(rest, tokenizer)


def _render(messages: Sequence[Mapping[str, str]], tokenizer: Any, prompt_id: str) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates refuse roles and orders in ways of their own
        raise DataError(f"prompt {prompt_id}: the chat template refuses its messages: {error}") from error


def _encode(text: str, tokenizer: Any, **options: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"]) if text else []
