"""Prompts that are JSON inside their field: read as what they hold, or refused with their place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts import load_prompts
from kray.prompts.fields import content
from kray.prompts.rows import Row

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]


def read(value, form="auto"):
    """(text, messages) of a prompt field."""
    return content(Row("p:1", "p", 1, {"prompt": value}), "prompt", form)


def refused(value, form="auto") -> str:
    with pytest.raises(DataError) as caught:
        read(value, form)
    assert str(caught.value).startswith('p:1: field "prompt"')
    return str(caught.value)


@pytest.mark.parametrize("text", [json.dumps(CHAT), json.dumps(CHAT, indent=2), f"  {json.dumps(CHAT)}\n"])
def test_json_of_chat_messages_is_read_as_messages(text):
    assert read(text) == (None, tuple(CHAT))
    assert read(text, "json") == (None, tuple(CHAT))
    assert read(text, "text") == (text, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"role": "usr", "content": "x"}, {"role": "user", "content": "y"}], 'message 0: role "usr" is not one of'),
        ([{"role": "user"}], 'message 0: "content" is missing'),
        ([{"role": "user", "content": ""}], "is empty"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], 'message 0: "content" is list, not text'),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "ends with an assistant message"),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": " "}], "message 1: the last message asks nothing"),
        ([{"from": "human", "value": "x"}], 'message 0: "role" is missing (keys: from, value)'),
        ({"role": "user", "content": "x"}, "is a JSON object with chat messages"),
        ({"messages": CHAT}, "is a JSON object with chat messages"),
        ("2+2?", "is a text in JSON's quotes"),
        ([{"role": "User", "content": "x"}], 'message 0: role "User" is not one of system, developer, user'),
        ([{"role": "human", "content": "x"}, {"role": "gpt", "content": "y"}], 'message 0: role "human" is not one of'),
        ([{"role": None, "content": "x"}], 'message 0: "role" is null, not text'),
        ([{"Role": "user", "Content": "x"}], 'message 0: "role" is missing (keys: Role, Content)'),
        ([{"content": "x"}], 'message 0: "role" is missing (keys: content)'),
        ([{"id": 7, "content": "x"}], 'message 0: "role" is missing (keys: id, content)'),
        ([CHAT], "is a JSON list with chat messages"),
        ([[CHAT]], "is a JSON list with chat messages"),
        ({"a": {"messages": CHAT}}, "is a JSON object with chat messages"),
        ({"a": [{"b": {"c": [CHAT]}}]}, "is a JSON object with chat messages"),
        ([{"messages": CHAT}], "is a JSON list with chat messages"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "is a JSON object with chat messages"),
        ({"prompt": "x"}, "is a JSON object that may hold the prompt"),
        ({"id": 1, "Question": "x"}, "is a JSON object that may hold the prompt"),
        ([{"text": "x"}], "is a JSON list that may hold the prompt"),
        (["x"], "is a JSON list that may hold the prompt"),
        (["x", "y"], "is a JSON list that may hold the prompt"),
        ([["x"]], "is a JSON list that may hold the prompt"),
    ],
)  # fmt: skip
def test_json_that_is_no_chat_is_refused_with_its_place(value, message):
    for text in (json.dumps(value), "\ufeff" + json.dumps(value, indent=1)):
        assert message in refused(text)
        assert "prompt_format: text where it is the prompt itself" in refused(text)
        assert read(text, "text") == (text, None)


@pytest.mark.parametrize(
    "text",
    [
        str(CHAT),
        json.dumps(CHAT)[:-3],
        f"array({CHAT})",
        f"array([{CHAT}, {CHAT}])",
        str([{"from": "a", "value": "b"}]),
        str(tuple(CHAT)),
        "\ufeff" + str(CHAT),
        '[{"id": 1, "role": "user", "content": "2+',
        '{"id": 1, "messages": [{"role": "user", "content": "2+2?"}',
        '[{"id": "a", "meta": {"x": [1]}, "role": "User", "content": "2+2?"},',
        json.dumps({"id": 1, "prompt": "2+2?"})[:-1],
        '[{"role": "user", "content": "\\sin x"}]',
        '[{"role": "user", "content": "say "hi" now"}]',
        '[{"role": "user", "role": "system", "content": "2+2?"}]',
        "\n".join(json.dumps(message) for message in CHAT),
        json.dumps(CHAT) + ",",
    ],
)
def test_broken_json_of_chat_messages_is_refused(text):
    assert "begins like chat messages and is not JSON; set prompt_format: text" in refused(text)
    assert read(text, "text") == (text, None)


@pytest.mark.parametrize("text", ["['hi']", '["hi"', "['a', \"b's\"]", "[['hi']]", '["a", "b",]'])
def test_broken_json_of_texts_is_refused(text):
    assert "begins like a list of texts and is not JSON; set prompt_format: text" in refused(text)
    assert read(text, "text") == (text, None)


@pytest.mark.parametrize(
    "text",
    [
        "What is 2+2?",
        "[3, 1, 2]",
        '{"a": 1}',
        '[{"name": "Ann", "age": 3}]',
        "[x] is a list",
        '"To be" is from what play?',
        "{x | x > 0}",
        "array([1, 2]) has what shape?",
        f"{json.dumps(CHAT)} Who speaks here?",
        "[" * 100_000,
        "array(" + " " * 100_000,
        "{" + '\\"' * 50_000,
        '{"a": "b", "n": [1, 2]}',
        "{'role': 'x', 'content': 'y'} is what type in Python?",
        '{"id": 1, "role": "x"} -- who has it?',
        '{ "key": unquoted } is no JSON. Why? Say what "content": means',
        "{a: 1, b: 2} in JavaScript has how many keys?",
        'Repair this JSON: [{"role": "user", "content": "hi"',
        "['tis the season] is from what song?",
        "['a', 1]",
        '["a", "b"] has how many elements?',
        "(a) What is 2+2? (b) And 3+3?",
        "[[1, 2], [3, 4]]",
        '[["a", 1], ["b", 2]]',
        "{}",
        "[]",
        "\ufeffWhat is 2+2?",
    ],
)
def test_a_prompt_in_words_stays_text(text):
    assert read(text) == (text, None)


def test_a_byte_order_mark_before_chat_messages_is_no_text():
    text = "\ufeff" + json.dumps(CHAT)
    assert read(text) == read(text, "json") == (None, tuple(CHAT))
    assert read(text, "text") == (text, None)


def test_empty_lists_in_a_message_are_as_absent_ones():
    chat = [dict(CHAT[0], tool_calls=[]), dict(CHAT[1], tool_calls=None, images=[], name="Ann")]
    expected = (None, (CHAT[0], dict(CHAT[1], name="Ann")))
    assert read(chat) == read(json.dumps(chat)) == expected
    assert 'message 0: "tool_calls" is list, not text' in refused([dict(CHAT[0], tool_calls=[{"id": 1}]), CHAT[1]])


@given(st.text(st.characters(codec="utf-8", exclude_characters='"[{(a\ufeff'), min_size=1).filter(str.strip))
def test_text_that_begins_like_no_json_is_the_prompt(text):
    assert read(text) == (text, None)


@given(st.text(min_size=1).filter(str.strip))
def test_text_and_json_formats_are_exact(text):
    assert read(text, "text") == (text, None)
    assert read(json.dumps(text), "json") == (text, None)


def test_a_prompt_that_is_not_the_json_it_should_be_is_refused():
    assert "is not JSON (Expecting value), and prompt_format is json" in refused("What is 2+2?", "json")
    assert refused("7", "json").endswith("is int, not text or a list of messages")
    assert refused('""', "json").endswith("is empty")


def test_an_unknown_format_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "q", "answer": "a"}\n')
    source = SourceConfig(kind="jsonl", path=str(tmp_path / "p.jsonl"), prompt_format="jsonn")
    with pytest.raises(DataError, match='prompt_format "jsonn" is not one of auto, text, json'):
        load_prompts(source, "exact")


def json_columns(rows):
    """A dataset whose columns are JSON, as datasets writes mixed types since version 5."""
    datasets = pytest.importorskip("datasets", minversion="5")
    return datasets.Dataset.from_list(rows, features=datasets.Features(dict.fromkeys(rows[0], datasets.Json())))


@pytest.mark.parametrize("kind", ["parquet", "huggingface"])
def test_json_columns_hold_what_they_hold(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [
        {"prompt": CHAT, "answer": 72, "id": "a"},
        {"prompt": "text", "answer": "two", "id": "b"},
        {"prompt": "small?", "answer": 0.00001, "id": {"n": 1}},
        {"prompt": json.dumps(CHAT), "answer": True, "id": "d"},
    ]
    table = json_columns(rows)
    path = tmp_path / ("p.parquet" if kind == "parquet" else "saved")
    table.to_parquet(path) if kind == "parquet" else table.save_to_disk(path)
    prompts = load_prompts(SourceConfig(kind=kind, path=str(path)), "exact")
    assert [prompt.answer for prompt in prompts] == ["72", "two", "0.00001", "true"]
    assert [prompt.text for prompt in prompts] == [None, "text", "small?", None]
    assert prompts[0].messages == prompts[3].messages == tuple(CHAT)
    with pytest.raises(DataError, match=r'row 3: field "id" is dict, not text'):
        load_prompts(SourceConfig(kind=kind, path=str(path), id_field="id"), "exact")


def test_json_columns_are_reached_into(tmp_path):
    path = tmp_path / "p.parquet"
    json_columns([{"prompt": "q", "gold": {"answers": [1, {"x": 0.5}]}}]).to_parquet(path)
    source = SourceConfig(kind="parquet", path=str(path), answer_field="gold.answers.1.x")
    assert load_prompts(source, "exact")[0].answer == "0.5"


def test_a_json_column_that_is_not_json_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    column = pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(['"fine"', "{", None]))
    parquet.write_table(pyarrow.table({"prompt": column, "answer": ["1", "2", "3"]}), tmp_path / "p.parquet")
    source = SourceConfig(kind="parquet", path=str(tmp_path / "p.parquet"))
    with pytest.raises(DataError, match=r'p\.parquet: row 2: field "prompt": Expecting property name'):
        load_prompts(source, "exact")
