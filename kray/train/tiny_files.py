"""What can be derived from a tiny policy's settings before it is made: its folder, its tokenizer, errors in its settings.

Loads neither torch nor, until a tokenizer is made, transformers: `--check` tokenizes prompts as the policy will.
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
from kray.environments.demonstrations import Segment, common_lines, game_key, play_games
from kray.environments.nim import HEAPS, TO_MOVE
from kray.environments.solver_checker import ASKED, RIGHT, WRONG
from kray.errors import ConfigError, DataError
from kray.prompts.arithmetic import ACCURACY_RANGES, CHARACTERS, DRAFT_ERROR, KINDS, TEACHER_ACCURACY
from kray.prompts.demonstrations import Demonstration, cache_key, make_demonstrations, question_templates
from kray.prompts.positions import all_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Raised when the recipe or the problems change, so that a cached policy of the old recipe is not used.
VERSION = 1
# Settings that are not part of the names of older folders.
LATER = ("clean_share", "kinds", "habits")
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
# Characters of calls, and of the calculator's answer to what it cannot evaluate.
TOOL_CHARACTERS = "[]?"
# Characters of answers that are judged, and of verdicts.
CHECK_CHARACTERS = ASKED + RIGHT + WRONG
# Share of the training verdicts that are right, after the clean part.
VERDICT_ACCURACY = 0.6
# Characters of positions and moves.
GAME_CHARACTERS = "0123456789" + TO_MOVE + HEAPS
# Characters of reasoning_gym's questions and answers; others become <unk>.
LETTERS = "\n" + "".join(map(chr, range(32, 127)))
# Number of reasoning_gym questions, used in turn: enough that none is memorized.
DEMONSTRATIONS = 32_768
# Number of games that are played for the warm-up, and how many of them decide which lines are one token.
GAMES = 4096
VOCABULARY_GAMES = 512
# Tokens; far more than any prompt and response of configs/tiny.yaml.
MAX_POSITIONS = 4096


def default_cache() -> Path:
    """Return the folder in which kray keeps what it can make again."""
    if os.environ.get("KRAY_CACHE"):
        return Path(os.environ["KRAY_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kray"


def folder_of(tiny: TinyPolicyConfig, cache_dir: str | Path | None = None) -> Path:
    """Return the policy's folder in the cache; it holds a config.json once the policy has been made."""
    return (Path(cache_dir) if cache_dir else default_cache()).expanduser() / "policies" / digest(tiny)


def check_tiny(tiny: TinyPolicyConfig) -> None:
    """Check a tiny policy's settings.

    Raises:
        ConfigError: They describe no model.
    """
    for name in ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "batch_size"):
        if getattr(tiny, name) < 1:
            raise ConfigError(f"model.tiny.{name} is {getattr(tiny, name)}; it must be at least 1")
    if tiny.games and (tiny.tasks or tiny.tool_share or tiny.draft_digits):
        raise ConfigError(
            "model.tiny.games: unset tasks, tool_share and draft_digits, which are learned instead of games"
        )
    if unknown := [kind for kind in tiny.kinds if kind not in KINDS]:
        raise ConfigError(f"model.tiny.kinds: {unknown[0]} is not one of {', '.join(KINDS)}")
    if tiny.draft_digits and (tiny.tasks or tiny.tool_share):
        raise ConfigError("model.tiny.draft_digits: drafts are of arithmetic without tools; unset tasks and tool_share")
    if tiny.nim and (tiny.tasks or tiny.games or tiny.tool_share or tiny.draft_digits or tiny.kinds):
        raise ConfigError(
            "model.tiny.nim: a policy practises one thing; unset tasks, games, tool_share, draft_digits and kinds"
        )
    if tiny.check_share and (tiny.tasks or tiny.games or tiny.nim or tiny.tool_share or tiny.draft_digits):
        raise ConfigError(
            "model.tiny.check_share: answers to plain arithmetic are judged; unset tasks, games, nim, tool_share and "
            "draft_digits"
        )
    for label, options in tiny.nim.items():
        try:
            all_positions(label, options)
        except DataError as error:
            raise ConfigError(f"model.tiny.nim: {error}") from error
    if tiny.heads % tiny.kv_heads:
        raise ConfigError(f"model.tiny.heads ({tiny.heads}) is not a multiple of kv_heads ({tiny.kv_heads})")


def digest(tiny: TinyPolicyConfig) -> str:
    """Return 20 hex digits that identify a policy's settings."""
    settings, usual = asdict(tiny), TinyPolicyConfig()
    tasks, games = settings.pop("tasks"), settings.pop("games")
    if not tiny.tool_share:
        # Such policies were made before these keys existed.
        del settings["tool_share"]
    if not tiny.draft_digits:
        del settings["draft_digits"]
    if not tiny.nim:
        del settings["nim"]
    if not tiny.check_share:
        del settings["check_share"]
    parts = [VERSION, settings, CHARACTERS, list(KINDS), TEACHER_ACCURACY, ACCURACY_RANGES]
    if tasks:
        parts = [VERSION, settings, tasks, LETTERS, DEMONSTRATIONS, cache_key(tasks), ACCURACY_RANGES]
    elif games:
        parts = [VERSION, settings, games, LETTERS, GAMES, VOCABULARY_GAMES, game_key(games)]
    elif all(settings[key] == getattr(usual, key) for key in LATER):
        settings = {key: value for key, value in settings.items() if key not in LATER}
        parts = [VERSION, settings, CHARACTERS, list(KINDS), TEACHER_ACCURACY]
    if tiny.draft_digits:
        parts.append(DRAFT_ERROR)
    if tiny.check_share:
        parts.append([CHECK_CHARACTERS, VERDICT_ACCURACY])
    if tiny.nim:
        parts = [VERSION, settings, GAME_CHARACTERS]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def demonstrations_of(tiny: TinyPolicyConfig) -> list[Demonstration]:
    """Return the reasoning_gym questions of the warm-up, none for arithmetic. Takes seconds."""
    return make_demonstrations(tiny.tasks, DEMONSTRATIONS, tiny.seed) if tiny.tasks else []


def games_of(tiny: TinyPolicyConfig, size: int) -> list[list[Segment]]:
    """Return the first games of the warm-up, none for other tasks. Takes seconds.

    Raises:
        ConfigError: A game cannot be created or played.
    """
    try:
        return play_games(tiny.games, size, tiny.seed) if tiny.games else []
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"model.tiny.games: {error}") from error


def tokenizer_of(
    tiny: TinyPolicyConfig, demonstrations: Sequence[Demonstration], games: Sequence[Sequence[Segment]] = ()
) -> PreTrainedTokenizerFast:
    """Return the policy's tokenizer, given the results of `demonstrations_of` and `games_of`, of which the first
    VOCABULARY_GAMES are enough."""
    if tiny.nim:
        return make_tokenizer(GAME_CHARACTERS)
    if games:
        return make_tokenizer(LETTERS, common_lines(games[:VOCABULARY_GAMES]))
    if demonstrations:
        return make_tokenizer(LETTERS, question_templates(demonstrations))
    tools, verdicts = TOOL_CHARACTERS * bool(tiny.tool_share), CHECK_CHARACTERS * bool(tiny.check_share)
    return make_tokenizer(CHARACTERS + tools + verdicts)


def make_tokenizer(characters: str = CHARACTERS, templates: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token for each character and template; it adds no tokens and has no chat template.

    Args:
        characters: Characters of the vocabulary; others become <unk>.
        templates: Longer texts that are one token each.
    """
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
