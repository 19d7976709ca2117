"""Which models ranks read in parts, and why the others are read whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kray.train.model import load_policy
from kray.train.weight_files import find_weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(models, tmp_path):
    """folder(tied, change): a copy of a model whose stored tensors were changed."""

    def build(tied: bool, change=lambda tensors: None) -> Path:
        (tmp_path / "config.json").write_text((Path(models[tied]) / "config.json").read_text())
        tensors = load_file(Path(models[tied]) / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return build


def found(path: Path):
    return find_weights(load_policy(str(path), empty=True), str(path))


@pytest.mark.parametrize("name", [EMBEDDING, HEAD, "both"])
def test_a_tied_tensor_is_read_under_any_of_its_names(folder, name):
    def change(tensors):
        whole = tensors.pop(EMBEDDING)
        for each in [EMBEDDING, HEAD] if name == "both" else [name]:
            tensors[each] = whole.clone()

    path = folder(True, change)
    files, why = found(path)
    assert (why, files.check_tied(1, 2)) == ("", "")
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for stored, parameter in model.named_parameters():
        assert torch.equal(files.whole(stored), parameter)
        assert torch.equal(files.rows(stored, 3, 17), parameter[3:17])


def test_tied_tensors_that_differ_are_found(folder):
    def change(tensors):
        tensors[HEAD] = tensors[EMBEDDING].clone()
        tensors[HEAD][-1, -1] += 1

    files, _ = found(folder(True, change))
    assert files.check_tied(0, 2) == ""
    assert files.check_tied(1, 2) == f"{EMBEDDING} and {HEAD} are tied in config.json and differ in the files"


def test_what_transformers_must_load_is_said(folder):
    path = folder(False, lambda tensors: tensors.pop(HEAD))
    assert found(path) == (None, f"its files hold no {HEAD}")
    path = folder(False, lambda tensors: tensors.update({HEAD: torch.zeros(2, 2)}))
    assert found(path) == (None, f"{HEAD} has another shape in its files")
    path = folder(False)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-8])
    assert found(path)[1].startswith("its files cannot be read in parts (SafetensorError")
    (path / "model.safetensors").unlink()
    assert found(path) == (None, "it has no safetensors files")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {HEAD: "gone.safetensors"}}))
    assert found(path)[1] == "its files cannot be read in parts (FileNotFoundError: gone.safetensors is missing)"
