"""Whatever a config or a data file says, it is loaded or refused by one clear error: thousands of mutations of good ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from mutations import attempt, misspelt, mutated_bytes

from kray.config import check, load_config
from kray.config.reading import all_keys
from kray.config.schema import KrayConfig
from kray.errors import ConfigError

STUDIES = "compare-"  # files of jobs/compare.py, which are no configurations of a run
CONFIGS = sorted(f for f in (Path(__file__).parents[3] / "configs").glob("*.yaml") if not f.name.startswith(STUDIES))
KEYS = all_keys(KrayConfig)
VALUES = [
    "null", "~", "0", "-1", "2.5", "1e-4", "1e999", "-.inf", ".nan", "yes", "no", "''", "x", "", "[]", "{}",
    "[1, {a: [2]}]", "{a: 1}", "!!python/object:os.system x", "!!binary x", "!!set {a}", "*nowhere", "&a [*a]",
    "9" * 30, "0x10", "1_000",
    "2024-01-01", "12:30", "'\\ud800'", '"\\ud800"', '"\\x00"', "???", "${run.seed}", "${run.nope}",
    "${oc.env:NO_SUCH_VARIABLE}",
    "${oc.decode:'['}", "${", "$", "<<", "|", ">-", "%", "@", "`", "é", "{prompt}",
    "{prompt", "{0}", "pkg.mod:fn", "../..", "/",
    "{prompt:>1000000000}", "{prompt.__class__}", "1e308", "1e-320", "-1e308", "[&a [1, 2], *a, *a]",
    "${run.name}${run.name}", "${run}", "${.}", "${..}", "${" * 40, "!!int 1:" + "1:" * 2000 + "1", "9" * 2000,
    "jsonl", "tokens", "online", "dr_grpo", "a" * 10_000,
]  # fmt: skip


def mutated_text(text: str, rng: random.Random) -> str:
    """One to three edits, as people and broken editors make them."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        line = lines[at]
        kind = rng.randrange(10)
        if kind == 0:
            lines[at] = f"{line.partition(':')[0]}: {rng.choice(VALUES)}"
        elif kind == 1:
            lines[at] = misspelt(line, rng)
        elif kind == 2:
            lines.insert(at, line)
        elif kind == 3:
            del lines[at : at + rng.randint(1, 5)]
            lines = lines or [""]
        elif kind == 4:
            lines[at] = " " * rng.randint(0, 5) + line.lstrip()
        elif kind == 5:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 6:
            lines.insert(at, f"{' ' * rng.randint(0, 4)}{rng.choice(KEYS).split('.')[-1]}: {rng.choice(VALUES)}")
        elif kind == 7:
            lines[at] = line[: rng.randint(0, len(line))]
        elif kind == 8:
            lines[at] = line.replace(":", rng.choice(["", "=", "::", ": -", ":\t"]), 1)
        else:
            lines[at] = line + rng.choice(["\t", " #", " : x", "]", "}", "{", '"', "\x7f", "\u2028", "\\"])
    return "\n".join(lines) + "\n"


def mutated_override(rng: random.Random) -> str:
    key = rng.choice(KEYS)
    return f"{misspelt(key, rng) if rng.random() < 0.3 else key}{rng.choice(['=', '=', '=', '', '=='])}{rng.choice(VALUES)}"


def names_its_place(line: str, file: Path) -> bool:
    return str(file) in line or "command line: " in line


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_mutated_config_is_loaded_or_refused_with_its_place(config, tmp_path):
    rng, text = random.Random(f"2 {config.stem}"), config.read_text()
    file = tmp_path / "c.yaml"
    refused = 0
    for _ in range(150):
        if rng.random() < 0.6:
            file.write_text(mutated_text(text, rng), encoding="utf-8")
        elif rng.random() < 0.5:
            file.write_bytes(mutated_bytes(text.encode(), rng))
        else:
            file.write_text(text)
        overrides = [mutated_override(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
        loaded, message = attempt(ConfigError, load_config, file, overrides)
        if message:
            refused += 1
            strays = [line for line in message.splitlines() if not names_its_place(line, file)]
            assert not strays, (message, file.read_bytes(), overrides)
        else:
            assert check(loaded) == []
    assert 40 < refused < 150  # both ways out were taken
