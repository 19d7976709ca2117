"""Prompts from files: what is loaded, and what people are told when it cannot be."""

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.config.prompts_schema import PromptsConfig, SourceConfig
from kray.errors import ConfigError, DataError
from kray.prompts import load_prompts, load_tests

GSM8K = Path(__file__).resolve().parents[4] / "shared" / "data" / "gsm8k"


def jsonl(path: str, **options) -> SourceConfig:
    return SourceConfig(kind="jsonl", path=str(path), prompt_field="question", answer_field="answer", **options)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(source: SourceConfig) -> str:
    with pytest.raises(DataError) as caught:
        load_prompts(source, "exact")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_several_test_sets_differ_from_the_first_in_what_is_said(here):
    (here / "a.jsonl").write_text('{"question": "2+2?", "answer": 4}\n')
    (here / "b.jsonl").write_text('{"problem": "3+3?", "answer": 6}\n')
    config = PromptsConfig(test=jsonl("a.jsonl", template="{prompt}!"))
    assert [[p.id for p in prompts] for _, prompts in load_tests(config, "math")] == [["a.jsonl:1"]]
    config.more_tests = {"b": {"path": "b.jsonl", "prompt_field": "problem"}}
    (_, (first,)), (source, (second,)) = load_tests(config, "math")
    assert (first.id, first.metadata["set"]) == ("test/a.jsonl:1", "test")
    assert (second.id, second.metadata["set"], second.text) == ("b/b.jsonl:1", "b", "3+3?")
    assert (source.template, source.prompt_field) == ("{prompt}!", "problem")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"b": {"pth": "x"}}, r"prompts\.more_tests\.b\.pth.*did you mean path"),
        ({"b": {"limit": "x"}}, r"prompts\.more_tests\.b\.limit: 'x'"),
        ({"b": "x.jsonl"}, r"prompts\.more_tests\.b: a name"),
        ({"test": {}}, r"prompts\.more_tests\.test: a name"),
    ],
)
def test_a_test_set_that_cannot_be_is_named(sets, message):
    with pytest.raises(ConfigError, match=message):
        load_tests(PromptsConfig(more_tests=sets), "math")


def test_a_row_becomes_a_prompt(here):
    (here / "p.jsonl").write_text(
        '{"question": "2+2?", "answer": 4}\n\n{"question": "là?", "answer": "oui"}\n', "utf-8"
    )
    first, second = load_prompts(jsonl("p.jsonl"), "math")
    assert (first.id, first.text, first.answer, first.verifier) == ("p.jsonl:1", "2+2?", "4", "math")
    assert (first.source, first.messages) == ("p.jsonl", None)
    assert (second.id, second.text, second.answer) == ("p.jsonl:3", "là?", "oui")
    assert load_prompts(jsonl("p.jsonl", verifier="exact"), "math")[0].verifier == "exact"


def test_a_byte_order_mark_is_no_part_of_the_data(here):
    (here / "p.jsonl").write_bytes(b'\xef\xbb\xbf{"question": "a", "answer": "b"}\r\n')
    assert load_prompts(jsonl("p.jsonl"), "exact")[0].text == "a"


@pytest.mark.parametrize(("value", "text"), [(72, "72"), (-1.5, "-1.5"), (True, "true"), (False, "false"), ("x", "x")])
def test_answers_may_be_text_numbers_or_truth_values(here, value, text):
    (here / "p.jsonl").write_text(json.dumps({"question": "q", "answer": value}))
    assert load_prompts(jsonl("p.jsonl"), "exact")[0].answer == text


def test_fields_may_be_nested_and_ids_given(here):
    row = {"extra": {"q": "why?", "more": [{"a": 3}]}, "a.b": "id-1"}
    (here / "p.jsonl").write_text(json.dumps(row))
    source = SourceConfig(
        kind="jsonl", path="p.jsonl", prompt_field="extra.q", answer_field="extra.more.0.a", id_field="a.b"
    )
    prompt = load_prompts(source, "exact")[0]
    assert (prompt.id, prompt.text, prompt.answer) == ("id-1", "why?", "3")
    source.prompt_field = "extra.p"
    assert refused(source) == 'p.jsonl:1: field "extra.p" is missing (fields of "extra": q, more)'
    source.prompt_field = "extra.q.p"
    assert refused(source) == 'p.jsonl:1: field "extra.q.p" is missing (of "extra.q" is str)'


def test_a_field_may_say_what_kind_of_problem_a_row_is(here):
    rows = [
        {"question": "2+2?", "answer": "4", "about": {"level": 3}},
        {"question": "3+3?", "answer": "6", "about": {}},
    ]
    (here / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (prompt,) = load_prompts(jsonl("data.jsonl", kind_field="about.level", limit=1), "exact")
    assert prompt.metadata == {"kind": "3"}
    assert 'data.jsonl:2: field "about.level" is missing' in refused(jsonl("data.jsonl", kind_field="about.level"))


def test_a_prompt_may_be_chat_messages(here):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi", "name": None}]
    (here / "p.jsonl").write_text(json.dumps({"question": messages, "answer": "hello"}))
    prompt = load_prompts(jsonl("p.jsonl"), "exact")[0]
    assert prompt.text is None
    assert prompt.messages == ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"})


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], 'field "question" is an empty list of messages'),
        (["hi"], 'field "question", message 0 is str, not an object with role and content'),
        ([{"role": "user"}], 'field "question", message 0: "content" is missing (keys: role)'),
        ([{"role": "user", "content": None}], 'field "question", message 0: "content" is null, not text'),
        ([{"role": "user", "content": ["x"]}], 'field "question", message 0: "content" is list, not text'),
        (
            [{"role": "usr", "content": "x"}],
            'field "question", message 0: role "usr" is not one of system, developer, user, assistant, tool',
        ),
        ([{"role": "user", "content": " "}], 'field "question" is empty'),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            'field "question" ends with an assistant message: there is nothing to answer',
        ),
    ],
)
def test_bad_messages_are_named(here, messages, message):
    (here / "p.jsonl").write_text(json.dumps({"question": messages, "answer": "y"}))
    assert refused(jsonl("p.jsonl")) == f"p.jsonl:1: {message}"


GOOD = b'{"question": "q", "answer": "a", "id": "1"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "p.jsonl: the file is empty"),
        (b"\n \n", "p.jsonl: the file is empty"),
        (
            GOOD + b'{"question": "q", "answer"\n',
            "p.jsonl:2: the line is not JSON: Expecting ':' delimiter at column 27",
        ),
        (GOOD + b"\n[1]\n", "p.jsonl:3: the line is list, not an object with fields"),
        (
            GOOD + b'{"question": "\xff", "answer": "a"}',
            "p.jsonl:2: byte 15 of the line is not UTF-8 (invalid start byte)",
        ),
        (GOOD + b'{"id": 3, "question": "q"}\n', 'p.jsonl:2: field "answer" is missing (fields: id, question)'),
        (b'{"question": " ", "answer": "a"}', 'p.jsonl:1: field "question" is empty'),
        (b'{"question": 7, "answer": "a"}', 'p.jsonl:1: field "question" is int, not text or a list of messages'),
        (b'{"question": "q", "answer": ""}', 'p.jsonl:1: field "answer" is empty'),
        (
            b'{"question": "q", "answer": null}',
            'p.jsonl:1: field "answer" is null, not text, a number or true/false',
        ),
        (
            b'{"question": "q", "answer": ["a"]}',
            'p.jsonl:1: field "answer" is list, not text, a number or true/false; name it in the source\'s columns to pass '
            "it to a reward function as it is",
        ),
        (b'{"question": "q", "answer": NaN}', 'p.jsonl:1: field "answer" is nan, not a finite number as a float'),
        (
            b'{"question": "q", "answer": "a", "answer": "b"}',
            'p.jsonl:1: the line cannot be read: the key "answer" stands twice in one object',
        ),
        (
            b'{"question": "q", "answer": "a", "more": [{"x": 1, "y": 2, "x": 1}]}',
            'p.jsonl:1: the line cannot be read: the key "x" stands twice in one object',
        ),
        (b"[" * 100_000, "p.jsonl:1: the line is not JSON: it is nested too deeply"),
        (b'{"question": "\\ud800", "answer": "a"}', 'p.jsonl:1: field "question" holds half a character (U+D800)'),
        (b'{"question": "q", "answer": "\\udfff"}', 'p.jsonl:1: field "answer" holds half a character (U+DFFF)'),
        (
            b'{"question": [{"role": "user", "content": "\\ud800"}], "answer": "a"}',
            'p.jsonl:1: field "question", message 0: "content" holds half a character (U+D800)',
        ),
        (b'{"question": "q", "answer": 1e999}', 'p.jsonl:1: field "answer" is 1e999, not a finite number as a float'),
    ],
)
def test_a_bad_line_is_named(here, content, message):
    (here / "p.jsonl").write_bytes(content)
    assert refused(jsonl("p.jsonl")) == message


def test_numbers_of_any_length_are_text_or_named(here):
    (here / "p.jsonl").write_text(f'{{"question": "q", "answer": {"7" * 400}}}')
    assert load_prompts(jsonl("p.jsonl"), "exact")[0].answer == "7" * 400
    (here / "p.jsonl").write_text(f'{{"question": "q", "answer": {"7" * 5000}}}')
    assert refused(jsonl("p.jsonl")).startswith("p.jsonl:1: the line cannot be read: Exceeds the limit")


def test_a_huge_line_is_refused_and_not_held_in_memory(here, monkeypatch):
    monkeypatch.setattr("kray.prompts.rows._LINE_BYTES", 1 << 20)
    (here / "p.jsonl").write_bytes(GOOD + b"x" * (3 << 20))
    assert refused(jsonl("p.jsonl")) == "p.jsonl:2: the line is longer than 1 MiB"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_named():
    assert refused(jsonl("/proc/self/mem")) == "/proc/self/mem: it cannot be read: Input/output error"


def test_a_truncated_parquet_file_is_named(here):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.Table.from_pylist([{"question": "q", "answer": "a"}] * 100), "p.parquet")
    whole = (here / "p.parquet").read_bytes()
    source = SourceConfig(kind="parquet", path="p.parquet", prompt_field="question")
    for length in (0, 3, 8, len(whole) // 2, len(whole) - 1):
        (here / "p.parquet").write_bytes(whole[:length])
        assert refused(source).startswith("p.parquet: it cannot be read as parquet: ")


def test_gzipped_lines_are_read_and_a_truncated_file_is_named(here):
    (here / "p.jsonl.gz").write_bytes(packed := gzip.compress(GOOD, mtime=0))
    for path in ("p.jsonl.gz", "."):
        assert [prompt.id for prompt in load_prompts(jsonl(path), "exact")] == ["p.jsonl.gz:1"]
    for broken in (
        packed[:-6],
        packed[: len(packed) // 2],
        packed[:3],
        packed[:20] + b"\x00\xff" * 20,
        packed[:-8] + b"x" * 8,
    ):
        (here / "p.jsonl.gz").write_bytes(broken)
        assert refused(jsonl("p.jsonl.gz")).startswith("p.jsonl.gz: it cannot be read as gzip, after line ")
    (here / "p.jsonl.gz").write_bytes(gzip.compress(b""))
    assert refused(jsonl("p.jsonl.gz")) == "p.jsonl.gz: the file is empty"


def test_an_id_used_twice_names_both_lines(here):
    (here / "p.jsonl").write_bytes(GOOD + b"\n" + GOOD.replace(b'"q"', b'"Q"'))
    assert refused(jsonl("p.jsonl", id_field="id")) == 'p.jsonl:3: id "1" was already used at p.jsonl:1'


def test_missing_files_are_named(here):
    assert refused(jsonl("p.jsonl")) == f"p.jsonl: the file does not exist (in {here})"
    assert refused(jsonl("/none/p.jsonl")) == "/none/p.jsonl: the file does not exist"
    assert refused(jsonl("*.jsonl")) == f"*.jsonl: no file matches (in {here})"
    (here / "folder").mkdir()
    assert refused(jsonl("folder")) == "folder: the folder holds no .jsonl file"
    assert "path is empty" in refused(jsonl(""))


def test_unknown_kinds_are_named_with_the_nearest():
    known = (
        "arithmetic, jsonl, parquet, huggingface, questions, programs, passages, reasoning_gym, nim, seeds, verifiers"
    )
    message = f'kind "josnl" is not known (did you mean "jsonl"?); known: {known}'
    assert refused(SourceConfig(kind="josnl")) == message


@pytest.mark.parametrize("path", ["data/**/*.jsonl", "data/*/p.jsonl"])
def test_files_of_a_glob_keep_ids_of_their_own(here, path):
    for folder in ("b", "a"):
        (here / "data" / folder).mkdir(parents=True)
        (here / "data" / folder / "p.jsonl").write_bytes(GOOD.replace(b'"q"', b'"%s"' % folder.encode()))
    assert [prompt.id for prompt in load_prompts(jsonl(path), "exact")] == ["a/p.jsonl:1", "b/p.jsonl:1"]


def test_a_limit_stops_reading(here):
    (here / "p.jsonl").write_bytes(b"".join(GOOD.replace(b'"q"', b'"q%d"' % i) for i in range(3)) + b"not JSON\n")
    assert len(load_prompts(jsonl("p.jsonl", limit=3), "exact")) == 3
    assert "limit must not be negative" in refused(jsonl("p.jsonl", limit=-1))


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=20))
def test_whatever_is_written_is_read_back(tmp_path_factory, rows):
    rows = list(dict.fromkeys((q, a) for q, a in rows if q.strip() and a.strip())) or [("q", "a")]
    path = tmp_path_factory.mktemp("rows") / "p.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    assert [(p.text, p.answer) for p in load_prompts(jsonl(path, prompt_format="text"), "exact")] == rows


def test_parquet(here):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [{"q": f"q{i}", "gold": {"value": i}, "other": b"x"} for i in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), "p.parquet")
    source = SourceConfig(kind="parquet", path="p.parquet", prompt_field="q", answer_field="gold.value")
    prompts = load_prompts(source, "exact")
    assert len(prompts) == 3000
    assert (prompts[2999].id, prompts[2999].text, prompts[2999].answer) == ("p.parquet:3000", "q2999", "2999")
    source.limit, source.kind_field = 5, "gold.value"
    assert [prompt.metadata["kind"] for prompt in load_prompts(source, "exact")] == list("01234")
    source.kind_field = "level"
    assert refused(source) == 'p.parquet: row 1: field "level" is missing (fields: q, gold, other)'
    source.kind_field = ""
    source.prompt_field = "prompt"
    assert refused(source) == 'p.parquet: row 1: field "prompt" is missing (fields: q, gold, other)'
    rows[7]["q"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), "p.parquet")
    source.prompt_field, source.limit = "q", 0
    assert refused(source) == 'p.parquet: row 8: field "q" is NoneType, not text or a list of messages'
    parquet.write_table(pyarrow.table({"q": pyarrow.array([], pyarrow.string())}), "p.parquet")
    assert refused(source) == "p.parquet: the file is empty"
    (here / "p.parquet").write_bytes(b"no parquet")
    assert refused(source).startswith("p.parquet: it cannot be read as parquet: ")


def test_huggingface_folders(here, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = datasets.Dataset.from_list([{"question": f"q{i}", "answer": i, "z": 0} for i in range(5)])
    datasets.DatasetDict({"train": table, "dev": table.select(range(2))}).save_to_disk("saved")
    source = SourceConfig(kind="huggingface", path="saved", prompt_field="question")
    prompts = load_prompts(source, "math")
    assert [prompt.id for prompt in prompts] == [f"saved/train:{i}" for i in range(1, 6)]
    assert (prompts[4].text, prompts[4].answer, prompts[4].verifier) == ("q4", "4", "math")
    source.kind_field = "z"
    assert load_prompts(source, "math")[0].metadata == {"kind": "0"}
    source.split, source.limit = "dev", 1
    assert len(load_prompts(source, "math")) == 1
    source.split = "test"
    assert refused(source) == 'saved: split "test" is missing (splits: train, dev)'
    source.split, source.prompt_field = "train", "prompt"
    assert refused(source) == 'saved (train): row 1: field "prompt" is missing (fields: question, answer, z)'
    source.path = str(here / "nothing")
    assert "the dataset cannot be loaded" in refused(source)


def test_gsm8k_is_loaded_as_published():
    path = GSM8K / "train.jsonl"
    if not path.exists():
        pytest.skip(f"GSM8K is not at {path}")
    prompts = load_prompts(jsonl(path), "math")
    assert len(prompts) == 7473
    assert len({prompt.id for prompt in prompts}) == 7473
    assert prompts[0].answer.endswith("#### 72")


def test_gsm8k_solutions_are_judged_right_by_the_math_verifier():
    from kray.rewards import score

    path = GSM8K / "test.jsonl"
    if not path.exists():
        pytest.skip(f"GSM8K is not at {path}")
    for prompt in load_prompts(jsonl(path, limit=300), "math"):
        final = prompt.answer.rpartition("####")[2].strip()
        assert score("math", f"So it is ${final}.", prompt.answer).value == 1.0
        assert score("math", f"#### {final}1", prompt.answer).value == 0.0


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_blank_lines_is_refused_soon(packed, tmp_path):
    """A gzip file of a few kilobytes can hold any number of them."""
    content = b'{"prompt": "1+1?", "answer": "2"}\n' + b"\n" * 3_000_000
    file = tmp_path / "p.jsonl"
    file.write_bytes(gzip.compress(content, 1) if packed else content)
    started = time.process_time()
    with pytest.raises(DataError, match=r"p\.jsonl:1000002: the last 1,000,001 lines are blank"):
        load_prompts(SourceConfig(kind="jsonl", path=str(file)), "exact")
    assert time.process_time() - started < 5
