"""Environments of SkyRL-Gym: their messages and rewards."""

from __future__ import annotations

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kray.environments import check_environment
from kray.environments.skyrl import SkyRLGym
from kray.records import Prompt

QUESTION = Prompt("p", "18", "exact", "test", text="How many eggs are sold?")
CHAT = Prompt("p", "18", "exact", "test", messages=({"role": "user", "content": "How many?"},))


@pytest.mark.parametrize("prompt", [QUESTION, CHAT])
@pytest.mark.parametrize(("action", "reward"), [("so\n#### 18", 1.0), ("#### 17", 0.0), ("18", 0.0)])
def test_one_turn(prompt, action, reward):
    environment = SkyRLGym("gsm8k")
    assert environment.reset(prompt, 0) == ""
    environment = pickle.loads(pickle.dumps(environment))
    assert environment.step(action) == ("", True)
    assert environment.reward().value == reward


def test_several_turns_of_which_copies_are_independent():
    start = SkyRLGym("gsm8k_multi_turn", extras={"max_turns": 3})
    start.reset(QUESTION, 0)
    right, wrong = (pickle.loads(pickle.dumps(start)) for _ in range(2))
    observation, done = right.step("#### 17")
    assert not done
    assert [message["role"] for message in observation] == ["user"]
    assert right.step("#### 18")[1]
    assert right.reward().value == 1  # 0.07 for the form of the first answer, 1 for the second

    turns = 0
    while not wrong.step("#### 17")[1]:
        wrong = pickle.loads(pickle.dumps(wrong))
        turns += 1
    assert turns == 2
    assert wrong.reward().value == pytest.approx(0.2)


def test_truncated_conversation_has_the_rewards_so_far():
    environment = SkyRLGym("gsm8k_multi_turn", extras={"max_turns": 4})
    environment.reset(QUESTION, 0)
    environment.step("#### 1")
    assert environment.reward().value == pytest.approx(0.05)


def test_reward_range_is_mapped():
    for action, reward in [("Answer: 18", 1.0), ("Answer: 3", 0.0)]:
        environment = SkyRLGym("aime", reward_range=(-1, 1))
        environment.reset(QUESTION, 0)
        assert environment.step(action)[1]
        assert environment.total in (-1, 1)
        assert environment.reward().value == reward


class Documents(BaseHTTPRequestHandler):
    """A search service with one document."""

    def do_POST(self):
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["query"]
        found = {"document": {"contents": f"Eggs\nabout {query}: 18"}, "score": 1.0}
        body = json.dumps({"result": [[found]]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def documents():
    """Address of a running search service."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Documents)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/retrieve"
    server.shutdown()
    server.server_close()


def test_environment_with_a_client_moves_between_processes(documents):
    config = {"search_url": documents, "topk": 1, "timeout": 5, "log_requests": False}
    environment = SkyRLGym("search", config=config, extras={"max_turns": 3}, json_answer=True)
    environment.reset(Prompt("p", '{"target": ["18"]}', "exact", "test", text="How many eggs are sold?"), 0)
    environment = pickle.loads(pickle.dumps(environment))
    ((message,), done) = environment.step("<search>eggs</search>")
    assert not done
    assert "about" in message["content"]
    environment = pickle.loads(pickle.dumps(environment))
    assert environment.env.turns == 1
    assert environment.step("<answer>18</answer>")[1]
    assert environment.reward().value == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "gsm9k"}, "not among those of skyrl_gym: .*gsm8k"),
        ({"env": "gsm8k", "reward_range": [1, 0]}, "two ascending numbers"),
        ({}, "missing 1 required positional argument: 'env'"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        check_environment("skyrl_gym", options)
