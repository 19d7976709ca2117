"""Data files as verl, TRL and verifiers have them, read by configuration alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shipped_datasets import trl_rows, verifiers_rows, verl_rows, write_jsonl, write_parquet

from kray.config import SourceConfig
from kray.errors import DataError
from kray.prompts import load_prompts
from kray.rewards import Sample, score

SUMS = [(1, 2), (6, 7)]
GSM8K = Path(__file__).parents[4] / "shared/data/gsm8k/train.jsonl"


def load(kind: str, path: Path, verifier: str = "exact", **keys):
    return load_prompts(SourceConfig(kind=kind, path=str(path), **keys), verifier)


@pytest.mark.parametrize("columns", [["data_source", "extra_info", "reward_model.ground_truth"], ["*"]])
def test_parquet_of_verl(tmp_path, columns):
    file = write_parquet(tmp_path / "train.parquet", verl_rows(SUMS))
    keys = {"answer_field": "reward_model.ground_truth", "kind_field": "data_source", "columns": columns}
    first, second = load("parquet", file, **keys)
    assert (first.id, first.answer, first.metadata) == ("train.parquet:1", "3", {"kind": "tiny/sums"})
    assert first.messages == ({"role": "user", "content": "1+2"},)
    extra = {"split": "train", "index": 1, "weight": 0.5, "steps": [6, 7]}
    assert second.columns["extra_info"] == extra
    assert (second.columns["data_source"], second.columns["ground_truth"]) == ("tiny/sums", "13")
    assert set(first.columns) - {"data_source", "extra_info", "ground_truth"} == (
        {"ability", "reward_model"} if columns == ["*"] else set()
    )
    assert score("sample_rewards:compute_score", "it is 13", Sample(second)).value == 1.0


def test_a_ground_truth_that_is_an_object_reaches_the_function_as_one(tmp_path):
    rows = verl_rows(SUMS)
    for row, (a, b) in zip(rows, SUMS, strict=True):
        row["reward_model"]["ground_truth"] = {"target": a + b, "numbers": [a, b]}
    file = write_parquet(tmp_path / "train.parquet", rows)
    keys = {"answer_field": "reward_model.ground_truth"}
    with pytest.raises(DataError, match=r"row 1: .*is dict, .*name it in the source's columns"):
        load("parquet", file, **keys, columns=["data_source"])
    first, _ = load("parquet", file, **keys, columns=["data_source", "reward_model.ground_truth"])
    assert json.loads(first.answer) == first.columns["ground_truth"] == {"target": 3, "numbers": [1, 2]}
    assert score("sample_rewards:target_score", "2+1", Sample(first)).value == 1.0


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
def test_columns_of_trl(tmp_path, kind, chat):
    rows = trl_rows(SUMS, chat)
    if kind == "huggingface":
        import datasets

        path = tmp_path / "saved"
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(path))
    else:
        write = {"jsonl": write_jsonl, "parquet": write_parquet}[kind]
        path = write(tmp_path / f"train.{kind}", rows)
    prompts = load(kind, path, answer_field="", columns=["solution", "level"])
    assert [prompt.columns for prompt in prompts] == [
        {"solution": "3", "level": "easy"},
        {"solution": "13", "level": "hard"},
    ]
    assert [prompt.columns for prompt in load(kind, path, answer_field="solution", columns=["*"])] == [
        prompt.columns for prompt in prompts
    ]
    assert (prompts[0].text is None, prompts[0].answer) == (chat, "")
    assert score("sample_rewards:trl_solution", "13", Sample(prompts[1])).value == 1.0


def test_rows_of_verifiers(tmp_path):
    file = write_jsonl(tmp_path / "train.jsonl", verifiers_rows(SUMS))
    first, _ = load("jsonl", file, prompt_field="question", columns=["info", "task"], kind_field="task")
    assert (first.text, first.answer, first.metadata) == ("1+2=", "3", {"kind": "sums"})
    assert first.columns == {"info": {"below": 100, "terms": [1, 2]}, "task": "sums"}
    assert score("sample_rewards:rubric", "3", Sample(first)).value == 1.0


def test_numbers_are_pythons_own(tmp_path):
    row = {"prompt": "x", "answer": 3, "a": 0.5, "b": [1e3, 2], "c": None, "d": True, "e": {"f": -0.25}}
    columns = {name: row[name] for name in "abcde"} | {"answer": 3}
    for kind, write in (("jsonl", write_jsonl), ("parquet", write_parquet)):
        (prompt,) = load(kind, write(tmp_path / f"x.{kind}", [row]), columns=["*"])
        assert prompt.columns == columns
        assert json.loads(json.dumps(prompt.columns)) == columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["nowhere"], r'"nowhere" is missing'),
        (["reward_model.level"], r'"reward_model\.level" is missing'),
        (["extra_info.split", "split"], 'two of the columns are "split"'),
    ],
)
def test_columns_that_cannot_be_had_are_named(tmp_path, columns, message):
    rows = [row | {"split": "x"} for row in verl_rows(SUMS)]
    keys = {"answer_field": "reward_model.ground_truth", "columns": columns}
    for kind, write in (("jsonl", write_jsonl), ("parquet", write_parquet)):
        with pytest.raises(DataError, match=message):
            load(kind, write(tmp_path / f"x.{kind}", rows), **keys)


def test_rows_without_an_answer_repeat_each_other_only_with_the_same_columns(tmp_path):
    rows = [{"prompt": "x", "solution": "1"}, {"prompt": "x", "solution": "2"}, {"prompt": "x", "solution": "1"}]
    file = write_jsonl(tmp_path / "x.jsonl", rows)
    assert [p.columns["solution"] for p in load("jsonl", file, answer_field="", columns=["solution"])] == ["1", "2"]


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"needs GSM8K's published file at {GSM8K}")
def test_gsm8k_as_verl_prepares_it(tmp_path):
    """Verl's script: the number behind #### as the ground truth, the solution in extra_info."""
    lines = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f"{line['question']} Put the answer after ####."}],
            "reward_model": {"style": "rule", "ground_truth": line["answer"].split("#### ")[1].replace(",", "")},
            "extra_info": {"split": "train", "index": index, "answer": line["answer"]},
        }
        for index, line in enumerate(lines)
    ]
    file = write_parquet(tmp_path / "train.parquet", rows)
    keys = {"answer_field": "reward_model.ground_truth", "columns": ["data_source", "extra_info"]}
    prompts = load("parquet", file, **keys)
    assert len(prompts) == len({row["prompt"][0]["content"] for row in rows}) > 7000
    for prompt in prompts[:200]:
        solution = prompt.columns["extra_info"]["answer"].replace(",", "")
        assert score("sample_rewards:compute_score", solution, Sample(prompt)).value == 1.0
        assert score("math", solution, prompt.answer).value == 1.0
