"""What leaves a run computes what the run's learner computes, wherever it is loaded again."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from inline_jobs import run_job
from logged_lines import logged_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from kray.config import KrayConfig, LoraConfig, ModelConfig, TrackConfig, TrainConfig, to_yaml
from kray.driver.model_registry import log_trained
from kray.driver.state import RunState
from kray.errors import ConfigError, KrayError
from kray.records import Prompt, Rollout, RolloutGroup
from kray.tracking import Tracker, locate, log_model
from kray.train.checkpoints import CheckpointStore
from kray.train.export import atomic_folder, export_checkpoint
from kray.train.learner import Learner
from kray.train.model import copy_tokenizer
from kray.train.training_rows import step_rows

ROOT = Path(__file__).parents[3]
TRAIN = TrainConfig(lr=1e-2, timeout_s=120)
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}="
PROBE = [((3,), (4, 5, 6, 7, 8, 9)), ((12, 11, 10), (9, 8))]


def mixed_groups() -> list[RolloutGroup]:
    rng = np.random.default_rng(0)
    groups = []
    for g in range(3):
        drawn = [rng.integers(0, 17, 5) for _ in range(4)]
        rollouts = [
            Rollout(f"p{g}", i, tokens, np.full(5, -3.0, np.float32), "stop", ((0, 0, 5),), reward=i % 2)
            for i, tokens in enumerate(drawn)
        ]
        groups.append(RolloutGroup(Prompt(f"p{g}", "", "exact", "test", text="x"), (3, 4, 5), rollouts, 4.0))
    return groups


@pytest.fixture
def chat_policy(warm_policy, tmp_path) -> Path:
    """A tiny policy with a tokenizer and a chat template."""
    source = tmp_path / "source"
    shutil.copytree(warm_policy, source)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    return source


@pytest.fixture
def make_run(chat_policy, tmp_path):
    """make_run(lora, dtype): a run folder with checkpoints of steps 1 and 2, and what the learner says to PROBE at each."""

    def build(
        lora: LoraConfig | None = None, dtype: str = "float32", run_id: str = ""
    ) -> tuple[Path, KrayConfig, dict[int, list]]:
        config = KrayConfig(model=ModelConfig(path=str(chat_policy), dtype=dtype, lora=lora), train=TRAIN)
        folder = tmp_path / "runs" / "run-20261121-120000"
        store = CheckpointStore(folder, 2)
        (folder / "config.yaml").write_text(to_yaml(config))
        learner = Learner(0, 1, "", 0, str(chat_policy), TRAIN, dtype, 10, 0, lora=lora)
        said = {}
        try:
            for step in (1, 2):
                learner.update(step_rows(mixed_groups(), TRAIN))
                said[step] = learner.logprobs(PROBE)
                learner.save(store.begin(step) / "learner")
                store.commit(step, RunState(step=step, mlflow_run_id=run_id).to_dict())
        finally:
            learner.shutdown()
        return folder, config, said

    return build


def logprobs(model) -> list[np.ndarray]:
    """What a transformers model says to PROBE."""
    found = []
    for prompt, response in PROBE:
        with torch.no_grad():
            scores = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        found.append(scores.gather(-1, torch.tensor(response)[:, None])[:, 0].numpy())
    return found


def largest(a, b) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=8.0)], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_is_whole_and_computes_the_same(make_run, tmp_path, lora, dtype):
    run, config, said = make_run(lora, dtype)
    out, adapters = tmp_path / "out", tmp_path / "adapters" if lora else ""
    count = export_checkpoint(run / "checkpoints" / "step-000002", config.model.path, config.model, out, adapters)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == getattr(torch, dtype)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    difference = largest(logprobs(model), said[2])
    print(f"\nlargest difference of a logprob, {'LoRA ' * bool(lora)}{dtype} export to learner: {difference:.1e}")
    assert difference < (1e-5 if dtype == "float32" else 0.05)
    assert largest(said[1], said[2]) > 0.05  # it is not the start model's, nor the step's before
    tokenizer = AutoTokenizer.from_pretrained(out)
    message = [{"role": "user", "content": "12+7"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "12+7="
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert sorted(file.name for file in out.parent.glob(".tmp*")) == []
    if adapters:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, adapters)
        assert largest(logprobs(adapted), logprobs(model.float())) < (1e-5 if dtype == "float32" else 0.05)


def test_export_refuses_missing_adapters_and_full_folders(make_run, tmp_path):
    run, config, _ = make_run()
    checkpoint = run / "checkpoints" / "step-000002"
    with pytest.raises(ConfigError, match=r"model\.lora is null"):
        export_checkpoint(checkpoint, config.model.path, config.model, tmp_path / "out", tmp_path / "adapters")
    other = replace(config.model, lora=LoraConfig())
    with pytest.raises(KrayError, match=r"model\.lora must be as it was"):
        export_checkpoint(checkpoint, config.model.path, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="source exists and is not an empty folder"):
        export_checkpoint(checkpoint, config.model.path, config.model, config.model.path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "out"
    with pytest.raises(TypeError), atomic_folder(folder) as unfinished:
        (unfinished / "part").write_text(1)
    assert list(folder.parent.iterdir()) == []
    for content in ("1", "2"):
        with atomic_folder(folder, replace=True) as unfinished:
            (unfinished / "part").write_text(content)
        assert (folder / "part").read_text() == content
    (tmp_path / "file").write_text("")
    with pytest.raises(KrayError, match="file/out cannot be written"), atomic_folder(tmp_path / "file" / "out"):
        pass


def test_a_hub_ids_tokenizer_comes_as_it_is(chat_policy, tmp_path, monkeypatch):
    """From the hub's cache, as it is on a node without internet."""
    cache = tmp_path / "hub" / "models--someone--policy"
    shutil.copytree(chat_policy, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_OFFLINE", True, raising=False)
    (tmp_path / "out").mkdir()
    copy_tokenizer("someone/policy", tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (chat_policy / name).read_bytes()
    assert not (tmp_path / "out" / "model.safetensors").exists()


class Learners:
    """What log_trained needs of a LearnerGroup."""

    def __init__(self, source: Path, failure: Exception | None = None):
        self.source, self.failure = source, failure

    async def export(self, folder: Path) -> None:
        if self.failure:
            raise self.failure
        shutil.copytree(self.source, folder, dirs_exist_ok=True)


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """A run folder with an open MLflow run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(TrackConfig(system_metrics=False), tmp_path / "run", "run-1", {}, {}, "")
    yield tmp_path / "run", tracker
    tracker.finish()


def asked(log: str, folder: Path, tracker: Tracker, learners: Learners, **track) -> list[str]:
    """What the end of a run says with track.log_model = log."""
    config = KrayConfig(track=TrackConfig(log_model=log, **track))
    with logged_lines() as lines:
        asyncio.run(log_trained(config, learners, folder, tracker.mlflow_run_id, 7))
    return lines


def test_trained_policy_is_logged_only_when_configured(tracked, tied_policy, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    folder, tracker = tracked
    learners = Learners(tied_policy)
    assert asked("", folder, tracker, learners) == []
    assert not (folder / "model").exists()
    (logged,) = asked("log", folder, tracker, learners)
    (first,) = asked("register", folder, tracker, learners)
    (second,) = asked("register", folder, tracker, learners, model_name="better")
    (third,) = asked("register", folder, tracker, learners, model_name="better")
    assert logged.startswith(f"model: {folder}/model, in MLflow models:/m-")
    assert [line.rpartition(" ")[2] for line in (first, second, third)] == [
        "models:/run/1",
        "models:/better/1",
        "models:/better/2",
    ]
    store = locate("", folder)
    client = MlflowClient(tracking_uri=store.uri)
    outputs = client.get_run(tracker.mlflow_run_id).outputs.model_outputs
    assert [output.step for output in outputs] == [7] * 4
    version = client.get_model_version("better", "2")
    assert version.run_id == tracker.mlflow_run_id
    assert version.tags["kray.step"] == "7"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    loaded = download_artifacts(artifact_uri="models:/better/2")
    again, source = (AutoModelForCausalLM.from_pretrained(path) for path in (loaded, tied_policy))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), source.parameters(), strict=True))


def test_failed_model_logging_is_a_warning(tracked, tied_policy, tmp_path):
    folder, tracker = tracked
    broken = Learners(tied_policy, KrayError("learner rank 0 died"))
    assert asked("log", folder, tracker, broken) == ["warning: track.log_model: learner rank 0 died"]
    assert not (folder / "model").exists()
    (line,) = asked("register", folder, tracker, Learners(tied_policy), uri=f"sqlite:///{tmp_path}/nowhere.db")
    assert line.startswith(f"warning: track.log_model: MLflow at sqlite:///{tmp_path}/nowhere.db")
    assert not (tmp_path / "nowhere.db").exists()
    (line,) = asked("register", folder, tracker, Learners(tied_policy), uri="http://127.0.0.1:9")
    assert line.startswith("warning: track.log_model: MLflow at http://127.0.0.1:9")
    with pytest.raises(KrayError, match=r"could not be recorded: .*0123"):
        log_model(locate("", folder), "0123", tied_policy, "x", 1, True)


def job(ray, *arguments: str) -> subprocess.CompletedProcess:
    """Run jobs/export.py in the cluster of this test run."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": "", "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "jobs/export.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)


def test_export_job_exports_any_step_and_registers(ray_local, tracked, make_run, tmp_path):
    folder, tracker = tracked
    run, _, said = make_run(run_id=tracker.mlflow_run_id)
    for name in ("mlflow.db", "mlruns-artifacts"):
        (run / name).symlink_to(folder / name)  # as if this had been the run's folder
    done = job(ray_local, str(run), str(tmp_path / "new"), "--register", "arithmetic")
    assert done.returncode == 0, done.stderr
    assert "registered it as models:/arithmetic/1" in done.stdout
    old = job(ray_local, str(run), str(tmp_path / "old"), "--step", "1")
    assert old.returncode == 0, old.stderr
    for step, name in ((2, "new"), (1, "old")):
        assert largest(logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / name)), said[step]) < 1e-5


def test_export_job_refuses_bad_arguments(ray_local, make_run, tmp_path):
    run, *_ = make_run()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    for arguments, message in [
        (
            [str(run), str(tmp_path / "out"), "--step", "9"],
            "holds no complete checkpoint of step 9; available steps: 1, 2",
        ),
        ([str(tmp_path / "none"), str(tmp_path / "out")], "is not a folder"),
        ([str(run), str(tmp_path / "taken")], "exists and is not an empty folder"),
        ([str(run), str(tmp_path / "out"), "--adapters", str(tmp_path / "lora")], "model.lora is null"),
    ]:
        done = job(ray_local, *arguments) if "--adapters" in arguments else run_job("export", *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


ENGINE = """
import sys
import numpy as np
from vllm import LLM, SamplingParams

llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=64, kv_cache_memory_bytes=2**24)
parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=1.0)
tokens = [3, 4, 5, 6, 7, 8, 9]
(output,) = llm.generate([{"prompt_token_ids": tokens}], parameters)
np.save(sys.argv[2], [output.prompt_logprobs[i][tokens[i]].logprob for i in range(1, len(tokens))])
(chat,) = llm.chat([{"role": "user", "content": "12+7"}], parameters)
assert len(chat.prompt_token_ids) == 5, chat.prompt_token_ids
"""


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
def test_vllm_loads_an_export_and_computes_the_same(make_run, tmp_path, lora):
    run, config, said = make_run(lora)
    export_checkpoint(run / "checkpoints" / "step-000002", config.model.path, config.model, tmp_path / "out")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, "-c", ENGINE, str(tmp_path / "out"), str(tmp_path / "logprobs.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    difference = largest([np.load(tmp_path / "logprobs.npy")], said[2][:1])
    print(f"\nlargest difference of a logprob, {'LoRA ' * bool(lora)}export in vLLM to learner: {difference:.1e}")
    assert difference < 1e-4


def test_a_checkpoint_that_would_run_something_is_refused(make_run, tmp_path):
    """Its .metadata is a pickle: whoever serves or exports a run of another must not run what it holds."""
    run, config, _ = make_run()
    file = run / "checkpoints" / "step-000002" / "learner" / ".metadata"
    file.write_bytes(pickle.dumps(Planted(str(tmp_path / "ran"))))
    with pytest.raises(KrayError, match=r"\.metadata cannot be read: it names os\.mkdir|posix\.mkdir"):
        export_checkpoint(file.parents[1], config.model.path, config.model, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


class Planted:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)
