"""What turns mean to an OpenEnv server, and what its observations read like."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.environments import check_environment
from kray.environments.openenv_text import ActionError, ActionReader, observation_text

METADATA = {"metadata": {"type": "object"}}
GUESS = {"properties": {**METADATA, "guess": {"type": "integer"}}, "required": ["guess"]}
CODE = {"properties": {**METADATA, "code": {"type": "string"}, "limit": {"type": "number"}}, "required": ["code"]}
MOVE = {"properties": {**METADATA, "x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x", "y"]}
OPTIONAL = {"properties": {**METADATA, "text": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}


def read(schema, turn, action="auto", fields=None, pattern=""):
    reader = ActionReader(action, fields or {}, pattern)
    return reader.read(turn, *reader.resolve(schema))


@pytest.mark.parametrize(
    ("schema", "turn", "options", "action"),
    [
        (GUESS, " 7\n", {}, {"guess": 7}),
        (CODE, "print(1)", {}, {"code": "print(1)"}),
        (OPTIONAL, "hello", {}, {"text": "hello"}),
        (MOVE, '{"x": 1, "y": 2}', {}, {"x": 1, "y": 2}),
        (MOVE, '```json\n{"x": 1}\n```', {"action": "json", "fields": {"y": 3}}, {"x": 1, "y": 3}),
        (MOVE, "4", {"fields": {"y": 3}}, {"x": 4, "y": 3}),
        (CODE, "0.5", {"action": "limit", "fields": {"code": "x"}}, {"code": "x", "limit": 0.5}),
        (GUESS, '{"guess": 7}', {"action": "json"}, {"guess": 7}),
        (GUESS, "I first say <a>1</a>, then <a>\n2\n</a>.", {"pattern": "<a>(.*?)</a>"}, {"guess": 2}),
    ],
)
def test_turns_become_typed_actions(schema, turn, options, action):
    assert read(schema, turn, **options) == action


@pytest.mark.parametrize(
    ("schema", "turn", "options", "why"),
    [
        (GUESS, "seven", {}, "not a number of type integer"),
        (CODE, "nan", {"action": "limit"}, "not a number of type number"),
        (MOVE, "1, 2", {}, "not JSON"),
        (MOVE, "[1, 2]", {}, "not a JSON object"),
        (GUESS, "7", {"pattern": "<a>(.*?)</a>"}, "no action was found"),
    ],
)
def test_other_turns_are_no_actions(schema, turn, options, why):
    with pytest.raises(ActionError, match=why):
        read(schema, turn, **options)


@given(st.text(max_size=30))
def test_every_turn_is_an_action_or_refused(turn):
    for schema in (GUESS, CODE, MOVE):
        try:
            assert isinstance(json.dumps(read(schema, turn)), str)
        except ActionError:
            assert schema is not CODE


def test_observations_as_text():
    assert observation_text({"metadata": {}, "hint": "higher"}, "") == "higher"
    assert observation_text({"hint": "höher", "left": 2}, "") == '{"hint": "höher", "left": 2}'
    assert observation_text({"hint": "higher", "left": 2}, "left") == "2"
    assert observation_text({"hint": "higher", "left": 2}, "{hint} ({left} left)") == "higher (2 left)"
    with pytest.raises(ValueError, match=r"'text' is no field of the observation, which has \['hint'\]"):
        observation_text({"hint": "higher"}, "text")


@pytest.mark.parametrize(
    "shown",
    [
        "{x:>1000000000}",
        "{x:{x}}",
        "{x.__class__}",
        "{x!r:>1000000000}",
        "{x[0].real}",
        "{x:0>1000}",
        "{0.x}",
        "{x",
        "}",
    ],
)
def test_a_shown_text_holds_fields_and_nothing_else(shown):
    with pytest.raises(ValueError, match="observation"):
        observation_text({"x": [1, 2]}, shown + " {x}")


def test_a_shown_text_may_name_items_and_formats():
    board = {"board": [[1, 2], [3, 4]], "score": {"mine": 0.123}}
    assert observation_text(board, "{board[1][0]} {score[mine]:.2f} {{x}} {score[mine]:8.1%}") == "3 0.12 {x}    12.3%"
    with pytest.raises(ValueError, match="is no field of the observation"):
        observation_text(board, "{board[7]}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of url, app and command"),
        ({"url": "http://x", "app": "a:b"}, "one of url, app and command"),
        ({"url": "localhost:8000"}, "must begin with http"),
        ({"command": "serve"}, "must hold {port}"),
        ({"command": "no-such-program {port}"}, "cannot be found"),
        ({"app": "a:b", "folder": "/no/such/folder"}, "does not exist"),
        ({"app": "a:b", "python": "/no/python"}, "cannot be found or run$"),
        ({"app": "a:b", "python": "/no/.venv-openenv/bin/python"}, "cannot be found or run; `make openenv` makes it"),
        ({"url": "http://x", "reward": "mean"}, "reward must be"),
        ({"url": "http://x", "reward": "state."}, "reward must be"),
        ({"url": "http://x", "reward_range": [1, 0]}, "lowest, highest"),
        ({"url": "http://x", "pattern": "("}, "no regular expression"),
        ({"url": "http://x", "pattern": "a"}, "needs a group"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        check_environment("openenv", options)
    check_environment("openenv", {"url": "http://127.0.0.1:1"})


def test_unknown_field_is_named():
    with pytest.raises(ValueError, match=r"'word' is no field of the server's actions"):
        ActionReader("word", {}, "").resolve(GUESS)
