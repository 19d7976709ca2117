"""What a model's folder lacks is said before anything is started."""

import json

import pytest

from kray.config.prompts_schema import SourceConfig
from kray.errors import ConfigError, DataError
from kray.prompts.model_files import check_context, check_divisible, load_tokenizer, stop_ids
from kray.prompts.tokenize import encode_all
from kray.records import Prompt

CONFIG = {
    "model_type": "qwen3", "vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 64, "head_dim": 16,
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    """Makes a folder with a byte-level tokenizer; keyword arguments are the tokenizer's special tokens."""

    def make(config=CONFIG, **special):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return make


def refused(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "model.path" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tokenizer_without_a_pad_token_is_fine(model):
    path = model(eos_token="<end>")
    tokenizer, vocabulary = load_tokenizer(path)
    assert (tokenizer.pad_token_id, vocabulary) == (None, 260)
    assert stop_ids(path, tokenizer) == (256,)


def test_without_an_end_of_sequence_no_response_would_end(model):
    path = model()
    tokenizer, _ = load_tokenizer(path)
    assert "names an end of sequence" in refused(stop_ids, path, tokenizer)
    with open(f"{path}/generation_config.json", "w") as file:
        json.dump({"eos_token_id": [7, 9]}, file)
    assert stop_ids(path, tokenizer) == (7, 9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "cannot be loaded"),
        ("config.json", '{"model_type": "no such thing"}', "cannot be loaded"),
        ("config.json", "[]", "cannot be loaded"),
        ("config.json", "\x00\x01", "cannot be loaded"),
        ("tokenizer.json", "{", "has no tokenizer that can be loaded"),
        ("tokenizer.json", '{"model": {"type": "none"}}', "has no tokenizer that can be loaded"),
    ],
)
def test_a_broken_file_is_named(model, name, content, message):
    path = model(eos_token="<end>")
    with open(f"{path}/{name}", "w") as file:
        file.write(content)
    assert message in refused(load_tokenizer, path)


def test_an_empty_folder_is_no_model(tmp_path):
    assert f"{tmp_path} cannot be loaded" in refused(load_tokenizer, str(tmp_path))


def test_prompts_and_responses_must_fit_into_the_models_context(model):
    path = model(eos_token="<end>")
    check_context(path, 64)
    assert "= 65 is above the 64 positions" in refused(check_context, path, 65)


def test_the_gpus_of_an_engine_must_divide_the_model(tmp_path):
    def write(**values):
        shape = {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 192}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 96} | shape | values))

    write()
    for gpus in (0, 1, 2, 6):
        check_divisible(str(tmp_path), gpus)
    with pytest.raises(
        ConfigError, match=r"rollout\.gpus_per_engine 4: the model has 6 attention heads .*; 2 and 6 work"
    ):
        check_divisible(str(tmp_path), 4)
    for together in (2, 3, 6):
        check_divisible(str(tmp_path), 1, together, 12)
    message = r"train\.context_parallel 4: the model has 6 attention heads .*, which 4 ranks cannot divide; 2 works"
    with pytest.raises(ConfigError, match=message):
        check_divisible(str(tmp_path), 1, 4, 8)
    write(num_key_value_heads=4)
    with pytest.raises(ConfigError, match=r"4 key-value heads \(num_key_value_heads\), which 3 GPUs cannot divide"):
        check_divisible(str(tmp_path), 3)


def test_long_prompts_are_counted_and_unknown_tokens_refused(model):
    tokenizer, vocabulary = load_tokenizer(model(eos_token="<end>"))
    prompts = [Prompt(id=f"p:{n}", answer="1", verifier="exact", source="p", text="x" * n) for n in (3, 9, 4)]
    kept, dropped = encode_all(prompts, tokenizer, SourceConfig(), 8, vocabulary)
    assert ([prompt.id for prompt, _ in kept], dropped) == (["p:3", "p:4"], ["p:9"])
    with pytest.raises(DataError, match=r"prompt p:3: token \d+ \('x'\) is not among the model's 10"):
        encode_all(prompts, tokenizer, SourceConfig(), 8, 10)
