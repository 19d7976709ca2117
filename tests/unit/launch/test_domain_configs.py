"""Beyond mathematics: configs for code, logic and summaries. test_conversation.py runs logic.yaml and code.yaml."""

from __future__ import annotations

import json

import pytest
from chat_models import programs

from kray.config import load_config, preview
from kray.launch.preflight import load_checked_prompts
from kray.rewards import score

FEW = ["prompts.train.size=100", "prompts.test.size=12", "prompts.train.limit=100"]


def test_logic_config_is_checked_and_its_answers_are_right():
    config = load_config("configs/logic.yaml", FEW)
    prompts = load_checked_prompts(config)
    train, test = prompts.of("train"), prompts.of("test")
    said = preview(config, train, test, "cluster/aws.yaml")
    assert "learner ranks on" in said
    assert {prompt.metadata["kind"] for prompt in train} == set(config.prompts.train.tasks)
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in test}
    for prompt in test:
        entry = json.loads(prompt.answer)["entry"]
        right = entry["answer"] or entry["metadata"]["example_answer"]  # of propositional_logic any of several is right
        options = config.reward.options
        assert score(prompt.verifier, f"So <answer>{right}</answer>", prompt.answer, **options).value == 1, prompt.id
        assert score(prompt.verifier, "<answer>no idea</answer>", prompt.answer, **options).value == 0


def test_the_code_configuration_is_checked_on_data_of_its_form(tmp_path):
    config = load_config("configs/code.yaml", programs(tmp_path))
    prompts = load_checked_prompts(config)
    train, test = prompts.of("train"), prompts.of("test")
    assert "70" in preview(config, train, test, "cluster/aws.yaml")
    right = "```python\ndef add(a, b):\n    return a + b\n```"
    assert score("code", right, train[5].answer, **config.reward.options).value == 1
    assert score("code", right.replace("+", "-"), train[5].answer, **config.reward.options).value == 0


@pytest.mark.parametrize("name", ["code", "logic", "summary"])
def test_configurations_for_a_small_model_are_checked(name):
    config = load_config(f"configs/small-{name}.yaml", ["prompts.train.size=60", "prompts.test.size=60"])
    quick = load_config("configs/quickstart.yaml")
    prompts = load_checked_prompts(config)
    train, test = prompts.of("train"), prompts.of("test")
    assert "learner ranks on" in preview(config, train, test, "cluster/aws.yaml")
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in test}
    assert (config.model, config.train, config.run.steps) == (quick.model, quick.train, quick.run.steps)
    assert config.plan.budget == quick.plan.budget
    for prompt in train[:20]:
        assert score(prompt.verifier, "I do not know.", prompt.answer, **config.reward.options).value == 0, prompt.id
