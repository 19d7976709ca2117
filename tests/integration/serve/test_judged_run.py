"""A training whose rewards come from a judge: the policy that kray serves."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast

from kray.faults.compared import metrics

# The served policy may write nothing but digits, of which the last is the verdict.
JUDGE = (
    "reward.verifier=functions",
    "reward.functions.judged={verifier: judge, weight: 3}",
    "reward.functions.even={verifier: 'sample_verifiers:first_is_even', weight: 1}",
    "reward.judge.model=tiny",
    "reward.judge.key_env=KRAY_TESTS_KEY",
    "reward.judge.template={response}",
    r"reward.judge.pattern=\d",
    "reward.judge.range=[0, 9]",
    "reward.judge.max_tokens=6",
    "reward.judge.concurrency=4",
    "reward.judge.prompt_price=1000",
    "run.steps=2",
)


def test_served_policy_judges_a_training(services, run_tiny, tmp_path):
    services.policy_up.result(180)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(services.folder))
    bias = {str(tokenizer.convert_tokens_to_ids(digit)): 100 for digit in "0123456789"}
    place = f"reward.judge.url={services.policy.address}/v1"
    summary = run_tiny("run", *JUDGE, place, f"reward.judge.request={{logit_bias: {json.dumps(bias)}}}")
    assert summary.steps == 2
    lines = [line for line in metrics(tmp_path / "run") if line["step"]]
    assert len(lines) == 2
    for line in lines:
        assert 0 <= line["reward/function_judged"] <= 1
        assert line["reward/failed"] == 0
        # Both functions apply to every response that has a reward.
        expected = (3 * line["reward/function_judged"] + line["reward/function_even"]) / 4
        assert line["reward/mean"] == pytest.approx(expected)
        assert line["judge/cost"] == pytest.approx(line["judge/prompt_tokens"] * 1000 / 1e6)
    # A step has 48 responses, and the evaluation before training 2 sampled and 1 greedy one of 12 prompts.
    asked = [line["judge/requests"] - line["judge/retries"] for line in lines]
    assert asked[0] == 12 * 3 + 48
    # The evaluation after the last step counts in its line, too.
    assert asked[1] == asked[0] + 48 + 12 * 3
    assert asked[0] <= lines[0]["judge/completion_tokens"] <= 6 * asked[0]
    table = json.loads((tmp_path / "run/samples/step-000002.json").read_text())
    assert {"reward_judged", "reward_even"} <= set(table["columns"])
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert not [file.name for file in files if services.key.encode() in file.read_bytes()]
