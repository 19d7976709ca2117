"""What clients of the three services see, over HTTP and through the official client."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from listening_sockets import descendants, open_to_others

from kray.errors import KrayError
from kray.planner import PointValue, solve
from kray.rewards.remote import RemoteScorer

ROOT = Path(__file__).parents[3]


def call(url: str, key: str, body: dict | None = None, method: str | None = None) -> tuple[int, dict]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_trainer_plans_through_the_service(services, tmp_path):
    url, key = services.planner.address, services.key
    rates = np.random.default_rng(0).beta(0.5, 1.0, 64)
    status, found = call(f"{url}/v1/allocate", key, {"success_rate": rates.tolist(), "budget": 512})
    assert (status, found["budgets"]) == (200, solve(PointValue(rates), 512).tolist())
    for body, status, param in [
        ({"success_rate": [0.5], "budgett": 9}, 422, "budgett"),
        ({"success_rate": [1.5], "budget": 9}, 422, "success_rate"),
        ({"success_rate": [0.5] * 9, "budget": 9}, 422, "budget"),
        ({"success_rate": [0.5] * 50_000, "budget": 9}, 413, None),
    ]:
        got, response = call(f"{url}/v1/allocate", key, body)
        assert (got, response["error"]["param"], response["error"]["code"]) == (status, param, status)
    assert call(f"{url}/v1/allocate", "wrong", {})[0] == 401

    (tmp_path / "key").write_text(key)
    client = [sys.executable, "examples/plan_client.py", url, str(tmp_path / "key")]
    done = subprocess.run(client, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("prompt-") == 20
    assert call(f"{url}/v1/runs", key)[1] == {"runs": [{"run": "example", "steps": 1, "prompts": 20, "plan": None}]}
    assert json.loads((services.state / "example.json").read_text()) == call(f"{url}/v1/runs/example", key)[1]

    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import verl_rollout_n as example
    finally:
        sys.path.pop(0)
    columns = {
        "uid": np.array(["a", "b", "c"], dtype=object)
    }  # a batch_dict of verl, or a DataProto's non_tensor_batch
    example.set_rollout_n(columns, example.allocate(url, key, [0, 2, 4], [4, 4, 4], 24))
    assert columns["__rollout_n__"].dtype == np.int64
    assert columns["__rollout_n__"].sum() == 24
    assert columns["__rollout_n__"].argmin() == 2  # the one that is always solved


def test_training_uses_the_reward_service(services):
    async def score():
        scorer = RemoteScorer(services.rewards.address, services.key, "math", {}, 30.0)
        items = [("", "so it is \\boxed{42}", "42"), ("exact", "4", "5"), ("", "\\boxed{41}", "42")]
        items.append(("code", "while True: pass", '{"cases": [{"input": "", "output": "3"}]}'))
        try:
            few = await scorer.score(items)
            many = await scorer.score([("exact", str(i), str(i % 7)) for i in range(700)])
            with pytest.raises(KrayError, match="refuses the key"):
                await RemoteScorer(services.rewards.address, "wrong", "math").score(items)
            return few, many, scorer
        finally:
            scorer.close()

    few, many, scorer = asyncio.run(score())
    assert [outcome.reward for outcome in few] == [1.0, 0.0, 0.0, 0.0]
    assert few[3].timed_out
    assert (scorer.timeouts, scorer.failures) == (1, 0)
    assert [outcome.reward for outcome in many] == [1.0] * 7 + [0.0] * 693


def test_openai_client_uses_the_policy(services):
    import openai

    services.policy_up.result(180)
    client = openai.OpenAI(base_url=f"{services.policy.address}/v1", api_key=services.key, max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    ask = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(prompt="12+34=", logprobs=1, **ask)
    text = whole.choices[0].text
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.tokens)
    parts = [chunk.choices[0].text for chunk in client.completions.create(prompt="12+34=", stream=True, **ask)]
    assert len(parts) > 1 or whole.usage.completion_tokens == 1
    assert "".join(parts) == text
    messages = [{"role": "user", "content": "12+34"}]  # the template adds "="
    assert client.chat.completions.create(messages=messages, **ask).choices[0].message.content == text
    stream = client.chat.completions.create(messages=messages, stream=True, **ask)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    assert len(client.completions.create(model="tiny", prompt="1", n=3, max_tokens=2, seed=0).choices) == 3

    for error, change in [
        (openai.NotFoundError, {"model": "other", "prompt": "1"}),
        (openai.BadRequestError, {"prompt": "1" * 100}),  # longer than the context
        (openai.APIStatusError, {"prompt": "1", "n": 100}),  # more tokens than a request may have
        (openai.APIStatusError, {"prompt": "1" * 200_000}),  # larger than a request may be
    ]:
        with pytest.raises(error) as caught:
            client.completions.create(**(ask | change))
        assert caught.value.status_code in (400, 404, 413)
        assert caught.value.message
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()

    long = {"model": "tiny", "prompt": "1", "max_tokens": 40, "extra_body": {"ignore_eos": True}}

    def one(_: int) -> str:
        try:
            return str(client.completions.create(**long).usage.completion_tokens)
        except openai.RateLimitError as refused:
            return f"busy, try again in {refused.response.headers['retry-after']}"

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(one, range(24)))
    assert set(answers) <= {"40", "busy, try again in 1"}
    assert answers.count("40") >= 4
    health = f"{services.policy.address}/healthz"
    with urllib.request.urlopen(health, timeout=10) as answer:
        assert answer.read() == b"ok"


def test_replica_with_a_failed_engine_is_replaced(services):
    """The engine is a process of its own under the replica's; it is killed as the kernel does when memory is short."""
    import openai
    import psutil

    from kray.faults.targets import actors

    services.policy_up.result(180)
    (replica,) = actors("SERVE_REPLICA::", "policy")
    (engine,) = [child for child in psutil.Process(replica.pid).children() if "EngineCore" in "".join(child.cmdline())]
    engine.kill()
    client = openai.OpenAI(base_url=f"{services.policy.address}/v1", api_key=services.key, max_retries=0, timeout=30)
    deadline, errors = time.monotonic() + 240, set()
    while True:
        try:
            assert client.completions.create(model="tiny", prompt="12+34=", max_tokens=2).choices
            break
        except openai.APIError as error:
            errors.add(type(error).__name__)
            assert time.monotonic() < deadline, errors
            time.sleep(1)
    assert errors  # requests in between failed with the client's own errors
    assert not psutil.pid_exists(replica.pid)


def test_no_process_of_a_service_is_reached_from_elsewhere(services):
    """Replicas, their engine, Serve's proxy and controller, and Ray itself."""
    services.policy_up.result(180)
    processes = descendants()
    names = " ".join(" ".join(psutil.Process(pid).cmdline()) for pid in processes)
    assert all(name in names for name in ("ServeReplica:policy", "ServeReplica:planner", "EngineCore"))
    assert open_to_others(processes) == []


def test_service_metrics_reach_ray(services):
    """On the node's metrics port, in Prometheus' form; Ray sends it every few seconds."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {"kray_serve_requests", "kray_serve_latency_s", "kray_serve_refused", "kray_serve_items"}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        if all(name in text for name in wanted):
            break
        time.sleep(1)
    assert all(name in text for name in wanted)
    assert services.key not in text
