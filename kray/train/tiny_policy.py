"""Makes a policy small enough to train on a laptop, warmed up on noisy answers to arithmetic or reasoning_gym tasks, or on
random games of textarena or Nim.

Guarantees: equal settings give the same folder, made once per cache. It appears completely or not at all, also when two
processes make it at once. It is a plain Hugging Face folder (config, safetensors, tokenizer, generation config).

With tool_share the policy also learns to call the calculator (kray/environments/calculator.py) now and then, and to copy its
result. The training calls are right at first and then only half of the time, so that reinforcement learning has to find out
when to call it and with what. With check_share it also learns to judge answers (kray/environments/solver_checker.py), likewise.
"""

from __future__ import annotations

import itertools
import logging
import math
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
from kray.config.threads import cores_here
from kray.environments.calculator import Calculator
from kray.environments.demonstrations import Segment
from kray.environments.solver_checker import ASKED, RIGHT, WRONG, with_error
from kray.prompts.arithmetic import (
    KINDS,
    Problem,
    make_problems,
    noisy_answer,
    noisy_text,
    systematic_answer,
    with_draft,
)
from kray.prompts.demonstrations import Demonstration, flawed_answer
from kray.train.tiny_files import (
    GAMES,
    MAX_POSITIONS,
    VERDICT_ACCURACY,
    check_tiny,
    demonstrations_of,
    folder_of,
    games_of,
    tokenizer_of,
)
from kray.train.tiny_games import IGNORED, game_batches

logger = logging.getLogger(__name__)

# A job's stdout is not a terminal.
transformers_logging.disable_progress_bar()

# Share of the training calls that are right, after the clean part.
TOOL_ACCURACY = 0.5
# Most different training problems, used in turn, each time with a new answer: enough that none is memorized.
PROBLEMS = 131_072
# Steps over which the learning rate rises.
RISE_STEPS = 50
# Share of the steps, at the end, over which the learning rate falls to zero.
FALL_SHARE = 0.2
# Standard deviation of the initial weights; at transformers' 0.02 a model this narrow needs more than twice the steps.
INITIALIZER_RANGE = 0.06
# Base of the rotary frequencies: small enough that the positions of such short problems differ clearly.
ROPE_THETA = 100.0
# Steps between two progress lines, a few seconds.
PROGRESS_STEPS = 50
# The calculator of configs/calculator.yaml.
CALCULATOR = Calculator(least_first=True, shown="{}=")


def ensure_tiny_policy(tiny: TinyPolicyConfig, cache_dir: str | Path | None = None) -> Path:
    """Return the folder of the warmed-up policy; it is made when the cache does not hold it (minutes on two cores).

    Args:
        tiny: The policy's settings.
        cache_dir: Default KRAY_CACHE, else XDG_CACHE_HOME/kray, else ~/.cache/kray. A run on several nodes needs one that
            all of them share.

    Raises:
        ConfigError: The settings describe no model.
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
        # mkdtemp makes it private.
        unfinished.chmod(0o755)
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
    """Make the model with random weights from torch's global generator."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.kv_heads,
        # vLLM's CPU attention supports multiples of 32 only.
        head_dim=32 * math.ceil(tiny.hidden_size / tiny.heads / 32),
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
    demonstrations, games = demonstrations_of(tiny), games_of(tiny, GAMES)
    tokenizer = tokenizer_of(tiny, demonstrations, games)
    # Lists of segments without end; what the policy learns to write is `sampled`.
    texts = _games(games, tiny.seed) if games else _texts(tiny, demonstrations)
    threads = torch.get_num_threads()
    cores = cores_here()
    # Ray sets OMP_NUM_THREADS=1 in its workers, but the rest of the run is idle now. Half of the cores: threads that spin
    # while another program uses their core are five to twenty times slower than one thread.
    torch.set_num_threads(max(1, min(4, cores // 2)))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tiny.seed)
            model = make_model(tiny, tokenizer)
            _train(model, game_batches(tokenizer, tiny) if tiny.nim else _batches(tokenizer, tiny, texts), tiny)
    finally:
        torch.set_num_threads(threads)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _games(games: Sequence[list[Segment]], seed: int) -> Iterator[list[Segment]]:
    """Yield games without end, in a new order each time."""
    rng, order = random.Random(seed), list(range(len(games)))
    while True:
        rng.shuffle(order)
        yield from (games[index] for index in order)


def _answered(question: str, call: str, result: str, answer: str) -> list[Segment]:
    """Return a question with its answer and, if it is not empty, the call of the calculator before it."""
    called = [Segment(call, True, False), Segment(result, False, False)] if call else []
    return [Segment(question, False, False), *called, Segment(answer, True, True)]


def _judged(problem: Problem, clean: bool, rng: random.Random) -> list[Segment]:
    """Return a question with a right or a wrong answer, equally likely, and a verdict on it."""
    shown = problem.answer if rng.random() < 0.5 else with_error(problem.answer, rng)
    truthful = clean or rng.random() < VERDICT_ACCURACY
    verdict = RIGHT if (shown == problem.answer) == truthful else WRONG
    return [Segment(problem.text + shown + ASKED, False, False), Segment(verdict, True, True)]


def _texts(tiny: TinyPolicyConfig, demonstrations: Sequence[Demonstration] = ()) -> Iterator[list[Segment]]:
    """Yield questions with answers without end: right answers first, then noisy ones; see _response."""
    rng = random.Random(tiny.seed)
    clean_steps = tiny.clean_share * tiny.warmup_steps
    if demonstrations:
        for number, demonstration in enumerate(itertools.cycle(demonstrations)):
            clean = number // tiny.batch_size < clean_steps
            answer = demonstration.answer if clean else flawed_answer(demonstration, rng)
            yield _answered(demonstration.text, "", "", answer)
    many = min(PROBLEMS, tiny.warmup_steps * tiny.batch_size)
    for number, problem in enumerate(itertools.cycle(make_problems(tiny.kinds or KINDS, many, tiny.seed, "train"))):
        clean = number // tiny.batch_size < clean_steps
        if tiny.check_share and rng.random() < tiny.check_share:
            yield _judged(problem, clean, rng)
        else:
            yield _answered(problem.text, *_response(problem, clean, rng, tiny))


def _batches(
    tokenizer: PreTrainedTokenizerFast, tiny: TinyPolicyConfig, texts: Iterator[list[Segment]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (input_ids, labels) of each step, (B, T) int64 each; labels are IGNORED where the policy writes nothing."""
    for _ in range(tiny.warmup_steps):
        examples = list(itertools.islice(texts, tiny.batch_size))
        encoded = iter(tokenizer([part.text for example in examples for part in example])["input_ids"])
        rows: list[list[int]] = []
        targets: list[list[int]] = []
        for example in examples:
            rows.append([])
            targets.append([])
            for part in example:
                tokens = next(encoded) + [tokenizer.eos_token_id] * part.ends_turn
                rows[-1] += tokens
                targets[-1] += tokens if part.sampled else [IGNORED] * len(tokens)
        longest = max(map(len, rows))
        input_ids = torch.full((tiny.batch_size, longest), tokenizer.pad_token_id)
        labels = torch.full((tiny.batch_size, longest), IGNORED)
        for b, (row, target) in enumerate(zip(rows, targets, strict=True)):
            input_ids[b, : len(row)] = torch.tensor(row)
            labels[b, : len(row)] = torch.tensor(target)
        yield input_ids, labels


def _response(problem: Problem, clean: bool, rng: random.Random, tiny: TinyPolicyConfig) -> tuple[str, str, str]:
    """Return (call, result of the calculator, answer); without a call the first two are empty."""
    if not (tiny.tool_share and rng.random() < tiny.tool_share):
        noisy = systematic_answer if tiny.habits else noisy_answer
        answer = problem.answer if clean else noisy(problem, rng)
        return "", "", with_draft(answer, tiny.draft_digits, rng) if tiny.draft_digits else answer
    question = problem.text if clean or rng.random() < TOOL_ACCURACY else noisy_text(problem, rng)
    result = CALCULATOR.result(question[:-1])
    return f"[{question[:-1]}]", CALCULATOR.shown.format(result), result.ljust(len(problem.answer), "0")


def _train(model: Qwen3ForCausalLM, batches: Iterator[tuple[Tensor, Tensor]], tiny: TinyPolicyConfig) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=tiny.lr, weight_decay=0.01)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(f"tiny policy: warming up {parameters / 1e6:.2f} M parameters for {tiny.warmup_steps} steps, once")
    started, losses = time.monotonic(), []
    for step, (input_ids, labels) in enumerate(batches):
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
    """Return the factor of the learning rate: a short rise, a plateau, a fall to almost zero."""
    return min(1.0, (step + 1) / min(RISE_STEPS, steps), (steps - step) / (steps * FALL_SHARE))
