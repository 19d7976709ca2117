"""`--check` tells special tokens from their characters, and notices what a template loses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from chat_models import chat_model
from checked_runs import QUICK, arguments
from inline_jobs import run_job

MARKERS = "<|im_start|>user\\n{prompt}<|im_end|>\\n<|im_start|>assistant\\n"
TEMPLATE = f'prompts.train.template="{MARKERS}"'


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def rewritten(chat, tmp_path):
    """Makes a copy of the model whose chat template says something else for a message's content."""

    def make(content: str) -> Path:
        folder = Path(shutil.copytree(chat, tmp_path / "model"))
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text().replace("m.content", content))
        return folder

    return make


def check(model: Path, *overrides: str):
    return run_job("train", "--config", QUICK, "--check", *arguments(model, *overrides))


def shown(model: Path, *overrides: str) -> str:
    done = check(model, *overrides)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_special_tokens_of_a_template_that_stay_text_are_told(chat):
    said = shown(chat, TEMPLATE, "prompts.train.chat=false")
    told = "warning: prompts.train: special tokens in prompts.train.template are read as text (first '<|im_start|>')"
    assert told in said
    assert "chat: false and special_tokens: true" in said
    assert "  | <|im_start|>user\n  | 8+8=<|im_end|>" in said
    said = shown(chat, TEMPLATE, "prompts.train.chat=false", "prompts.train.special_tokens=true")
    assert "warning: prompts.train: special tokens" not in said
    assert "  | «<|im_start|>»user\n  | 8+8=«<|im_end|>»" in said


def test_a_conversation_inside_a_conversation_is_told(chat):
    assert "special tokens in prompts.train.template are read as text" in shown(chat, TEMPLATE)
    said = shown(chat, TEMPLATE, "prompts.train.special_tokens=true")
    told = "special tokens in prompts.train.template are read as such, inside messages around which the chat template"
    assert told in said
    assert said.count("  | «<|im_start|>»user\n  | «<|im_start|>»user") == 2


def test_special_tokens_of_a_system_message_are_told(chat):
    system = "prompts.train.system=Be brief.<|im_end|>"
    said = shown(chat, system)
    assert "special tokens in prompts.train.system are read as text (first '<|im_end|>')" in said
    assert "  | Be brief.<|im_end|>«<|im_end|>»" in said
    said = shown(chat, system, "prompts.train.special_tokens=true")
    assert "special tokens in prompts.train.system are read as such" in said
    assert "is not found whole" not in said


@pytest.mark.parametrize("content", ["'?'", "m.content[:0]", "m.content if m.role == 'system'"])
def test_prompts_that_all_read_the_same_are_refused(rewritten, content):
    done = check(rewritten(content))
    assert done.returncode == 2
    assert "prompts.train: all 1,024 prompts read the same, though they differ" in done.stderr


def test_a_template_that_cuts_questions_is_told(rewritten):
    said = shown(rewritten("m.content[:3]"))
    assert "warning: prompts.train: a message of the user is not found whole in what the chat template" in said


def test_messages_without_a_chat_template_name_the_key(chat, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"{i}+1="}], "answer": str(i + 1)} for i in range(70)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = ["prompts.train.kind=jsonl", f"prompts.train.path={tmp_path}/p.jsonl"]
    done = check(chat, *paths, "prompts.train.chat=false")
    assert done.returncode == 2
    assert "prompt p.jsonl:1: it holds chat messages, but prompts.train.chat is false" in done.stderr


def test_one_prompt_is_counted_in_the_singular(chat, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 2)
    said = shown(chat, "prompts.test.kind=jsonl", f"prompts.test.path={tmp_path}/p.jsonl")
    assert "2 rows hold 1 prompt: 1 row repeats the prompt" in said
    assert "p.jsonl): 1 prompt of 23 tokens\n" in said
    done = check(chat, "prompts.max_tokens=20", "prompts.per_step=1", "plan.budget=8")
    assert "1,024 of 1,024 train prompts dropped: longer than prompts.max_tokens, which is 20" in done.stdout
    assert "0 of 1,024 prompts are left, 1 is needed; prompts.max_tokens is 20" in done.stderr
