"""A policy small enough to learn on a laptop: made here, warmed up on noisy answers to arithmetic or reasoning_gym tasks.

Promises: equal settings give the same folder, made once per cache; it appears whole or not at all, also when two processes
make it at once; it is a plain Hugging Face folder (config, safetensors, tokenizer, generation config).

With tool_share it also learns to call the calculator (kray/environments/calculator.py) now and then, and to copy what comes
back. The teacher's calls are right at first and then only half of the time, so that both when to call and what to ask is
left for reinforcement learning to find out.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from kray.config.schema import TinyPolicyConfig
from kray.environments.calculator import Calculator
from kray.prompts.arithmetic import KINDS, Problem, habitual_answer, make_problems, noisy_answer, noisy_text
from kray.prompts.lessons import Lesson, teach
from kray.train.tiny_files import MAX_POSITIONS, check_tiny, folder_of, lessons_of, tokenizer_of

logger = logging.getLogger(__name__)

transformers_logging.disable_progress_bar()  # in a job stdout is no terminal

TOOL_ACCURACY = 0.5  # of the teacher's calls, once it errs
PROBLEMS = 131_072  # at most so many different training problems; they come in turn, each with an answer of its own
RISE_STEPS = 50
FALL_SHARE = 0.2  # of the steps, at the end, in which the learning rate falls to zero
INITIALIZER_RANGE = 0.06  # at 0.02 a model this narrow needs more than twice the steps
ROPE_THETA = 100.0  # positions of problems this short turn far enough to be told apart
PROGRESS_STEPS = 50
IGNORED = -100
CALCULATOR = Calculator(least_first=True, shown="{}=")  # as configs/calculator.yaml has it


def ensure_tiny_policy(tiny: TinyPolicyConfig, cache_dir: str | Path | None = None) -> Path:
    """The folder of the warmed-up policy; made when the cache does not hold it yet (minutes on two cores).

    cache_dir: default KRAY_CACHE, else XDG_CACHE_HOME/kray, else ~/.cache/kray. A run on several nodes needs one that all
    of them share. Raises ConfigError for settings that give no model.
    """
    check_tiny(tiny)
    final = folder_of(tiny, cache_dir)
    policies = final.parent
    if (final / "config.json").is_file():
        return final
    policies.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=policies))
    try:
        _build(tiny, unfinished)
        unfinished.chmod(0o755)  # mkdtemp makes it private
        try:
            unfinished.rename(final)
        except OSError:
            if not (final / "config.json").is_file():
                raise
            # Another process was faster; its folder holds the same policy.
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    logger.info(f"tiny policy: ready in {final}")
    return final


def make_model(tiny: TinyPolicyConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Random weights, from torch's global generator."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.kv_heads,
        head_dim=32 * math.ceil(tiny.hidden_size / tiny.heads / 32),  # vLLM's CPU attention takes no other sizes
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=tiny.tie_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def _build(tiny: TinyPolicyConfig, folder: Path) -> None:
    lessons = lessons_of(tiny)
    tokenizer = tokenizer_of(tiny, lessons)
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Ray sets OMP_NUM_THREADS=1 in its workers, but nothing else of the run is busy now. Half of the cores: threads that
    # spin for a core which another program has were five to twenty times slower than one thread alone.
    torch.set_num_threads(max(1, min(4, cores // 2)))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tiny.seed)
            model = make_model(tiny, tokenizer)
            _train(model, tokenizer, tiny, lessons)
    finally:
        torch.set_num_threads(threads)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _texts(tiny: TinyPolicyConfig, lessons: Sequence[Lesson]) -> Iterator[tuple[str, str, str, str]]:
    """(question, call, result, answer) endlessly, in turn: at first right answers, then the teacher's. See _response."""
    rng = random.Random(tiny.seed)
    right = tiny.clean_share * tiny.warmup_steps
    if lessons:
        for number, lesson in enumerate(itertools.cycle(lessons)):
            yield lesson.text, "", "", lesson.answer if number // tiny.batch_size < right else teach(lesson, rng)
    many = min(PROBLEMS, tiny.warmup_steps * tiny.batch_size)
    for number, problem in enumerate(itertools.cycle(make_problems(tiny.kinds or KINDS, many, tiny.seed, "train"))):
        yield problem.text, *_response(problem, number // tiny.batch_size < right, rng, tiny)


def _batches(
    tokenizer: PreTrainedTokenizerFast, tiny: TinyPolicyConfig, lessons: Sequence[Lesson] = ()
) -> Iterator[tuple[Tensor, Tensor]]:
    """(input_ids, labels) of each step, (B, T) int64 each; labels are IGNORED outside of what the policy is to write."""
    texts = _texts(tiny, lessons)
    for _ in range(tiny.warmup_steps):
        columns = zip(*itertools.islice(texts, tiny.batch_size), strict=True)
        met = list(zip(*(tokenizer(list(column))["input_ids"] for column in columns), strict=True))
        longest = max(sum(map(len, parts)) for parts in met) + 1
        input_ids = torch.full((tiny.batch_size, longest), tokenizer.pad_token_id)
        labels = torch.full((tiny.batch_size, longest), IGNORED)
        for b, (prompt, call, result, answer) in enumerate(met):
            tokens = torch.tensor([*prompt, *call, *result, *answer, tokenizer.eos_token_id])
            input_ids[b, : len(tokens)] = tokens
            labels[b, len(prompt) : len(tokens)] = tokens[len(prompt) :]
            told = len(prompt) + len(call)
            labels[b, told : told + len(result)] = IGNORED
        yield input_ids, labels


def _response(problem: Problem, clean: bool, rng: random.Random, tiny: TinyPolicyConfig) -> tuple[str, str, str]:
    """(call, result, answer): what the teacher writes, and between it what the calculator says; no call: two are empty."""
    if not (tiny.tool_share and rng.random() < tiny.tool_share):
        said = habitual_answer if tiny.habits else noisy_answer
        return "", "", problem.answer if clean else said(problem, rng)
    asked = problem.text if clean or rng.random() < TOOL_ACCURACY else noisy_text(problem, rng)
    result = CALCULATOR.result(asked[:-1])
    return f"[{asked[:-1]}]", CALCULATOR.shown.format(result), result.ljust(len(problem.answer), "0")


def _train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tiny: TinyPolicyConfig,
    lessons: Sequence[Lesson],
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=tiny.lr, weight_decay=0.01)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(f"tiny policy: warming up {parameters / 1e6:.2f} M parameters for {tiny.warmup_steps} steps, once")
    started, losses = time.monotonic(), []
    for step, (input_ids, labels) in enumerate(_batches(tokenizer, tiny, lessons)):
        for group in optimizer.param_groups:
            group["lr"] = tiny.lr * _schedule(step, tiny.warmup_steps)
        logits = model(input_ids=input_ids[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        done = step + 1
        if done % PROGRESS_STEPS == 0 or done == tiny.warmup_steps:
            left_s = (time.monotonic() - started) / done * (tiny.warmup_steps - done)
            mean = sum(losses[-PROGRESS_STEPS:]) / len(losses[-PROGRESS_STEPS:])
            logger.info(f"tiny policy: step {done}/{tiny.warmup_steps}, loss {mean:.3f}, {left_s:.0f} s left")


def _schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: a short rise, a plateau, a fall to almost zero."""
    return min(1.0, (step + 1) / min(RISE_STEPS, steps), (steps - step) / (steps * FALL_SHARE))
