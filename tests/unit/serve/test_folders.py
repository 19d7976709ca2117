"""What a person names is found, and what cannot be served is refused before anything starts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kray.config import KrayConfig, ModelConfig, to_yaml
from kray.driver.state import RunState
from kray.errors import ConfigError
from kray.serve.folders import exported, find_checkpoint, policy_spec
from kray.serve.policy_api import prompts_in

ASKED = {"name": "", "context": 0, "max_tokens": 0, "sequences": 8, "cpus": 1, "gpus": 0, "kv_cache_gib": 0.1}


@pytest.fixture
def run(tied_policy, tmp_path):
    """A run's folder with two checkpoints, without what learners write."""
    folder = tmp_path / "runs" / "mine-20261121-120000"
    for step in (1, 2):
        checkpoint = folder / "checkpoints" / f"step-{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps(RunState(step=step).to_dict()))
    (folder / "config.yaml").write_text(to_yaml(KrayConfig(model=ModelConfig(path=str(tied_policy)))))
    return folder


def test_run_resolves_to_its_newest_checkpoint(run, tied_policy, tmp_path):
    newest = run / "checkpoints" / "step-000002"
    assert find_checkpoint(run, None) == find_checkpoint(newest, None) == newest
    assert find_checkpoint(run, 1) == run / "checkpoints" / "step-000001"
    assert find_checkpoint(tied_policy, None) is None
    for path, step in [(tmp_path / "no", None), (tmp_path, None), (run, 7), (tied_policy, 1)]:
        with pytest.raises(ConfigError):
            find_checkpoint(path, step)


def test_checkpoint_has_its_own_cache_folder(run, tmp_path):
    checkpoint = find_checkpoint(run, 2)
    first, config = exported(checkpoint, tmp_path / "cache", [])
    assert first.parent == tmp_path / "cache"
    assert first.name.startswith("mine-20261121-120000-step-000002-")
    assert config.model.path
    assert exported(checkpoint, tmp_path / "cache", [])[0] == first
    assert exported(find_checkpoint(run, 1), tmp_path / "cache", [])[0] != first
    assert exported(checkpoint, tmp_path / "cache", ["model.dtype=bfloat16"])[0] != first
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | {"mlflow_run_id": "x"}))  # the run was begun anew
    assert exported(checkpoint, tmp_path / "cache", [])[0] != first
    with pytest.raises(ConfigError, match=r"model\.pathh is not a key"):
        exported(checkpoint, tmp_path / "cache", ["model.pathh=x"])


def test_policy_spec_follows_from_the_folder(warm_policy, tmp_path):
    spec = policy_spec(warm_policy, SimpleNamespace(**ASKED))
    most = json.loads((warm_policy / "config.json").read_text())["max_position_embeddings"]
    assert spec.context == most
    assert spec.max_tokens == 16 * most
    assert spec.name == warm_policy.name
    assert spec.engine_options()["load_format"] == "safetensors"
    assert spec.engine_options()["default_chat_template_kwargs"] is None
    # vLLM refuses more sequences than tokens of a step, and would take 2,048 of those.
    many = replace(spec, sequences=9000)
    assert [replace(many, gpus=gpus).engine_options()["max_num_batched_tokens"] for gpus in (0, 1)] == [9000, 9000]
    quiet = replace(spec, chat_template_kwargs={"enable_thinking": False})
    assert quiet.engine_options()["default_chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(ConfigError, match=r"--context .* is above the"):
        policy_spec(warm_policy, SimpleNamespace(**(ASKED | {"context": most + 1})))
    pickled = tmp_path / "pickled"
    shutil.copytree(warm_policy, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"holds no \.safetensors"):
        policy_spec(pickled, SimpleNamespace(**ASKED))


def test_prompts_in_a_completion():
    for prompt, count in [("text", 1), ([1, 2, 3], 1), (["a", "b"], 2), ([[1, 2], [3]], 2), ([], 1)]:
        assert prompts_in(prompt) == count
