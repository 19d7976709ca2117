"""A run that an earlier version wrote is resumed, evaluated and exported as that version would have done."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from old_files import unpack

from kray.config import load_config
from kray.driver.remote import run_on_cluster
from kray.driver.state import RunState
from kray.faults.compared import metrics
from kray.train.checkpoints import checkpoint_at_step, read_state
from kray.train.export import export_checkpoint
from kray.train.start_model import find_model


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """Return the run's folder, its configuration, its checkpoint and the path of its model."""
    monkeypatch.setenv("KRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = unpack("tiny-run", tmp_path)
    config = load_config(str(folder / "config.yaml"), [])
    return folder, config, checkpoint_at_step(folder, 2), find_model(config)


@pytest.mark.smoke
def test_an_old_run_is_resumed_to_the_same_digits(ray_local, old_run):
    folder, config, checkpoint, model = old_run
    expected = json.loads((folder / "expected.json").read_text())
    before = metrics(folder)
    summary = run_on_cluster(config, model, folder, checkpoint, "run")
    after = metrics(folder)
    assert (summary.steps, summary.rollouts) == (4, 4 * 48)
    assert [line["step"] for line in after] == [0, 1, 2, 3, 4]
    same_build = torch.__version__ == expected["torch"]
    for old, new in zip(before, after, strict=True):
        assert old.keys() <= new.keys()
        if same_build:
            # processors of one kind differ in the last digits of float32
            wrong = {
                k: (x, new[k]) for k, x in old.items() if new[k] != pytest.approx(x, rel=1e-4, abs=1e-6, nan_ok=True)
            }
            assert wrong == {}
        else:
            assert new["train/loss"] == pytest.approx(old["train/loss"], abs=0.1)


def test_an_old_checkpoint_is_evaluated(ray_local, old_run, tmp_path):
    folder, config, checkpoint, model = old_run
    evaluation = run_on_cluster(config, model, tmp_path / "evaluation", checkpoint, "judge")
    assert evaluation.accuracy == pytest.approx(metrics(folder)[2]["eval/accuracy"], abs=0.2)
    if torch.__version__ == json.loads((folder / "expected.json").read_text())["torch"]:
        assert evaluation.accuracy == metrics(folder)[2]["eval/accuracy"]


def test_an_old_checkpoint_is_read_and_exported(old_run, tmp_path):
    from transformers import AutoModelForCausalLM

    folder, config, checkpoint, model = old_run
    state = RunState.from_dict(read_state(checkpoint))
    assert (state.step, state.rollouts) == (2, 96)
    expected = json.loads((folder / "expected.json").read_text())
    export_checkpoint(checkpoint, model, config.model, tmp_path / "export", "")
    tokens = torch.tensor([expected["tokens"]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()(tokens).logits[0].double()
    logprobs = logits.log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    np.testing.assert_allclose(logprobs.numpy(), expected["logprobs"], atol=1e-6)
