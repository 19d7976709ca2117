"""Prompts with NUL bytes and of a megabyte, from a file to tokens: trained on as they are, or left out by file and line."""

from __future__ import annotations

import json

import pytest
from chat_tokenizers import make_tokenizer

from kray.config.prompts_schema import SourceConfig
from kray.prompts import load_prompts
from kray.prompts.tokenize import as_read, encode_all

ROWS = [
    {"question": "2+2?", "answer": "4"},
    {"question": "a\0b 2+2?\0", "answer": "4\0"},
    {"question": "x" * 1_000_000, "answer": "4"},
    {"question": "\0" * 10_000, "answer": "4"},
    {"question": "3+3?", "answer": "y" * 1_000_000},
]


@pytest.fixture
def source(tmp_path) -> SourceConfig:
    file = tmp_path / "odd.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return SourceConfig(kind="jsonl", path=str(file), prompt_field="question", answer_field="answer")


def test_long_prompts_are_named_by_file_and_line_and_nul_is_text(source):
    tokenizer = make_tokenizer()
    prompts = load_prompts(source, "exact")
    assert [prompt.text for prompt in prompts] == [row["question"] for row in ROWS]
    assert prompts[1].answer == "4\0"
    kept, dropped = encode_all(prompts, tokenizer, source, 128, len(tokenizer))
    assert dropped == ["odd.jsonl:3", "odd.jsonl:4"]
    assert [encoded.prompt.id for encoded in kept] == ["odd.jsonl:1", "odd.jsonl:2", "odd.jsonl:5"]
    assert "a\0b 2+2?\0" in as_read(kept[1].tokens, tokenizer)
