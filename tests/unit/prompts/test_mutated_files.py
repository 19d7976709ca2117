"""Mutated data files are loaded, or refused by one error that names file and line."""

from __future__ import annotations

import json
import random

import pytest
from mutations import attempt, misspelt, mutated_bytes

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts import load_prompts

ROWS = [
    {"question": "2+2?", "answer": "4", "id": "a"},
    {"question": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}], "answer": 5, "id": "b"},
    {"question": "é\n\"x\"", "answer": 0.5, "extra": {"deep": [{"q": "7?"}]}, "id": "c"},
]  # fmt: skip


ODD = [
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, 1e308,
    5e-324, "", " ", "x", "\ud800", "\0", "x" * 100_000, [], [[]],
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
def test_mutated_data_is_loaded_or_refused_with_its_line(seed, tmp_path):
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


def test_mutated_parquet_is_loaded_or_refused_by_name(tmp_path):
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
