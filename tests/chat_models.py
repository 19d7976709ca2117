"""A tiny chat model with random weights, and prompts that ask for programs."""

from __future__ import annotations

import json
from pathlib import Path


def chat_model(folder: Path) -> Path:
    """Save a random Qwen3 with a byte-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    wrapped.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    wrapped.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        head_dim=32,
        max_position_embeddings=2048,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def programs(folder: Path) -> list[str]:
    """Write prompts of the form that configs/code.yaml reads; return the overrides that name the files."""
    for part in ("train", "test"):
        with open(folder / f"{part}.jsonl", "w") as file:
            for i in range(70):
                tests = {"asserts": [f"assert add(1, {i}) == {i + 1}"]}
                line = {"prompt": f"Write add(a, b). It is needed for {i}.", "answer": json.dumps(tests)}
                print(json.dumps(line), file=file)
    return [f"prompts.{part}.path={folder}/{part}.jsonl" for part in ("train", "test")]
