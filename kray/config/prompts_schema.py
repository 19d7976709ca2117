"""The section `prompts` of a configuration; see kray/config/schema.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SourceConfig:
    """Where prompts come from."""

    kind: str = "arithmetic"
    """arithmetic; questions, programs (to write) or passages (to summarize), in plain English; jsonl, parquet, huggingface,
    reasoning_gym, nim, verifiers (a taskset), or seeds: starts of an environment that makes its own tasks."""

    path: str = ""
    """File, folder or glob (jsonl, parquet); dataset id or folder (huggingface); id of an installed taskset (verifiers)."""

    subset: str = ""
    """Configuration of a Hugging Face dataset. verifiers: a range of tasks, such as "0:1000"; empty: all."""

    split: str = "train"
    """Split of a Hugging Face dataset. For generated prompts: train or test, which share none."""

    prompt_field: str = "prompt"
    """Field with the prompt: text or a list of chat messages. Dots reach into nested fields."""

    prompt_format: str = "auto"
    """How text in `prompt_field` is read. text: it is the prompt. json: all of it is JSON. auto: it is the prompt, but a JSON
    list of chat messages is read as those messages, and text that may or may not be meant as JSON is refused."""

    answer_field: str = "answer"
    """Field with the right answer, which the verifier gets as text."""

    columns: list[str] = field(default_factory=list)
    """Further fields that reward functions get by name, as they are; a nested field is named by its last part. `["*"]`: all
    but the prompt, and the answer under its last part. An answer that is a list or an object needs to be among them."""

    id_field: str = ""
    """Field with the prompt's id. Empty: `<source>:<row>`."""

    kind_field: str = ""
    """Field with the kind of problem, such as its subject or level; see `plan.prior_by`."""

    system: str = ""
    """System message before a text prompt, where a chat template is used."""

    template: str = ""
    """Text around a text prompt, such as "{prompt}\\nPut the final answer in \\\\boxed{{}}."."""

    chat: bool = True
    """Apply the tokenizer's chat template, if it has one."""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking: false`."""

    special_tokens: bool = False
    """Read special tokens such as `<|im_end|>` in the prompt's text as tokens. false: they are plain text."""

    verifier: str = ""
    """Verifier of these prompts. Empty: `reward.verifier` (reasoning_gym sources have their own)."""

    limit: int = 0
    """Most prompts of this source. 0: all."""

    keep_repeats: bool = False
    """Keep rows that repeat the prompt and the answer of an earlier row. false: only the first one is kept."""

    size: int = 1024
    """Prompts to generate (arithmetic, questions, programs, passages, reasoning_gym, nim, seeds, verifiers tasksets without an
    end)."""

    seed: int = 0
    """Seed of generated prompts."""

    tasks: dict[str, Any] = field(default_factory=dict)
    """reasoning_gym: task name -> its options, or a label of your own -> `{task: name, ...}`, so that one task can have several
    difficulties. arithmetic, questions, programs and passages: kind -> nothing; empty for all kinds. nim: a label ->
    `{heaps: 3, largest: 5}`. seeds: label -> keyword arguments of the environment, in place of those in
    `environment.options`. Tasks are mixed evenly. verifiers: the taskset's own configuration."""


@dataclass
class PromptsConfig:
    """The prompts to train on and to evaluate with."""

    per_step: int = 64
    """Prompts of a step. `plan.candidates` times as many are offered to the planner."""

    max_tokens: int = 1024
    """Longer prompts are left out, counted and reported."""

    shuffle: bool = True
    """Visit the prompts in a new order in each epoch, drawn from `run.seed`."""

    quarantine_after: int = 3
    """Failures in a row after which a prompt is left out for the rest of the run and its budget goes to other prompts: engine
    crashes, time-outs, visits of which no rollout could be scored in time. 0: never."""

    train: SourceConfig = field(default_factory=SourceConfig)
    """Source of the prompts to train on."""

    test: SourceConfig = field(default_factory=lambda: SourceConfig(split="test", size=256))
    """Source of the held-out prompts."""

    more_tests: dict[str, Any] = field(default_factory=dict)
    """More held-out sets: name -> the keys in which it differs from `prompts.test`. Each gets an accuracy of its own."""
