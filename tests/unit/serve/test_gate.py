"""Whatever is sent, the gate answers it or lets it in; its counts agree."""

from __future__ import annotations

import asyncio
import json

import pytest

from kray.serve.gate import Gate, Limits, Refusal, digest, host_of

KEY = "a-planted-key-of-some-length"
HEAD = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "host": "127.0.0.1:8000"}


class Counted:
    def __init__(self):
        self.statuses: list[int] = []
        self.reasons: list[str] = []

    def answered(self, route, status, seconds):
        assert seconds >= 0
        self.statuses.append(status)

    def refused(self, reason):
        self.reasons.append(reason)


def send(gate: Gate, headers=HEAD, body: bytes | list[bytes] = b"{}", method="POST", path="/v1/x"):
    """(status, headers, body) of one request whose body comes in parts."""
    parts = [body] if isinstance(body, bytes) else list(body)
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def collect(message):
        sent.append(message)

    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": encoded}
    asyncio.run(gate(scope, receive, collect))
    answer = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), answer


async def echo(scope, receive, send):
    got = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": got["body"]})


def made(key=KEY, app=echo, **limits) -> tuple[Gate, Counted]:
    counted = Counted()
    return Gate(app, Limits(**limits), digest(key) if key else "", counted), counted


def without(name: str, **more: str) -> dict[str, str]:
    return {key: value for key, value in HEAD.items() if key != name} | more


@pytest.mark.parametrize(
    ("headers", "body", "status", "reason"),
    [
        (without("authorization"), b"{}", 401, "key"),
        (HEAD | {"authorization": f"Bearer {KEY}x"}, b"{}", 401, "key"),
        (HEAD | {"authorization": f"Basic {KEY}"}, b"{}", 401, "key"),
        (HEAD | {"authorization": "Bearer "}, b"{}", 401, "key"),
        (HEAD | {"authorization": "Bearer \xff\xfe"}, b"{}", 401, "key"),
        (HEAD | {"content-length": "101"}, b"{}", 413, "size"),
        (HEAD | {"content-length": "-1"}, b"{}", 413, "size"),
        (HEAD, [b"x" * 60, b"x" * 60], 413, "size"),  # no length announced
        (HEAD | {"content-type": "text/plain"}, b"{}", 415, "media"),
        (without("content-type"), b"{}", 415, "media"),
    ],
)
def test_refusals_have_openais_form_and_are_counted(headers, body, status, reason):
    async def never(scope, receive, send):
        raise AssertionError("the service saw it")

    gate, counted = made(app=never, body_bytes=100)
    got, _, answer = send(gate, headers, body)
    error = json.loads(answer)["error"]
    assert got == status == error["code"]
    assert set(error) == {"message", "type", "param", "code"}
    assert KEY not in answer.decode()
    assert (counted.statuses, counted.reasons, gate.in_progress) == ([status], [reason], 0)


@pytest.mark.parametrize("body", [b"x" * 100, [b"x" * 50, b"x" * 50], b""])
def test_admitted_bodies_arrive_complete(body):
    gate, counted = made(body_bytes=100)
    whole = body if isinstance(body, bytes) else b"".join(body)
    assert send(gate, HEAD | {"authorization": f"bearer  {KEY} "}, body) == (200, {}, whole)
    assert (counted.statuses, counted.reasons) == ([200], [])


def test_requests_over_the_limit_get_429():
    entered = 0

    async def scenario():
        release = asyncio.Event()

        async def slow(scope, receive, send):
            nonlocal entered
            entered += 1
            await release.wait()
            await echo(scope, receive, send)

        gate, counted = made(app=slow, concurrency=2)
        answers = []

        async def one():
            sent = []
            encoded = [(name.encode(), value.encode()) for name, value in HEAD.items()]

            async def receive():
                return {"type": "http.request", "body": b"{}"}

            async def collect(message):
                sent.append(message)

            await gate({"type": "http", "method": "POST", "path": "/", "headers": encoded}, receive, collect)
            answers.append((sent[0]["status"], dict(sent[0]["headers"]).get(b"retry-after")))

        tasks = [asyncio.create_task(one()) for _ in range(5)]
        await asyncio.sleep(0.05)
        release.set()
        await asyncio.gather(*tasks)
        return answers, counted, gate

    answers, counted, gate = asyncio.run(scenario())
    assert sorted(answers, key=str) == [(200, None)] * 2 + [(429, b"1")] * 3
    assert (entered, counted.reasons, gate.in_progress) == (2, ["busy"] * 3, 0)


def test_without_a_key_only_loopback_hosts_pass():
    """A page in a browser reaches a loopback address under its own host's name."""
    gate, _ = made(key="")
    plain = without("authorization")
    assert send(gate, plain)[0] == 200
    assert send(gate, plain | {"host": "[::1]:8000"})[0] == 200
    assert send(gate, plain | {"host": "evil.example:8000"})[0] == 403
    assert send(gate, without("host"))[0] == 403
    assert host_of("localhost") == "localhost"


def test_health_needs_no_key():
    gate, counted = made()
    assert send(gate, {}, method="GET", path="/healthz")[0] == 200
    assert counted.statuses == []


def test_failing_service_answers_500_in_openais_form(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("inside")

    gate, counted = made(app=broken)
    status, _, answer = send(gate)
    error = json.loads(answer)["error"]
    assert (status, error["type"], error["code"]) == (500, "server_error", 500)
    assert "inside" not in error["message"]
    assert "inside" in caplog.text
    assert (counted.statuses, counted.reasons, gate.in_progress) == ([500], ["internal"], 0)


def test_failure_after_the_response_has_begun_is_raised():
    async def broken(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("inside")

    gate, counted = made(app=broken)
    with pytest.raises(RuntimeError):
        send(gate)
    assert (counted.statuses, counted.reasons, gate.in_progress) == ([200], [], 0)


@pytest.mark.parametrize(
    ("body", "passed"),
    [
        (rb'{"a": "\ud800"}', rb'{"a": "\ufffd"}'),
        (rb'{"a": "\uDFFF\ud83d\ude00"}', rb'{"a": "\ufffd\ud83d\ude00"}'),
        (rb'{"a": "\\ud800"}', rb'{"a": "\\ud800"}'),
        (rb'{"a": "\\\ud800"}', rb'{"a": "\\\ufffd"}'),
        (b'{"a": "\xed\xa0\x80"}', '{"a": "\ufffd"}'.encode()),
        (b'{"a": "\xff"}', '{"a": "\ufffd"}'.encode()),
        ('{"a": "\u00e9"}'.encode(), '{"a": "\u00e9"}'.encode()),
        (b"no JSON", b"no JSON"),
    ],
)
def test_halves_of_characters_do_not_reach_a_service(body, passed):
    gate, _ = made()
    assert send(gate, HEAD, body) == (200, {}, passed)


@pytest.mark.parametrize("extensions", [{"websocket.http.response": {}}, {}, None])
def test_web_sockets_are_refused_and_counted(extensions):
    async def never(scope, receive, send):
        raise AssertionError("the service saw it")

    gate, counted = made(app=never)
    sent = []

    async def collect(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/x", "headers": [], "extensions": extensions}
    asyncio.run(gate(scope, receive, collect))
    assert (counted.statuses, counted.reasons, gate.in_progress) == ([400], ["websocket"], 0)
    if extensions:
        assert [message["type"] for message in sent] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        assert json.loads(sent[1]["body"])["error"]["code"] == sent[0]["status"] == 400
    else:
        assert [message["type"] for message in sent] == ["websocket.close"]


def test_what_cannot_be_admitted_is_refused_before_its_body():
    asked = []

    def full(method, path):
        asked.append((method, path))
        raise Refusal(429, "full", "queue", retry_after_s=7)

    async def never(*_):
        raise AssertionError("the service or the body was reached")

    counted = Counted()
    gate = Gate(never, Limits(), digest(KEY), counted, full)
    sent = []

    async def collect(message):
        sent.append(message)

    encoded = [(name.encode(), value.encode()) for name, value in HEAD.items()]
    scope = {"type": "http", "method": "POST", "path": "/planner/v1/x", "root_path": "/planner", "headers": encoded}
    asyncio.run(gate(scope, never, collect))
    assert asked == [("POST", "/v1/x")]
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"retry-after"]) == (429, b"7")
    assert (counted.statuses, counted.reasons) == ([429], ["queue"])
