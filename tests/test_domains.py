"""Beyond mathematics: configs/logic.yaml and configs/code.yaml, with a chat model too small to solve anything."""

from __future__ import annotations

import json

import pytest
from chat_models import chat_model

from kray.config import load_config, preview
from kray.launch import drive, load_both
from kray.rewards import score

FEW = ["prompts.train.size=100", "prompts.test.size=12", "prompts.train.limit=100"]


@pytest.fixture
def programs(tmp_path) -> list[str]:
    """Overrides that name files as configs/code.yaml wants them."""
    for part in ("train", "test"):
        with open(tmp_path / f"{part}.jsonl", "w") as file:
            for i in range(70):
                tests = {"asserts": [f"assert add(1, {i}) == {i + 1}"]}
                print(
                    json.dumps({"prompt": f"Write add(a, b). It is needed for {i}.", "answer": json.dumps(tests)}),
                    file=file,
                )
    return [f"prompts.{part}.path={tmp_path}/{part}.jsonl" for part in ("train", "test")]


def test_the_logic_configuration_is_checked_and_its_own_answers_are_right():
    config = load_config("configs/logic.yaml", FEW)
    train, test = load_both(config)
    said = preview(config, train, test, "cluster/aws.yaml")
    assert "learner ranks on" in said
    assert {prompt.metadata["task"] for prompt in train} == set(config.prompts.train.tasks)
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in test}
    for prompt in test:
        entry = json.loads(prompt.answer)["entry"]
        right = entry["answer"] or entry["metadata"]["example_answer"]  # of propositional_logic any of several is right
        options = config.reward.options
        assert score(prompt.verifier, f"So <answer>{right}</answer>", prompt.answer, **options).value == 1, prompt.id
        assert score(prompt.verifier, "<answer>no idea</answer>", prompt.answer, **options).value == 0


def test_the_code_configuration_is_checked_on_data_of_its_form(programs):
    config = load_config("configs/code.yaml", programs)
    train, test = load_both(config)
    assert "70" in preview(config, train, test, "cluster/aws.yaml")
    right = "```python\ndef add(a, b):\n    return a + b\n```"
    assert score("code", right, train[5].answer, **config.reward.options).value == 1
    assert score("code", right.replace("+", "-"), train[5].answer, **config.reward.options).value == 0


@pytest.mark.slow
def test_a_chat_model_trains_on_programs_in_conversations_and_is_judged_on_logic(ray_local, tmp_path, programs):
    """Both verifiers, the chat template between turns, and an environment of one's own, in one run."""
    model = chat_model(tmp_path / "model")
    logic = load_config("configs/logic.yaml").prompts.test
    tasks = ", ".join(f"{name}: {{}}" for name in logic.tasks)
    config = load_config(
        "configs/code.yaml",
        [
            programs[0],
            f"model.path={model}",
            f"run.dir={tmp_path}",
            "run.steps=2",
            "model.dtype=float32",
            "prompts.per_step=4",
            "prompts.max_tokens=1500",
            "plan.budget=8",
            "prompts.test.kind=reasoning_gym",
            f"prompts.test.tasks={{{tasks}}}",
            "prompts.test.verifier=reasoning_gym",
            "prompts.test.size=6",
            "prompts.test.template=",
            "environment.name=environments_for_tests:Nudge",
            "rollout.max_response_tokens=120",
            "rollout.max_sequences=16",
            "rollout.kv_cache_gib=0.2",
            "rollout.engines=1",
            "rollout.gpus_per_engine=0",
            "train.gpus_per_rank=0",
            "train.ranks=1",
            "reward.workers=1",
            "evaluate.every=0",
            "evaluate.samples=1",
            "evaluate.greedy=false",
            "track.every=1",
            "track.system_metrics=false",
        ],
    )
    summary = drive(config, str(model), tmp_path / "code", None, "run")
    assert (summary.steps, summary.rollouts) == (2, 16)
    assert summary.accuracy_after is not None
    lines = [json.loads(line) for line in (tmp_path / "code/metrics.jsonl").read_text().splitlines()]
    assert all(line["reward/failed"] == line["environment/failed"] == 0 for line in lines if "reward/failed" in line)
    table = json.loads((tmp_path / "code/samples/step-000002.json").read_text())
    responses = [row[table["columns"].index("response")] for row in table["data"]]
    assert any("user\nLook again.\nassistant\n" in response for response in responses)
