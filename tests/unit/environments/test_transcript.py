"""Conversations that an environment holds over a chat API, as ones that grow at their end."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.environments.transcript import Transcript, TranscriptError

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "1+1?"}
MORE = {"role": "user", "content": "Sure?"}


def call(tool: str, **arguments) -> str:
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"


@given(st.lists(st.tuples(st.text(max_size=9), st.lists(st.text(max_size=9), min_size=1, max_size=3)), max_size=5))
def test_every_message_is_new_once(rounds):
    """What comes out is what the environment said, in order, without the policy's own turns."""
    transcript, request = Transcript([SYSTEM, ASKED]), [SYSTEM, ASKED]
    assert transcript.advance(request) == ()
    for turn, said in rounds:
        request = [*request, transcript.answer(turn, []), *({"role": "user", "content": text} for text in said)]
        assert [message["content"] for message in transcript.advance(request)] == said


def test_calls_become_tool_calls_and_their_results_are_new():
    transcript = Transcript([{"role": "system", "content": "Be brief.\n\nTools: ..."}, ASKED])
    assert transcript.advance([SYSTEM, ASKED]) == ()
    first = transcript.answer(f"Well. {call('add', x=1)}{call('add', x=2)}<tool_call>[]</tool_call>", ["add"])
    assert first["content"] == "Well."
    assert [each["function"]["name"] for each in first["tool_calls"]] == ["add", "add"]
    assert [each["id"] for each in first["tool_calls"]] == ["call_0", "call_1"]
    results = [
        {"role": "tool", "tool_call_id": f"call_{i}", "content": [{"type": "text", "text": f"{i}"}]} for i in (0, 1)
    ]
    new = transcript.advance([SYSTEM, ASKED, {**first, "content": "Well. "}, *results])
    assert new == ({"role": "tool", "content": "0"}, {"role": "tool", "content": "1"})
    second = transcript.answer(call("add", x=3), ["add"])
    assert [each["id"] for each in second["tool_calls"]] == ["call_2"]
    assert "tool_calls" not in Transcript([ASKED]).answer(call("add", x=3), [])


@pytest.mark.parametrize(
    ("requests", "why"),
    [
        ([[{"role": "system", "content": "Be long."}, ASKED]], "system message is not the prompt's"),
        ([[SYSTEM, MORE]], "message 1 was user '1\\+1\\?' and is user 'Sure\\?'"),
        ([[SYSTEM]], "message 1 was user '1\\+1\\?' and is missing"),
        ([[SYSTEM, ASKED], [SYSTEM, ASKED, MORE]], "message 2 was assistant '2' and is user 'Sure\\?'"),
        (
            [[SYSTEM, ASKED], [SYSTEM, ASKED, {"role": "assistant", "content": "3"}, MORE]],
            "message 2 was assistant '2'",
        ),
        ([[SYSTEM, ASKED], [SYSTEM, ASKED, {"role": "assistant", "content": "2"}]], "twice, with nothing new"),
        ([[SYSTEM, ASKED, {"role": "assistant", "content": "x"}, MORE]], "a turn that the policy did not write"),
        ([[SYSTEM, ASKED, {"role": "user", "content": [{"type": "image_url"}]}]], "more than text"),
    ],
)
def test_other_requests_are_refused(requests, why):
    transcript = Transcript([SYSTEM, ASKED])
    *before, last = requests
    for request in before:
        transcript.advance(request)
        transcript.answer("2", [])
    with pytest.raises(TranscriptError, match=why):
        transcript.advance(last)
