"""The rewards' API behind its gate: any text is answered, and an answer that fails fails alone."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from hostile_text import ANY_TEXT, HOSTILE, is_one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kray.serve import meters
from kray.serve.gate import Limits
from kray.serve.rewards_api import Rewards, ScoringSpec

HEADERS = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")]
VERIFIERS = ("exact", "sample_verifiers:echoes", "sample_verifiers:raises_text", "sample_verifiers:no_number")


class Service:
    """A replica and the loop that its scorers live on."""

    def __init__(self):
        silent = SimpleNamespace(answered=lambda *_: None, refused=lambda *_: None, count_items=lambda *_: None)
        patch = pytest.MonkeyPatch()
        patch.setattr(meters, "Meters", lambda service: silent)
        self.replica = Rewards(ScoringSpec(verifiers=VERIFIERS), Limits(), "")
        self.app = self.replica.__serve_build_asgi_app__()
        patch.undo()
        self.loop = asyncio.new_event_loop()

    def post(self, body: bytes) -> tuple[int, dict]:
        return self.loop.run_until_complete(self._post(body))

    async def _post(self, body: bytes) -> tuple[int, dict]:
        sent = []
        received = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            return received.pop() if received else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": HEADERS, "query_string": b""}
        await self.app(scope | {"raw_path": b"/v1/score", "root_path": "", "http_version": "1.1"}, receive, send)
        content = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], json.loads(content.decode())


@pytest.fixture(scope="module")
def service():
    made = Service()
    yield made
    made.replica.scorers.close()
    made.loop.run_until_complete(asyncio.sleep(0.1))
    made.loop.close()


def scored(service: Service, texts: list[str], as_bytes: bool) -> list[dict]:
    items = [{"response": text, "answer": "4", "verifier": name} for text in texts for name in VERIFIERS]
    body = json.dumps({"verifier": "exact", "items": items}, ensure_ascii=not as_bytes)
    status, reply = service.post(body.encode("utf-8", "surrogatepass"))
    assert status == 200, reply
    return reply["outcomes"]


@given(st.lists(ANY_TEXT, min_size=1, max_size=4), st.booleans())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_responses_are_answered_one_by_one(service, texts, as_bytes):
    outcomes = scored(service, [*texts, "4"], as_bytes)
    assert len(outcomes) == 4 * len(texts) + 4
    for exact, echoed, raised, no_number in zip(*[iter(outcomes)] * 4, strict=True):
        assert exact["reward"] in (0.0, 1.0)
        assert echoed["reward"] == 1.0
        assert raised["reward"] is None
        assert no_number["reward"] is None
        assert all(is_one_line(each[key], 2000) for each in (exact, echoed, raised) for key in ("detail", "error"))
    assert outcomes[-4]["reward"] == 1.0


@pytest.mark.parametrize("text", HOSTILE)
def test_a_refusal_of_any_text_is_an_answer_in_openais_form(service, text):
    for body in ({text: 1}, {"verifier": text, "items": []}, {"verifier": "exact", "items": [{"response": text}]}):
        status, reply = service.post(json.dumps(body).encode())
        assert status == 422
        assert reply["error"]["message"]
