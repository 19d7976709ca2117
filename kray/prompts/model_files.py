"""Read what prompts need from a model's folder: the tokenizer, checked against the model, and the context length."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from kray.config.parallel import LayerCounts
from kray.errors import ConfigError

# Files of weights, in the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What the GPUs of an engine divide, by its names in a model's configuration.
COUNTED = tuple(field.name for field in fields(LayerCounts))
# Context lengths from here on mean that there is no limit.
_NO_LIMIT = 10**9


def read_config(model_path: str) -> Any:
    """Return the model's PretrainedConfig.

    Args:
        model_path: Folder or hub id.

    Raises:
        ConfigError: It cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model_path)
    # Broken JSON, unknown architectures, unreachable hubs: transformers raises dozens of kinds.
    except Exception as error:
        raise ConfigError(f"model.path: {model_path} cannot be loaded: {_first_line(error)}") from error


def load_tokenizer(model_path: str) -> tuple[Any, int]:
    """Load the model's tokenizer.

    Args:
        model_path: Folder or hub id.

    Returns:
        (tokenizer, size of the model's vocabulary).

    Raises:
        ConfigError: There is no tokenizer, it is empty, or its tokens are not all in the model's vocabulary.
    """
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
    # Special tokens beyond the vocabulary often have other uses (images, padding); a prompt with one is refused separately.
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = [index for index in tokenizer.get_vocab().values() if index >= vocabulary and index not in special]
    if beyond:
        size = f"the tokenizer of {model_path} has {len(tokenizer)} tokens, the model {vocabulary}"
        example = f"token {min(beyond)} is {tokenizer.convert_ids_to_tokens(min(beyond))!r}"
        raise ConfigError(f"model.path: {size} ({example}): they do not belong together")
    return tokenizer, vocabulary


def check_weights(model_path: str) -> None:
    """Check that the files of weights exist, without reading them.

    Args:
        model_path: Folder, or a hub id, which is not checked.

    Raises:
        ConfigError: There are none, or some that the index lists are missing.
    """
    folder = Path(model_path)
    if not folder.is_dir():
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
                    f"model.path: {folder} lacks {missing[0]}, which {index.name} lists ({len(missing)} missing)"
                )
            return
    raise ConfigError(f"model.path: {folder} holds no weights: neither {' nor '.join(WEIGHTS)}, nor an index of either")


def check_context(model_path: str, needed: int) -> None:
    """Check that prompt and response fit the model's context.

    Args:
        model_path: Folder or hub id.
        needed: Tokens of the longest prompt and response together.

    Raises:
        ConfigError: They do not fit.
    """
    text = read_config(model_path).get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if isinstance(most, int) and 0 < most < min(needed, _NO_LIMIT):
        keys = "prompts.max_tokens + rollout.max_response_tokens (or rollout.max_context_tokens)"
        raise ConfigError(f"{keys} = {needed} is above the {most} positions of model.path {model_path}")


def check_divisible(model_path: str, gpus: int, together: int = 1, ranks: int = 1) -> None:
    """Check that the GPUs of an engine can divide the model's layers, and learner ranks its attention heads.

    Args:
        model_path: Folder or hub id.
        gpus: rollout.gpus_per_engine.
        together: train.context_parallel.
        ranks: train.ranks.

    Raises:
        ConfigError: They cannot; names the model's own number and the nearest that work.
    """
    if gpus <= 1 and together == 1:
        return
    text = read_config(model_path).get_text_config()
    # Some families give one value for each layer, or none: what is not known is not checked.
    found = {name: value for name in COUNTED if isinstance(value := getattr(text, name, None), int)}
    heads = found.get("num_attention_heads", 0)
    counts = LayerCounts(**(dict.fromkeys(COUNTED, 0) | {"num_key_value_heads": heads} | found))
    if problem := counts.problem(gpus) or counts.context_problem(together, ranks):
        raise ConfigError(f"{problem} (model.path {model_path})")


def stop_ids(model_path: str, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of tokens that end a response: the tokenizer's, and those of the model's generation config.

    A pad token is not needed: batches are packed or padded by length.

    Args:
        model_path: Folder or hub id.
        tokenizer: The model's tokenizer.

    Raises:
        ConfigError: There is none.
    """
    from transformers import GenerationConfig

    found = {tokenizer.eos_token_id}
    try:
        listed = GenerationConfig.from_pretrained(model_path).eos_token_id
    # The model has no generation config.
    except OSError:
        listed = None
    found |= set(listed) if isinstance(listed, list) else {listed}
    found.discard(None)
    if not found:
        missing = "neither its tokenizer nor its generation config names an end of sequence"
        raise ConfigError(f"model.path: {model_path}: {missing}, so that no response would end")
    return tuple(sorted(found))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
