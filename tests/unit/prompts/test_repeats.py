"""Rows that repeat the prompt and the answer of another are one prompt, unless that is not wanted."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_lines import logged_lines

from kray.config.prompts_schema import PromptsConfig, SourceConfig
from kray.errors import DataError
from kray.prompts import load_prompts, load_tests


def write(folder, rows, name="p.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(kind="jsonl", path=str(folder / name))


def load(source) -> tuple[list, list[str]]:
    with logged_lines() as lines:
        return load_prompts(source, "exact"), lines


def row(prompt, answer, **more):
    return {"prompt": prompt, "answer": answer, **more}


def test_identical_rows_are_one_prompt_and_one_line_says_so(tmp_path):
    source = write(tmp_path, [row("a", 1), row("b", 2)] * 100)
    prompts, said = load(source)
    assert [(prompt.id, prompt.text) for prompt in prompts] == [("p.jsonl:1", "a"), ("p.jsonl:2", "b")]
    (line,) = said
    assert "200 rows hold 2 prompts: 198 rows repeat the prompt and the answer of another" in line
    assert f"the first {source.path}:3 that of {source.path}:1 (keep_repeats: true keeps them)" in line
    source.keep_repeats = True
    prompts, said = load(source)
    assert (len(prompts), len({prompt.id for prompt in prompts}), said) == (200, 200, [])


def test_a_row_keeps_its_id_whatever_is_left_out_before_it(tmp_path):
    prompts, _ = load(write(tmp_path, [row("a", 1), row("a", 1), row("b", 2)]))
    assert [prompt.id for prompt in prompts] == ["p.jsonl:1", "p.jsonl:3"]


def test_prompts_with_different_answers_stay_with_a_warning(tmp_path):
    source = write(tmp_path, [row("a", 1), row("b", 1), row("a", 2), row("a", 1), row("a", 3)])
    prompts, said = load(source)
    assert [(prompt.text, prompt.answer) for prompt in prompts] == [("a", "1"), ("b", "1"), ("a", "2"), ("a", "3")]
    assert "5 rows hold 4 prompts: 1 row repeats the prompt" in said[0]
    assert "warning: " in said[1]
    assert (
        f"with different answers, each a prompt of its own: 1; the first: {source.path}:1 and {source.path}:3"
        in said[1]
    )


def test_rows_with_ids_of_their_own_are_repeats_all_the_same(tmp_path):
    source = write(tmp_path, [row("a", 1, id="x"), row("a", 1, id="y"), row("a", 1, id="x"), row("b", 1, id="z")])
    source.id_field = "id"
    prompts, said = load(source)
    assert [prompt.id for prompt in prompts] == ["x", "z"]
    assert "4 rows hold 2 prompts: 2 rows repeat" in said[0]
    source.keep_repeats = True
    with pytest.raises(DataError, match=r'p\.jsonl:3: id "x" was already used at .*p\.jsonl:1'):
        load(source)


def test_a_limit_is_told_with_the_rows_that_were_read(tmp_path):
    source = write(tmp_path, [row("a", 1), row("a", 1), row("b", 1), row("c", 1)])
    source.limit = 2
    prompts, said = load(source)
    assert len(prompts) == 2
    assert "the first 3 rows hold 2 prompts: 1 row repeats" in said[0]


def test_messages_repeat_as_texts_do(tmp_path):
    chat = [{"role": "user", "content": "a"}]
    turned = [{"content": "a", "role": "user"}]
    prompts, _ = load(write(tmp_path, [row(chat, 1), row(turned, 1), row(json.dumps(chat), 1), row("a", 1)]))
    assert [bool(prompt.messages) for prompt in prompts] == [True, False]


def test_a_limit_counts_prompts_and_not_rows(tmp_path):
    source = write(tmp_path, [row("a", 1)] * 5 + [row("b", 1), row("c", 1)])
    source.limit = 2
    assert [prompt.text for prompt in load(source)[0]] == ["a", "b"]


def test_repeats_in_test_sets_are_left_out_too(tmp_path):
    config = PromptsConfig(test=write(tmp_path, [row("a", 1)] * 32))
    with logged_lines() as lines:
        ((_, prompts),) = load_tests(config, "exact")
    assert (len(prompts), len(lines)) == (1, 1)


def test_a_bad_row_is_refused_also_among_repeats(tmp_path):
    with pytest.raises(DataError, match=r"p\.jsonl:3"):
        load(write(tmp_path, [row("a", 1), row("a", 1), row("a", None)]))


def test_what_messages_do_not_use_is_said(tmp_path):
    source = write(tmp_path, [row([{"role": "user", "content": "a"}], 1), row("b", 1)])
    source.template = "{prompt}!"
    assert load(source)[1] == [
        f"warning: {source.path}: template: not applied to prompts that are chat messages (1 of 2)"
    ]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("12")), min_size=1, max_size=20))
def test_what_is_left_are_the_first_rows_in_order(tmp_path_factory, pairs):
    prompts, _ = load(write(tmp_path_factory.mktemp("rows"), [row(*pair) for pair in pairs]))
    assert [(prompt.text, prompt.answer) for prompt in prompts] == list(dict.fromkeys(pairs))
    assert [pairs[int(prompt.id.rpartition(":")[2]) - 1] for prompt in prompts] == list(dict.fromkeys(pairs))
