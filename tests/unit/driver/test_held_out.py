"""Responses before and after training, as the report at the end shows them."""

import json

import pytest

from kray.driver.console import WIDTH, shorten
from kray.driver.held_out import EVALUATIONS, ComparedAnswer, compared_answers, examples


def write(folder, step: int, rows: list[dict]) -> None:
    columns = list(rows[0])
    (folder / EVALUATIONS).mkdir(exist_ok=True)
    table = {"columns": columns, "data": [[row[key] for key in columns] for row in rows]}
    (folder / EVALUATIONS / f"step-{step:06d}.json").write_text(json.dumps(table))


def row(name: str, response: str, reward: float | None) -> dict:
    return {"id": name, "prompt": f"{name}?", "greedy_response": response, "greedy_reward": reward}


def test_first_and_last_evaluation_are_compared_by_prompt(tmp_path):
    write(tmp_path, 0, [row("a", "no", 0.0), row("lost", "x", 0.0), row("b", "maybe", 0.5)])
    write(tmp_path, 10, [row("a", "between", 0.0)])
    write(tmp_path, 20, [row("b", "yes", 1.0), row("a", "no", 0.0)])
    found = compared_answers(tmp_path)
    assert [(each.prompt, each.before, each.reward_before, each.after, each.reward_after) for each in found] == [
        ("a?", "no", 0.0, "no", 0.0),
        ("b?", "maybe", 0.5, "yes", 1.0),
    ]


def test_nothing_is_compared_without_two_readable_evaluations_with_greedy_responses(tmp_path):
    assert compared_answers(tmp_path) == []
    write(tmp_path, 0, [{"id": "a", "prompt": "a?"}])
    assert compared_answers(tmp_path) == []
    write(tmp_path, 5, [row("a", "yes", 1.0)])
    assert compared_answers(tmp_path) == []
    (tmp_path / EVALUATIONS / "step-000000.json").write_text('{"columns": [')
    assert compared_answers(tmp_path) == []


def test_shown_text_is_one_short_line_that_moves_no_cursor():
    assert shorten("a\n  b\tc") == "a b c"
    assert shorten("red \x1b[31m bell\x07") == r"red \x1b[31m bell\x07"
    assert len(shorten("x" * 500)) == WIDTH
    assert shorten("x" * 500).endswith("...")


def answers(*gains: float) -> list[ComparedAnswer]:
    return [ComparedAnswer(str(i), "a", 0.5, "b", 0.5 + gain) for i, gain in enumerate(gains)]


@pytest.mark.parametrize(
    ("gains", "shown"),
    [
        ((0, 0.5, 0, 0.5, -0.5, 0.5), "134"),
        ((0, 0.5, 0, 0.5, 0.5), "130"),
        ((0.5, 0.5, 0.5, 0.5), "012"),
        ((0, -0.5, -0.5), "120"),
        ((0, 0), "01"),
        ((), ""),
    ],
)
def test_examples_show_what_became_better_and_what_did_not(gains, shown):
    assert "".join(answer.prompt for answer in examples(answers(*gains))) == shown
