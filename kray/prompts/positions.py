"""Starting positions of Nim as prompts (kray/environments/nim.py has the rules)."""

from __future__ import annotations

import functools
import itertools
import operator
import random
from collections.abc import Mapping
from typing import Any

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts.arithmetic import SPLITS, in_test
from kray.records import Prompt

# Options of a label, with their defaults.
DEFAULTS = {"heaps": 3, "largest": 5}
# Most heaps, which letters name, and most objects in one, which a digit counts.
MOST = {"heaps": 8, "largest": 9}
# Most positions of a label, since all of them are listed.
MOST_POSITIONS = 50_000


def nim_prompts(source: SourceConfig, verifier: str) -> list[Prompt]:
    """List starting positions of Nim as prompts, in an order drawn from the source's seed.

    Args:
        source: size (fewer where there are no more), seed, split, limit and tasks: label -> {heaps, largest}, the number of
            heaps and the size of the largest; empty: 3 heaps of up to 5. Labels alternate while they have positions left. A
            hash of the position decides its split.
        verifier: Verifier of the prompts, which Nim does not use.

    Returns:
        The prompts, with "kind" (the label) in their metadata. The answer is the role that wins under perfect play.

    Raises:
        DataError: An option of the source is invalid.
    """
    if source.split not in SPLITS:
        raise DataError(f'split "{source.split}" is not one of {", ".join(SPLITS)}')
    if source.size < 1:
        raise DataError(f"size must be at least 1, not {source.size}")
    by_label = []
    for label, options in (source.tasks or {"nim": {}}).items():
        positions = [heaps for heaps in all_positions(label, options) if _in_split(heaps, source.split)]
        random.Random(f"{source.seed}/{label}").shuffle(positions)
        by_label.append([(label, heaps) for heaps in positions])
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_label))
    # Labels may have positions in common.
    known: dict[str, tuple[str, tuple[int, ...]]] = {}
    for label, heaps in filter(None, rounds):
        known.setdefault(_text(heaps), (label, heaps))
    wanted = min(source.size, source.limit) if source.limit else source.size
    return [
        Prompt(
            id=f"nim/{source.split}/{text.removesuffix('>')}",
            answer="first" if functools.reduce(operator.xor, heaps) else "second",
            verifier=verifier,
            source="nim",
            text=text,
            metadata={"kind": label},
        )
        for text, (label, heaps) in itertools.islice(known.items(), wanted)
    ]


def all_positions(label: str, options: Any) -> list[tuple[int, ...]]:
    """List all positions of a label.

    Args:
        label: Of the positions, for messages.
        options: {heaps, largest}; None or {}: the defaults.

    Raises:
        DataError: An option is unknown or out of range.
    """
    given = options or {}
    if not isinstance(given, Mapping) or not set(given) <= set(DEFAULTS):
        raise DataError(f"tasks.{label}: Nim's options are {', '.join(DEFAULTS)}, not {given!r:.60}")
    sizes = {**DEFAULTS, **given}
    for option, most in MOST.items():
        if type(sizes[option]) is not int or not 1 <= sizes[option] <= most:
            raise DataError(
                f"tasks.{label}.{option} must be a whole number from 1 to {most}, not {sizes[option]!r:.40}"
            )
    if (count := sizes["largest"] ** sizes["heaps"]) > MOST_POSITIONS:
        raise DataError(f"tasks.{label}: {count:,} positions, more than {MOST_POSITIONS:,}; use fewer or smaller heaps")
    return list(itertools.product(range(1, sizes["largest"] + 1), repeat=sizes["heaps"]))


def _text(heaps: tuple[int, ...]) -> str:
    return "".join(map(str, heaps)) + ">"


def _in_split(heaps: tuple[int, ...], split: str) -> bool:
    return in_test(_text(heaps)) == (split == "test")
