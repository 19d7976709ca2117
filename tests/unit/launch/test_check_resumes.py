"""`--check` of a resume, and of a model's folder, ends as the run would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from chat_models import chat_model
from checked_runs import QUICK, arguments, checkpoint, load_parts_of
from inline_jobs import run_job

from kray.config import load_config
from kray.config.schema import LoraConfig
from kray.driver.actor import Driver
from kray.driver.components import Components
from kray.driver.restore import reading
from kray.errors import ConfigError, KrayError
from kray.planner import KnapsackPlanner
from kray.prompts import PromptSampler
from kray.tracking import prompts_digest
from kray.train.checkpoints import newest_checkpoint, newest_intact
from kray.train.model import load_policy


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def copied(chat, tmp_path) -> Path:
    return Path(shutil.copytree(chat, tmp_path / "model"))


def check(*overrides: str):
    return run_job("train", "--config", QUICK, "--check", *overrides)


def refused(*overrides: str) -> str:
    done = check(*overrides)
    assert done.returncode == 2, (done.stdout, done.stderr)
    return done.stderr


# -- the model's folder ------------------------------------------------------------------------------------------------


def test_lora_targets_that_the_model_lacks_are_refused(chat):
    told = refused(*arguments(chat, "model.lora={targets: [nope]}"))
    with pytest.raises(ConfigError) as caught:
        load_policy(str(chat), lora=LoraConfig(targets=["nope"]))
    assert str(caught.value) in told
    assert "no linear layer is named 'nope'; there are" in told
    done = check(*arguments(chat, "model.lora={targets: [q_proj]}"))
    assert done.returncode == 0, done.stderr


def test_a_folder_without_weights_is_refused(copied):
    (copied / "model.safetensors").unlink()
    assert f"model.path: {copied} holds no weights" in refused(*arguments(copied))
    with pytest.raises(ConfigError):
        load_policy(str(copied))


def test_a_folder_that_lacks_a_part_of_its_weights_is_refused(copied):
    (copied / "model.safetensors").rename(copied / "model-1.safetensors")
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert f"{copied} lacks model-2.safetensors, which {index.name} lists (1 missing)" in refused(*arguments(copied))
    index.write_text("[]")
    assert f"model.path: {index} cannot be read" in refused(*arguments(copied))
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert check(*arguments(copied)).returncode == 0


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}},
        {"hidden_act": "foo"},
        {"num_hidden_layers": "many"},
        {"layer_types": ["full_attention"] * 5},
    ],
)
def test_a_configuration_that_builds_no_model_is_refused(copied, keys):
    file = copied / "config.json"
    config = json.loads(file.read_text())
    config.pop("rope_scaling", None)
    file.write_text(json.dumps(config | keys))
    assert "model.path" in refused(*arguments(copied))
    with pytest.raises(ConfigError, match=r"model\.path"):
        load_policy(str(copied))


# -- resumes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder with the checkpoints of steps 3 and 5."""
    config = load_config(QUICK, [])
    digest = prompts_digest([prompt for prompt, _ in load_parts_of(config)])
    folder = checkpoint(tmp_path / "quickstart-20260101-000000", config, digest)
    shutil.copytree(folder / "checkpoints/step-000003", folder / "checkpoints/step-000005")
    return folder


def damage(run: Path, **keys) -> Path:
    """Changes keys of the newest checkpoint's state."""
    file = run / "checkpoints/step-000005/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return file


def test_check_takes_the_checkpoint_before_a_damaged_one(run):
    (run / "checkpoints/step-000005/state.json").write_text('{"step": 5')
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    done = check(f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert "step-000005 is damaged" in done.stdout
    assert f"taking {run}/checkpoints/step-000003 instead" in done.stdout
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    assert newest_intact(newest_checkpoint(run), print) == run / "checkpoints/step-000003"  # what the run does


def test_check_takes_damaged_checkpoints_for_none(run):
    for file in run.glob("checkpoints/*/state.json"):
        file.write_text("")
    assert "resume: no checkpoint is left; start a new run" in refused(f"resume={run}")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"planner": {"version": 2}}, "a planner of version 2 cannot be read"),
        ({"planner": {"version": 1}}, "KeyError: 'beliefs'"),
        ({"planner": {"version": 1, "beliefs": {"version": 99}}}, "beliefs of version 99 cannot be read"),
        ({"calibration": {"sums": []}}, "KeyError: 'brier'"),
        ({"newer": 1}, "unexpected keyword argument 'newer'"),
        ({"version": 2}, "the checkpoint is of version 2; this kray reads version 1"),
    ],
)
def test_states_that_cannot_be_taken_over_are_refused(run, keys, why):
    file = damage(run, **keys)
    told = refused(f"resume={run}")
    assert why in told
    assert str(file) in told


def test_a_run_refuses_a_planner_of_another_version(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the driver sets it
    file = damage(run, planner={"version": 2})
    config = load_config(QUICK, [f"resume={run}"])
    parts = parts_like(config)
    driver = Driver(config, "", str(run), str(file.parent), {})
    with pytest.raises(ConfigError, match="a planner of version 2 cannot be read") as caught:
        driver._restore(parts, "")
    assert str(file) in str(caught.value)
    assert str(caught.value) in refused(f"resume={run}")


def parts_like(config):
    """What a run of the quickstart's prompts takes over a state into, without its policy, which is made by training."""
    train = load_parts_of(config)
    sampler = PromptSampler([prompt.id for prompt, _ in train], config.prompts.per_step, config.run.seed, True)
    planner = KnapsackPlanner.of(config.plan)
    return Components(None, (), (), train, [], sampler, None, planner, None, None, ())


def test_errors_with_a_message_of_their_own_keep_it(tmp_path):
    with pytest.raises(KrayError, match=r"^mine$"), reading(tmp_path):
        raise KrayError("mine")
