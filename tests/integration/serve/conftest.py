"""One Serve for the tests of this folder, with the three services."""

from __future__ import annotations

import dataclasses
import shutil
import socket
from types import SimpleNamespace

import pytest
from tiny_runs import run_tiny  # noqa: F401

KEY = "a-planted-key-of-the-tests"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}="


@pytest.fixture(scope="package")
def services(ray_local, warm_policy, tmp_path_factory):
    """Accesses by name (policy, planner, rewards), each with `address`; the policy starts while the others are tried."""
    from ray import serve

    from kray.serve import deploy as launch
    from kray.serve.access import Access
    from kray.serve.gate import Limits, digest
    from kray.serve.policy_api import PolicySpec
    from kray.serve.rewards_api import ScoringSpec
    from kray.serve.services import planner_application, policy_application, rewards_application

    folder = tmp_path_factory.mktemp("served") / "policy"
    shutil.copytree(warm_policy, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    access = Access(port=port, limits=Limits(body_bytes=100_000, concurrency=4), drain_s=5, start_s=180)
    places = {name: dataclasses.replace(access, prefix=f"/{name}") for name in ("policy", "planner", "rewards")}
    launch.start_serve(access)
    spec = PolicySpec(str(folder), "tiny", 64, 100, 16, 1, 0, 0.1)
    state = tmp_path_factory.mktemp("beliefs")
    builds = {
        "policy": lambda: policy_application(spec, places["policy"], digest(KEY)),
        "planner": lambda: planner_application(places["planner"], digest(KEY), 2, 1000, str(state)),
        "rewards": lambda: rewards_application(ScoringSpec(timeout_s=1.0), places["rewards"], digest(KEY)),
    }
    waiting = launch.background(launch.deploy, "policy", builds.pop("policy"), places["policy"], launch.Signals())
    for name, build in builds.items():
        launch.deploy(name, build, places[name], launch.Signals())
    yield SimpleNamespace(**places, key=KEY, state=state, policy_up=waiting, folder=folder)
    serve.shutdown()
