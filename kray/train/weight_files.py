"""The safetensors files of a model, of which each rank reads the rows that it holds.

Guarantees: what is read is what transformers' `from_pretrained` would load, bit for bit. Where that is not certain (no
safetensors files, tensors that transformers renames or computes while it loads, quantized weights), `find_weights` says why,
and the caller lets transformers load the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from kray.train.lora import plain_name


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Where a model's tensors are.

    Attributes:
        place_of: (file, name in the file) of each parameter and persistent buffer, by its name in the model.
        twice: Pairs of places that hold the same tied parameter; their values are equal unless the config is wrong.
    """

    place_of: dict[str, tuple[str, str]]
    twice: list[tuple[tuple[str, str], tuple[str, str]]]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows of a tensor in the dtype of the file.

        Args:
            name: In the model.
            start: First row.
            stop: Row after the last one.
        """
        return _rows(self.place_of[name], start, stop)

    def whole(self, name: str) -> Tensor:
        """Return a tensor in the dtype of the file."""
        file, stored = self.place_of[name]
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(stored)

    def check_tied(self, part: int, parts: int) -> str:
        """Compare one of `parts` parts of the tensors that are stored twice.

        Returns:
            Which of them differ, "" for none.
        """
        for first, second in self.twice:
            with safe_open(first[0], framework="pt") as opened:
                rows = opened.get_slice(first[1]).get_shape()[0]
            size = -(-rows // parts)
            start, stop = min(rows, part * size), min(rows, (part + 1) * size)
            if not torch.equal(_rows(first, start, stop), _rows(second, start, stop)):
                return f"{first[1]} and {second[1]} are tied in config.json and differ in the files"
        return ""


def _rows(place: tuple[str, str], start: int, stop: int) -> Tensor:
    # Opened for each tensor: pages of a file that stays mapped count as this process's memory.
    with safe_open(place[0], framework="pt") as opened:
        return opened.get_slice(place[1])[start:stop]


def find_weights(model: nn.Module, path: str) -> tuple[WeightFiles | None, str]:
    """Find the tensors of a model whose parameters are on the meta device.

    Args:
        model: The model, with adapters or not; parameters that have memory are not looked for.
        path: Hugging Face folder or hub id; a hub id's files are fetched when they are not in its cache.

    Returns:
        Its files, None where transformers must load it; and why, as a part of a sentence.
    """
    try:
        stored = stored_tensors(path)
        if not stored:
            return None, "it has no safetensors files"
        if why := _converted(model):
            return None, why
        return _places(model, stored)
    except Exception as error:
        # Files that are damaged, missing or of another kind, hubs that do not answer: transformers says what is wrong.
        return (
            None,
            f"its files cannot be read in parts ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})",
        )


def _places(model: nn.Module, stored: dict[str, str]) -> tuple[WeightFiles | None, str]:
    """Assign a stored tensor to each parameter without memory and to each persistent buffer that is stored."""
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    places, twice = {}, []
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            continue
        plain = [plain_name(alias) or alias for alias in aliases[id(parameter)]]
        found = [(stored[alias], alias) for alias in plain if alias in stored]
        if not found:
            return None, f"its files hold no {plain[0]}"
        if any(_shape(place) != list(parameter.shape) for place in found):
            return None, f"{found[0][1]} has another shape in its files"
        places[name] = found[0]
        twice += [(found[0], other) for other in found[1:]]
    persistent = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in persistent and name in stored:
            if _shape((stored[name], name)) != list(buffer.shape):
                return None, f"{name} has another shape in its files"
            places[name] = (stored[name], name)
    return WeightFiles(places, twice), ""


def _shape(place: tuple[str, str]) -> list[int]:
    with safe_open(place[0], framework="pt") as opened:
        return list(opened.get_slice(place[1]).get_shape())


def stored_tensors(path: str) -> dict[str, str]:
    """Return the file of each stored tensor, by its name; {} where there are no safetensors files.

    Args:
        path: Hugging Face folder or hub id; a hub id's files are fetched when they are not in its cache.

    Raises:
        Exception: Of many kinds: files are missing, damaged, or cannot be fetched.
    """
    single = _file(path, SAFE_WEIGHTS_NAME)
    if single:
        with safe_open(single, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), single)
    index = _file(path, SAFE_WEIGHTS_INDEX_NAME)
    if not index:
        return {}
    listed = json.loads(Path(index).read_text())["weight_map"]
    files = {name: _file(path, name) for name in sorted(set(listed.values()))}
    if missing := [name for name, file in files.items() if not file]:
        raise FileNotFoundError(f"{missing[0]} is missing")
    for file in files.values():
        # Compares the file's length with its header.
        with safe_open(str(file), framework="pt"):
            pass
    return {tensor: str(files[name]) for tensor, name in listed.items()}


def _file(path: str, name: str) -> str | None:
    if Path(path).is_dir():
        file = Path(path) / name
        return str(file) if file.is_file() else None
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False)


def _converted(model: Any) -> str:
    """Return why stored tensors may differ from the model's, "" where they are equal if their names are."""
    config = model.config
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized"
    if getattr(config, "transformers_weights", None) is not None:
        return "its config names other files"
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    conversions: Iterable[Any] = get_model_conversion_mapping(model, add_legacy=False)
    if any(isinstance(each, WeightConverter) for each in conversions):
        return "transformers converts its tensors while it loads them"
    return ""
