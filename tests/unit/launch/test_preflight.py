"""What the jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from kray.config import KrayConfig, ModelConfig, RewardConfig, SourceConfig, load_config, to_yaml
from kray.config.resume import note_changes
from kray.driver.run_folder import run_folder
from kray.errors import ConfigError, DataError
from kray.launch.preflight import load_checked_prompts
from kray.train.start_model import check_model


def test_run_folders_are_new_and_a_bad_place_is_named(tmp_path):
    config = KrayConfig()
    config.run.dir = str(tmp_path / "runs")
    folders = {run_folder(config) for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.is_dir() and folder.name.startswith("run-2") for folder in folders)
    (tmp_path / "file").touch()
    config.run.dir = str(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"run\.dir"):
        run_folder(config)


@pytest.mark.parametrize("path", ["./nowhere", "~/nowhere/at/all", "/nowhere"])
def test_a_path_that_is_no_folder_is_not_taken_for_a_hub_id(path):
    with pytest.raises(ConfigError, match=r"model\.path"):
        check_model(KrayConfig(model=ModelConfig(path=path)))


def test_a_folder_without_a_model_is_refused_and_a_hub_id_is_not(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_model(KrayConfig(model=ModelConfig(path=str(tmp_path))))
    check_model(KrayConfig(model=ModelConfig(path="Qwen/Qwen2.5-0.5B-Instruct")))
    assert not Path("Qwen").exists()


@pytest.mark.parametrize(
    ("reward", "answer", "error", "message"),
    [
        (RewardConfig("math"), "####", DataError, "prompt p.jsonl:1: math: no right answer in '####'"),
        (RewardConfig("code"), "3", DataError, 'prompt p.jsonl:1: code: the answer must hold one of "cases"'),
        (
            RewardConfig("code", {"isolation": "none"}),
            "3",
            ConfigError,
            'reward.verifier: verifier "code": code: isolation',
        ),
        (RewardConfig("code", {"timeout": 3}), "3", ConfigError, 'reward.verifier: verifier "code" takes '),
    ],
)
def test_unusable_answers_and_options_are_refused(tmp_path, reward, answer, error, message):
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"prompt": "x", "answer": "{answer}"}}\n')
    config = KrayConfig(reward=reward)
    config.prompts.train = config.prompts.test = SourceConfig(kind="jsonl", path=str(file))
    with pytest.raises(error) as caught:
        load_checked_prompts(config)
    assert str(caught.value).startswith(message)


def loaded() -> KrayConfig:
    return load_config("configs/tiny.yaml", ["model.path=x", "model.tiny=null"])


def test_configuration_changes_are_logged_without_secrets(tmp_path):
    old, new = loaded(), loaded()
    old.track.uri, new.track.uri = "http://me:old-password@a", "http://me:new-password@b"
    (tmp_path / "config.yaml").write_text(to_yaml(old))
    told = "changed since the run was last started: track.uri: 'http://me:***@a' -> 'http://me:***@b'"
    assert note_changes(new, tmp_path) == [told]
    new.prompts.train.limit = 7
    told = r"prompts\.train\.limit was 0 when .* began and cannot become 7 .*life of a run: model, run\.seed, .*other keys may"
    with pytest.raises(ConfigError, match=told):
        note_changes(new, tmp_path)


def test_who_judges_the_training_prompts_is_settled(tmp_path):
    old, new = loaded(), loaded()
    old.reward.verifier, new.reward.verifier = "math", "exact"
    (tmp_path / "config.yaml").write_text(to_yaml(old))
    with pytest.raises(ConfigError, match=r"reward\.verifier was 'math' when .* and cannot become 'exact'"):
        note_changes(new, tmp_path)
    for config in (old, new):  # judged by a verifier of their own: the test prompts alone are judged by another one
        config.prompts.train.verifier = "code"
    (tmp_path / "config.yaml").write_text(to_yaml(old))
    assert note_changes(new, tmp_path) == ["changed since the run was last started: reward.verifier: 'math' -> 'exact'"]
