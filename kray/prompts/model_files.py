"""What prompts need of a model's folder: its tokenizer, checked against the model, and its context length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kray.errors import ConfigError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
_ANY_LENGTH = 10**9  # tokenizers without a limit say 10^30


def read_config(model_path: str) -> Any:
    """Return the model's PretrainedConfig. Raises ConfigError where it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model_path)
    except Exception as error:  # broken JSON, unknown architectures, hubs that do not answer: dozens of kinds
        raise ConfigError(f"model.path: {model_path} cannot be loaded: {_first_line(error)}") from error


def load_tokenizer(model_path: str) -> tuple[Any, int]:
    """(tokenizer, size of the model's vocabulary). Raises ConfigError that names what cannot be used."""
    from transformers import AutoTokenizer

    try:
        vocabulary = int(read_config(model_path).get_text_config().vocab_size)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"model.path: {model_path} cannot be loaded: {_first_line(error)}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except Exception as error:
        raise ConfigError(
            f"model.path: {model_path} has no tokenizer that can be loaded: {_first_line(error)}"
        ) from error
    if not len(tokenizer):
        raise ConfigError(f"model.path: the tokenizer of {model_path} is empty")
    # Special tokens beyond are often meant for other uses (images, padding); a prompt that has one is refused by itself.
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = [index for index in tokenizer.get_vocab().values() if index >= vocabulary and index not in special]
    if beyond:
        size = f"the tokenizer of {model_path} has {len(tokenizer)} tokens, the model {vocabulary}"
        example = f"token {min(beyond)} is {tokenizer.convert_ids_to_tokens(min(beyond))!r}"
        raise ConfigError(f"model.path: {size} ({example}): they do not belong together")
    return tokenizer, vocabulary


def check_weights(model_path: str) -> None:
    """Raises ConfigError for a folder without files of weights, or without some that its index names; reads no weights."""
    folder = Path(model_path)
    if not folder.is_dir():  # a hub id
        return
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return
        if index.is_file():
            try:
                files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise ConfigError(f"model.path: {index} cannot be read: {_first_line(error)}") from error
            if missing := [file for file in files if not (folder / file).is_file()]:
                raise ConfigError(
                    f"model.path: {folder} lacks {missing[0]}, which {index.name} names ({len(missing)} missing)"
                )
            return
    raise ConfigError(f"model.path: {folder} holds no weights: neither {' nor '.join(WEIGHTS)}, nor an index of either")


def check_context(model_path: str, needed: int) -> None:
    """Raises ConfigError when prompt and response together (needed, tokens) are more than the model can read."""
    text = read_config(model_path).get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if isinstance(most, int) and 0 < most < min(needed, _ANY_LENGTH):
        keys = "prompts.max_tokens + rollout.max_response_tokens (or rollout.max_context_tokens)"
        raise ConfigError(f"{keys} = {needed} is above the {most} positions of model.path {model_path}")


def stop_ids(model_path: str, tokenizer: Any) -> tuple[int, ...]:
    """The tokenizer's end of sequence, and those of the model's generation config. Raises ConfigError without any.

    A pad token is not needed: batches are packed or padded by length.
    """
    from transformers import GenerationConfig

    found = {tokenizer.eos_token_id}
    try:
        listed = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # the model has none
        listed = None
    found |= set(listed) if isinstance(listed, list) else {listed}
    found.discard(None)
    if not found:
        missing = "neither its tokenizer nor its generation config names an end of sequence"
        raise ConfigError(f"model.path: {model_path}: {missing}, so that no response would end")
    return tuple(sorted(found))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
