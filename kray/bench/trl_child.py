"""Runs TRL's GRPOTrainer on the work of a kray run, under a Python in which kray is not installed.

    python trl_child.py JOB.json ANSWER.json

JOB is written by kray/bench/trl_process.py. Each candidate setting is tried for a few steps; the fastest then runs all of them.
TRL generates with Hugging Face's `generate` or with its continuous batching: its vLLM path wants a GPU.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging

# A setting is abandoned when a step takes this many times the best setting's.
HOPELESS = 5.0


class Clock(TrainerCallback):
    """Measures steps from the end of one to the end of the next, so that nothing is left out.

    Ends the training after a step, except the first, that took longer than limit_s.

    Attributes:
        steps_s: Seconds of each step.
        limit_s: Largest allowed seconds of a step.
    """

    def __init__(self, limit_s: float) -> None:
        self.steps_s: list[float] = []
        self.limit_s = limit_s
        self._last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the step."""
        now = time.perf_counter()
        self.steps_s.append(now - self._last)
        self._last = now
        if len(self.steps_s) > 1 and self.steps_s[-1] > self.limit_s:
            control.should_training_stop = True


def timed(trainer: Any, method: str) -> list[float]:
    """Wrap a method and return a list that collects the seconds of each call."""
    inner, taken = getattr(trainer, method), []

    def wrapped(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = inner(*arguments, **options)
        taken.append(time.perf_counter() - started)
        return result

    setattr(trainer, method, wrapped)
    return taken


def settings(job: dict[str, Any], folder: str, steps: int, batched: bool, microbatches: int) -> Any:
    """Return TRL's names for kray's settings; logs and checkpoints are off."""
    from trl import GRPOConfig

    rollouts = len(job["steps"][0]) * job["rollouts_per_prompt"]
    return GRPOConfig(
        output_dir=folder,
        max_steps=steps,
        num_generations=job["rollouts_per_prompt"],
        per_device_train_batch_size=rollouts // microbatches,
        gradient_accumulation_steps=microbatches,
        max_completion_length=job["max_response_tokens"],
        temperature=job["temperature"],
        top_k=0,
        top_p=1.0,
        use_transformers_continuous_batching=batched,
        shuffle_dataset=False,
        beta=0.0,
        loss_type="dapo",
        epsilon=job["clip_low"],
        epsilon_high=job["clip_high"],
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        weight_decay=job["weight_decay"],
        adam_beta1=job["beta1"],
        adam_beta2=job["beta2"],
        adam_epsilon=job["eps"],
        max_grad_norm=job["grad_clip"],
        optim="adamw_torch_fused",
        seed=job["seed"] % 2**31,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=10 * steps,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def train(job: dict[str, Any], steps: int, batched: bool, microbatches: int, limit_s: float) -> dict[str, Any]:
    """Train on the first `steps` steps of the job and return the seconds of each."""
    from datasets import Dataset
    from trl import GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
    rows = Dataset.from_list([row for step in job["steps"][:steps] for row in step])
    tokens: list[int] = []
    rewards: list[float] = []

    def exact(completions: list[str], answer: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        found = [float(given.strip() == right.strip()) for given, right in zip(completions, answer, strict=True)]
        tokens.append(sum(map(len, completion_ids)))
        rewards.append(sum(found) / len(found))
        return found

    clock = Clock(limit_s)
    with tempfile.TemporaryDirectory() as folder:
        options = settings(job, folder, steps, batched, microbatches)
        trainer = GRPOTrainer(model, exact, options, train_dataset=rows, processing_class=tokenizer, callbacks=[clock])
        generate_s, prepare_s = timed(trainer, "_generate"), timed(trainer, "_generate_and_score_completions")
        trainer.train()
    return {
        "settings": {"threads": job["threads"], "continuous_batching": batched, "microbatches": microbatches},
        "steps_s": clock.steps_s,
        "generate_s_steps": generate_s,
        # Includes rewards and advantages.
        "prepare_s_steps": prepare_s,
        "tokens": tokens,
        "rewards": rewards,
        "rollouts_per_step": len(job["steps"][0]) * job["rollouts_per_prompt"],
    }


def main() -> None:
    """Try the candidates, run the fastest and write the answer."""
    job = json.loads(Path(sys.argv[1]).read_text())
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(job["threads"])
    tried: list[dict[str, Any]] = []
    for candidate in job["candidates"]:
        label = f"{candidate['microbatches']} micro-batches" + ", continuous batching" * candidate["batched"]
        try:
            limit_s = HOPELESS * min((each["step_s"] for each in tried), default=math.inf)
            found = train(job, candidate["steps"], candidate["batched"], candidate["microbatches"], limit_s)
        except Exception as error:
            # A setting that does not run here is left out.
            print(f"TRL: {label}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        # The fastest step: other work on the machine only adds time.
        tried.append(candidate | {"step_s": min(found["steps_s"][1:], default=found["steps_s"][0])})
        print(f"TRL: {label}: {tried[-1]['step_s']:.3f} s a step at best", flush=True)
    if not tried:
        sys.exit("none of the settings could be run")
    best = min(tried, key=lambda each: each["step_s"])
    found = train(job, len(job["steps"]), best["batched"], best["microbatches"], math.inf)
    versions = {name: version(name) for name in ("trl", "transformers", "torch", "accelerate")}
    Path(sys.argv[2]).write_text(json.dumps(found | {"tried": tried, "versions": versions}))


if __name__ == "__main__":
    main()
