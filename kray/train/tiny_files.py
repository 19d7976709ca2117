"""What is known of a tiny policy before it is made: its folder's name, its tokenizer, what is wrong with its settings.

Loads neither torch nor, until a tokenizer is made, transformers: `--check` reads prompts as such a policy will, without one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from kray.config.schema import TinyPolicyConfig
from kray.errors import ConfigError
from kray.prompts.arithmetic import CHARACTERS, HABITS, KINDS, TEACHER
from kray.prompts.lessons import Lesson, make_lessons, phrases, recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VERSION = 1  # raise it when the recipe or the problems change, so that old folders are not taken for new ones
LATER = ("clean_share", "kinds", "habits")  # settings that the names of older folders do not know
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
TOOL_CHARACTERS = "[]?"  # of calls and of what the calculator cannot read
LETTERS = "\n" + "".join(map(chr, range(32, 127)))  # characters of reasoning_gym's questions and answers; others: <unk>
LESSONS = 32_768  # questions of reasoning_gym tasks, which come in turn
MAX_POSITIONS = 4096


def default_cache() -> Path:
    """Where kray keeps what it can make again."""
    if os.environ.get("KRAY_CACHE"):
        return Path(os.environ["KRAY_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kray"


def folder_of(tiny: TinyPolicyConfig, cache_dir: str | Path | None = None) -> Path:
    """Return where the policy is kept; the folder holds a config.json once it has been made."""
    return (Path(cache_dir) if cache_dir else default_cache()).expanduser() / "policies" / digest(tiny)


def check_tiny(tiny: TinyPolicyConfig) -> None:
    """Raise ConfigError for settings that give no model."""
    for name in ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "batch_size"):
        if getattr(tiny, name) < 1:
            raise ConfigError(f"model.tiny.{name} is {getattr(tiny, name)}; at least 1 is needed")
    if unknown := [kind for kind in tiny.kinds if kind not in KINDS]:
        raise ConfigError(f"model.tiny.kinds: {unknown[0]} is not one of {', '.join(KINDS)}")
    if tiny.heads % tiny.kv_heads:
        raise ConfigError(f"model.tiny.heads ({tiny.heads}) is no multiple of kv_heads ({tiny.kv_heads})")


def digest(tiny: TinyPolicyConfig) -> str:
    """Return 20 hex digits that are equal for equal policies."""
    settings, usual = asdict(tiny), TinyPolicyConfig()
    tasks = settings.pop("tasks")
    if not tiny.tool_share:
        del settings["tool_share"]  # such policies were made before there were tools
    parts = [VERSION, settings, CHARACTERS, list(KINDS), TEACHER, HABITS]
    if tasks:
        parts = [VERSION, settings, tasks, LETTERS, LESSONS, recipe(tasks), HABITS]
    elif all(settings[key] == getattr(usual, key) for key in LATER):
        settings = {key: value for key, value in settings.items() if key not in LATER}
        parts = [VERSION, settings, CHARACTERS, list(KINDS), TEACHER]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def lessons_of(tiny: TinyPolicyConfig) -> list[Lesson]:
    """Return the questions of reasoning_gym tasks that it is taught, none for arithmetic. Takes seconds."""
    return make_lessons(tiny.tasks, LESSONS, tiny.seed) if tiny.tasks else []


def tokenizer_of(tiny: TinyPolicyConfig, lessons: Sequence[Lesson]) -> PreTrainedTokenizerFast:
    """Return the policy's tokenizer. lessons: as `lessons_of` makes them."""
    if lessons:
        return make_tokenizer(LETTERS, phrases(lessons))
    return make_tokenizer(CHARACTERS + (TOOL_CHARACTERS if tiny.tool_share else ""))


def make_tokenizer(characters: str = CHARACTERS, templates: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token for each character and for each of the templates; nothing is added when it encodes; no chat template."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *characters, *templates])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    longest_first = sorted(map(re.escape, templates), key=len, reverse=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*longest_first, r"[\s\S]"])), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )
