"""Encode prompts, and the turns of an environment, as the tokens that the policy reads."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from kray.config.prompts_schema import SourceConfig
from kray.config.templates import fill
from kray.errors import DataError
from kray.records import EncodedPrompt, Prompt

# Private-use characters around the number of a message, which stand for its content while a template is rendered.
_MARK, _MARK_END = "\ue000", "\ue001"


def encode_prompt(prompt: Prompt, tokenizer: Any, source: SourceConfig) -> tuple[int, ...]:
    """Encode a prompt.

    With source.chat and a tokenizer that has a chat template, a text prompt becomes a user message (after source.system), the
    template is rendered with source.chat_template_kwargs, and the assistant's turn is opened. Otherwise the text is encoded
    with the tokenizer's own leading special tokens, and never with an end of sequence. Special tokens spelled out in a
    prompt's text are encoded as text unless source.special_tokens is set, so that data cannot control the conversation. Other
    added tokens of the tokenizer (some models' <think>) are tokens anywhere.

    Args:
        prompt: The prompt.
        tokenizer: The model's tokenizer.
        source: The prompt's source; its template wraps a text prompt.

    Returns:
        (P,) token ids with P >= 1.

    Raises:
        DataError: The prompt cannot be encoded; the message names it.
    """
    if reads_chat(tokenizer, source):
        tokens = _encode_chat(messages_of(prompt, source), tokenizer, prompt.id, source)
    elif prompt.text is None:
        why = "chat is false for its source" if not source.chat else "the tokenizer has no chat template"
        raise DataError(f"prompt {prompt.id}: it holds chat messages, but {why}")
    else:
        text = _wrap(prompt, source)
        if not source.special_tokens and any(token in text for token in _special(tokenizer)):
            # Raises where the tokenizer cannot encode special tokens as text.
            _encode_text(text, tokenizer, prompt.id)
        tokens = list(tokenizer(text, split_special_tokens=not source.special_tokens)["input_ids"])
        # Some tokenizers end every text.
        while tokens and tokens[-1] == tokenizer.eos_token_id:
            tokens.pop()
    if not tokens:
        raise DataError(f"prompt {prompt.id}: it has no tokens")
    return tuple(int(token) for token in tokens)


def as_read(tokens: Sequence[int], tokenizer: Any) -> str:
    """Decode token ids with every special token between « and »: «<|im_end|>».

    The same characters as text stay as they are; where text has these marks, too, a backslash is added: «\\<|im_end|>».

    Args:
        tokens: Token ids.
        tokenizer: The model's tokenizer.
    """
    special = sorted(_special(tokenizer), key=len, reverse=True)
    whole = _decode(tokens, tokenizer)
    if not any(token in whole for token in special):
        return whole
    control = {tokenizer.convert_tokens_to_ids(token): token for token in special}
    spelled = re.compile("|".join(map(re.escape, special)))
    # Each special token ("" at the beginning) with the text up to the next.
    pieces: list[tuple[str, str]] = []
    # What each match in the whole text is: a special token, or "" for the same characters as text.
    order: list[str] = []
    ends = [-1, *(place for place, token in enumerate(tokens) if token in control), len(tokens)]
    for start, end in pairwise(ends):
        token, text = control[tokens[start]] if start >= 0 else "", _decode(tokens[start + 1 : end], tokenizer)
        pieces.append((token, text))
        order += [token] * bool(token) + [""] * len(spelled.findall(text))
    found = list(spelled.finditer(whole))
    if len(found) == len(order) and all(kind in ("", match.group()) for match, kind in zip(found, order, strict=True)):
        # Taken from the whole text: some tokenizers drop the first space of a part decoded by itself.
        starts = [("", 0, 0), *((kind, *match.span()) for match, kind in zip(found, order, strict=True) if kind)]
        stops = [*(start for _, start, _ in starts[1:]), len(whole)]
        pieces = [(token, whole[end:stop]) for (token, _, end), stop in zip(starts, stops, strict=True)]
    return "".join((f"«{token}»" if token else "") + _escaped(text, spelled) for token, text in pieces)


def _escaped(text: str, spelled: re.Pattern[str]) -> str:
    return re.sub(f"«(?=(?:{spelled.pattern})»)", r"«\\", text)


def _decode(tokens: Sequence[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def special_in(text: str, tokenizer: Any) -> str | None:
    """Return the first special token that a text spells out; None without one."""
    return min((token for token in _special(tokenizer) if token in text), key=text.index, default=None)


def special_text(prompt: Prompt, tokenizer: Any) -> str | None:
    """Return the first special token that a prompt's own text spells out; None without one."""
    texts = [prompt.text or ""] if prompt.messages is None else [message["content"] for message in prompt.messages]
    return next((token for text in texts if (token := special_in(text, tokenizer))), None)


def reads_chat(tokenizer: Any, source: SourceConfig) -> bool:
    """Return whether the source's prompts are rendered by the tokenizer's chat template."""
    return source.chat and bool(getattr(tokenizer, "chat_template", None))


def encode_all(
    prompts: Sequence[Prompt], tokenizer: Any, source: SourceConfig, max_tokens: int, vocabulary: int
) -> tuple[list[EncodedPrompt], list[str]]:
    """Encode the prompts of a source.

    Args:
        prompts: The prompts.
        tokenizer: The model's tokenizer.
        source: Their source.
        max_tokens: Longest prompt that is kept, in tokens.
        vocabulary: Size of the model's vocabulary.

    Returns:
        (encoded prompts, ids of those that are too long).

    Raises:
        DataError: A prompt cannot be encoded, or a token is not in the vocabulary, where engines or learner would fail.
    """
    kept, dropped = [], []
    for prompt in prompts:
        tokens = encode_prompt(prompt, tokenizer, source)
        if max(tokens) >= vocabulary:
            beyond = f"token {max(tokens)} ({tokenizer.decode([max(tokens)])!r}) is not among the model's {vocabulary}"
            raise DataError(f"prompt {prompt.id}: {beyond}: tokenizer and model do not belong together")
        if len(tokens) > max_tokens:
            dropped.append(prompt.id)
        else:
            kept.append(EncodedPrompt(prompt, tokens))
    return kept, dropped


def encode_opening(
    prompt: Prompt, opening: str | Sequence[Mapping[str, str]], tokenizer: Any, source: SourceConfig
) -> tuple[int, ...]:
    """Encode a prompt with what an environment adds before the policy's first turn.

    Args:
        prompt: The prompt.
        opening: Text, which continues the prompt's text or its last message, or messages, which follow the prompt's.
        tokenizer: The model's tokenizer.
        source: The prompt's source.

    Returns:
        (P,) token ids.

    Raises:
        DataError: They cannot be encoded; the message names the prompt.
    """
    return encode_prompt(with_opening(prompt, opening, source), tokenizer, source)


def with_opening(prompt: Prompt, opening: str | Sequence[Mapping[str, str]], source: SourceConfig) -> Prompt:
    """Return a prompt that holds what an environment adds before the first turn; see `encode_opening`."""
    if not isinstance(opening, str):
        messages = (*messages_of(prompt, source), *opening)
    elif prompt.messages is None:
        return replace(prompt, text=f"{prompt.text}{opening}")
    else:
        last = {**prompt.messages[-1], "content": prompt.messages[-1]["content"] + opening}
        messages = (*prompt.messages[:-1], last)
    return replace(prompt, text=None, messages=messages)


def encode_answer(
    answer: str | Sequence[Mapping[str, str]],
    last_token: int,
    tokenizer: Any,
    prompt_id: str,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Encode an environment's turn between two turns of the policy; special tokens in it are text.

    Args:
        answer: Text, which is encoded by itself, or messages, which the chat template renders with the end of the policy's
            turn and the beginning of its next.
        last_token: The last token that the policy sampled; an end of turn is not repeated.
        tokenizer: The model's tokenizer.
        prompt_id: For messages.
        variables: Variables of the chat template, as in the prompt's source.

    Returns:
        Token ids.

    Raises:
        DataError: The turn cannot be encoded; the message names the prompt.
    """
    if isinstance(answer, str):
        return _encode_text(answer, tokenizer, prompt_id)
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"prompt {prompt_id}: the environment answers in messages, but the tokenizer has no chat template"
        )
    rewritten = _rewritten(prompt_id, "the environment answers in messages")
    marks = [f"{_MARK}{index}{_MARK_END}" for index in range(len(answer) + 1)]
    before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marks[0]}]
    marked = [{**message, "content": mark} for message, mark in zip(answer, marks[1:], strict=True)]
    _, found, rest = render_chat([*before, *marked], tokenizer, prompt_id, variables or {}).partition(marks[0])
    if not found:
        raise rewritten
    contents = [message["content"] for message in answer]
    tokens = _fill(rest, marks[1:], contents, tokenizer, prompt_id, rewritten)
    return tokens[1:] if tokens[:1] == [last_token] else tokens


def _wrap(prompt: Prompt, source: SourceConfig) -> str:
    if not source.template:
        return prompt.text or ""
    try:
        return fill(source.template, prompt.text or "", "prompt")
    except ValueError as error:
        raise DataError(f"template {error}") from None


def messages_of(prompt: Prompt, source: SourceConfig) -> list[dict[str, str]]:
    """Return the messages that the chat template renders for a prompt.

    Args:
        prompt: The prompt.
        source: Its source, whose system message and template apply to text prompts.

    Raises:
        DataError: The source's template is invalid.
    """
    if prompt.messages is not None:
        return [dict(message) for message in prompt.messages]
    system = [{"role": "system", "content": source.system}] if source.system else []
    return [*system, {"role": "user", "content": _wrap(prompt, source)}]


def _encode_chat(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, prompt_id: str, source: SourceConfig
) -> list[int]:
    variables = source.chat_template_kwargs
    special = () if source.special_tokens else _special(tokenizer)
    suspects = [key for message in messages for key, text in message.items() if any(token in text for token in special)]
    if not suspects:
        return _encode(render_chat(messages, tokenizer, prompt_id, variables), tokenizer)
    if other := set(suspects) - {"content"}:
        raise DataError(f'prompt {prompt_id}: "{min(other)}" of a message holds a special token')
    # Rare: render with placeholders to separate the template's text from the prompt's. Spaces around a content stay outside
    # of them, as templates may strip it.
    contents = [message["content"] for message in messages]
    marks = [f"{_MARK}{index}{_MARK_END}" if text.strip() else "" for index, text in enumerate(contents)]
    marked = [
        {**message, "content": text.replace(text.strip(), mark) if mark else text}
        for message, text, mark in zip(messages, contents, marks, strict=True)
    ]
    rendered = render_chat(marked, tokenizer, prompt_id, variables)
    return _fill(rendered, marks, contents, tokenizer, prompt_id, _rewritten(prompt_id, "it holds a special token"))


def _fill(
    rest: str, marks: Sequence[str], contents: Sequence[str], tokenizer: Any, prompt_id: str, rewritten: DataError
) -> list[int]:
    """Encode a rendered conversation with the contents, as text, in place of their marks; raise `rewritten` if one is lost."""
    tokens: list[int] = []
    for mark, content in zip(marks, contents, strict=True):
        if not mark:
            continue
        before, found, rest = rest.partition(mark)
        if not found or _MARK in before:
            raise rewritten
        tokens += _encode(before, tokenizer) + _encode_text(content.strip(), tokenizer, prompt_id)
    if _MARK in rest:
        raise rewritten
    return tokens + _encode(rest, tokenizer)


def _rewritten(prompt_id: str, what: str) -> DataError:
    return DataError(f"prompt {prompt_id}: {what}, and the chat template rewrites its messages")


@functools.lru_cache(maxsize=4)
def _special(tokenizer: Any) -> tuple[str, ...]:
    """Return the texts of all special tokens, including those that no attribute of the tokenizer lists (Llama 3's headers)."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if token)


def render_chat(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, prompt_id: str, variables: Mapping[str, Any]
) -> str:
    """Render messages with the chat template, up to the beginning of the assistant's turn.

    Args:
        messages: The messages.
        tokenizer: The model's tokenizer.
        prompt_id: For messages.
        variables: Variables of the template.

    Raises:
        DataError: The template refuses the messages.
    """
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    # Templates refuse roles and orders of messages with errors of their own.
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"prompt {prompt_id}: the chat template refuses its messages: {why}") from error


def _encode(text: str, tokenizer: Any, **options: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"]) if text else []


def _encode_text(text: str, tokenizer: Any, prompt_id: str) -> list[int]:
    """Encode text without special tokens; raise DataError where the tokenizer cannot do that."""
    tokens = _encode(text, tokenizer, split_special_tokens=True)
    control = {tokenizer.convert_tokens_to_ids(token) for token in _special(tokenizer)}
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        # The token for unknown characters gives no control.
        control.discard(tokenizer.unk_token_id)
    if control & set(tokens):
        raise DataError(f"prompt {prompt_id}: it holds a special token that this tokenizer cannot read as text")
    return tokens
