"""Whatever a config or a data file says, it is loaded or refused by one clear error: thousands of mutations of good ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from kray.config import check, load_config
from kray.config.reading import all_keys
from kray.config.schema import KrayConfig, SourceConfig
from kray.errors import ConfigError, DataError
from kray.prompts import load_prompts

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


def misspelt(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(["", "x", "_", text[at : at + 1]]) + text[at + rng.randint(0, 1) :]


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    noise = bytes(rng.randrange(256) for _ in range(rng.randint(0, 4)))
    return rng.choice(
        [content[:at] + noise + content[at:], content[:at], content[:at] + noise + content[to:], content * 2]
    )


def mutated_override(rng: random.Random) -> str:
    key = rng.choice(KEYS)
    return f"{misspelt(key, rng) if rng.random() < 0.3 else key}{rng.choice(['=', '=', '=', '', '=='])}{rng.choice(VALUES)}"


def attempt(expected: type[Exception], call: Any, *arguments: Any) -> tuple[Any, str]:
    """(what it returned, "") or (None, the message of the expected error); any other error is this test's failure."""
    try:
        return call(*arguments), ""
    except expected as error:
        assert str(error), "an error without a message"  # noqa: PT017
        return None, str(error)


def names_its_place(line: str, file: Path) -> bool:
    return str(file) in line or "command line: " in line


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_mutated_config_is_loaded_or_refused_with_its_place(config, tmp_path):
    rng, text = random.Random(f"2 {config.stem}"), config.read_text()
    file = tmp_path / "c.yaml"
    refused = 0
    for _ in range(400):
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
    assert 100 < refused < 400  # both ways out were taken


ROWS = [
    {"question": "2+2?", "answer": "4", "id": "a"},
    {"question": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}], "answer": 5, "id": "b"},
    {"question": "é\n\"x\"", "answer": 0.5, "extra": {"deep": [{"q": "7?"}]}, "id": "c"},
]  # fmt: skip
ODD = [
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, "", " ", "x", "\ud800", "\0", "x" * 100_000, [], [[]],
    {}, {"role": "user"}, ["x", None], [{"role": "user", "content": None}], [{"role": "assistant", "content": "x"}],
    [{"role": "root", "content": "x"}],
]  # fmt: skip


def mutated_row(row: dict, rng: random.Random) -> dict:
    row = json.loads(json.dumps(row))
    for _ in range(rng.randint(0, 2)):
        key = rng.choice([*row, "new"])
        if rng.random() < 0.3 and key in row:
            row[misspelt(key, rng)] = row.pop(key)
        elif rng.random() < 0.2:
            row.pop(key, None)
        else:
            row[key] = rng.choice(ODD)
    return row


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mutated_data_is_loaded_or_refused_with_its_file_and_line(seed, tmp_path):
    rng = random.Random(seed)
    file = tmp_path / "p.jsonl"
    refused = 0
    for _ in range(1000):
        rows = [mutated_row(rng.choice(ROWS), rng) for _ in range(rng.randint(0, 3))]
        content = "\n".join(json.dumps(row, ensure_ascii=rng.random() < 0.9 or "\ud800" in repr(row)) for row in rows)
        content = content.encode(errors="surrogatepass") + rng.choice([b"\n", b"", b"\r\n", b"\n\n"])
        file.write_bytes(mutated_bytes(content, rng) if rng.random() < 0.4 else content)
        source = SourceConfig(
            kind="jsonl",
            path=str(file),
            prompt_field=rng.choice(["question", "question", "extra.deep.0.q", "question.0.content", "", ".", "q"]),
            answer_field=rng.choice(["answer", "answer", "", "extra", "answer.0"]),
            id_field=rng.choice(["", "", "id", "extra"]),
            limit=rng.choice([0, 0, 1, -1]),
        )
        prompts, message = attempt(DataError, load_prompts, source, "exact")
        if message:
            refused += 1
            assert source.limit < 0 or message.startswith(str(file)), message
            assert len(message.splitlines()) == 1, message
        else:
            assert len({prompt.id for prompt in prompts}) == len(prompts) > 0
            for prompt in prompts:
                assert (prompt.text is None) != (prompt.messages is None)
                json.dumps([prompt.text, prompt.messages, prompt.answer, prompt.id], ensure_ascii=False).encode()
    assert 300 < refused < 1000


@pytest.mark.slow
def test_mutated_parquet_files_are_loaded_or_refused_with_their_name(tmp_path):
    """Each in a process of its own would be safer: the library reads them in C++, and a crash would end this test."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    file = tmp_path / "p.parquet"
    rng = random.Random(4)
    parquet.write_table(pyarrow.Table.from_pylist([{"question": f"q{i}", "answer": str(i)} for i in range(50)]), file)
    whole, refused = file.read_bytes(), 0
    for _ in range(400):
        file.write_bytes(mutated_bytes(whole, rng))
        source = SourceConfig(kind="parquet", path=str(file), prompt_field="question")
        _, message = attempt(DataError, load_prompts, source, "exact")
        refused += bool(message)
        assert not message or message.startswith(str(file))
    assert refused > 200
