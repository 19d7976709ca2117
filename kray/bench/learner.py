"""Measures the learner against a plain torch loop and against its matrix products on the same rows; see jobs/bench_learner.py.

Every measurement runs in processes of its own, so that peak memory is its own. Tokens are those of the rollouts, prompt and
response, the prompt counted for each rollout: what a loop without packing computes, padding left out.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from kray.config.train_schema import TrainConfig
from kray.metrics import TRAIN_ATTENTION_PADDING_RATIO, TRAIN_COMPUTED_TOKENS, TRAIN_GRAD_NORM, TRAIN_PADDING_RATIO
from kray.ports import free_port
from kray.records import Prompt, Rollout, RolloutGroup
from kray.train.learner import Learner
from kray.train.packing import collate, split_ranks
from kray.train.training_rows import TrainingRows, step_rows

# Dense bf16 peak, TFLOP/s, by a part of the device's name (vendors' data sheets).
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362}
PRODUCTS = "matrix products alone"
# hidden, layers, heads, kv heads, head dim, intermediate, vocabulary
SHAPES = {
    "tiny": (128, 4, 4, 2, 32, 512, 17),
    "3m": (256, 6, 4, 2, 64, 512, 256),
    "100m": (768, 12, 12, 4, 64, 2304, 16384),
    "135m": (576, 30, 9, 3, 64, 1536, 49152),  # SmolLM2-135M, but for Qwen3's norms of queries and keys
    "0.5b": (896, 24, 14, 2, 64, 4864, 151936),
    "1.5b": (1536, 28, 12, 2, 128, 8960, 151936),
}


@dataclass(frozen=True)
class Workload:
    """One step's rollouts.

    Attributes:
        shape: The model, a key of SHAPES.
        prompts: Number of groups.
        rollouts: Number of rollouts.
        prompt: Smallest and largest number of prompt tokens, uniform.
        response: Smallest and largest number of response tokens, uniform.
        spread: Dirichlet parameter of the group sizes; with a small one a few groups have most rollouts.
        microbatch_tokens: Most tokens of a micro-batch.
    """

    shape: str
    prompts: int
    rollouts: int
    prompt: tuple[int, int]
    response: tuple[int, int]
    spread: float
    microbatch_tokens: int


WORKLOADS = {
    "quickstart": Workload("tiny", 64, 512, (9, 15), (3, 7), 0.5, 16384),
    "reasoning": Workload("3m", 6, 24, (60, 160), (40, 400), 0.5, 4096),
    # Groups of two: sharing prompts saves little.
    "singles": Workload("3m", 10, 20, (60, 160), (40, 400), 1e6, 4096),
    # As configs/quickstart.yaml.
    "chat": Workload("135m", 16, 64, (40, 60), (8, 24), 1e6, 2048),
}


def make_groups(load: Workload, seed: int) -> list[RolloutGroup]:
    """Draw groups of random tokens with rewards 0 and 1 in turn, so that every group is mixed."""
    rng = np.random.default_rng(seed)
    vocabulary = SHAPES[load.shape][-1]
    shares = rng.dirichlet(np.full(load.prompts, load.spread))
    sizes = 2 + rng.multinomial(max(0, load.rollouts - 2 * load.prompts), shares)
    groups = []
    for g, size in enumerate(sizes):
        rollouts = []
        for i in range(size):
            n = int(rng.integers(load.response[0], load.response[1] + 1))
            tokens = rng.integers(vocabulary, size=n).astype(np.int32)
            logprobs = np.full(n, -np.log(vocabulary), np.float32)
            rollouts.append(Rollout(f"p{g}", i, tokens, logprobs, "stop", ((0, 0, n),), reward=float(i % 2)))
        prompt = tuple(rng.integers(vocabulary, size=rng.integers(load.prompt[0], load.prompt[1] + 1)).tolist())
        groups.append(RolloutGroup(Prompt(f"p{g}", "", "exact", "bench", text="x"), prompt, rollouts, float(size)))
    return groups


def make_model(shape: str, folder: str) -> None:
    """Write a Qwen3 policy of this shape with random weights as a Hugging Face folder."""
    hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def plain_loop(folder: str, train: TrainConfig, dtype: str, device: str) -> Callable[[TrainingRows], dict[str, float]]:
    """Return the update one would write by hand: rows sorted by length and padded; one process, no FSDP."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.to(device).train()
    if train.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)

    def update(rows: TrainingRows) -> dict[str, float]:
        ends = np.cumsum(rows.lengths)
        order = np.argsort(-rows.lengths)
        filled = padded = 0
        while len(order):
            width = int(rows.lengths[order[0]])
            count = max(1, train.microbatch_tokens // width)
            picked, order = order[:count], order[count:]
            tokens = torch.zeros(len(picked), width, dtype=torch.int64)
            mask = torch.zeros(len(picked), width - 1, dtype=torch.bool)
            for b, r in enumerate(picked):
                tokens[b, : rows.lengths[r]] = torch.from_numpy(rows.tokens[ends[r] - rows.lengths[r] : ends[r]])
                mask[b, rows.prompt_lengths[r] - 1 : rows.lengths[r] - 1] = True
            tokens, mask = tokens.to(device), mask.to(device)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[mask]
            logprobs = torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, 1:][mask][:, None])[:, 0]
            repeats = torch.from_numpy(rows.response_lengths[picked])
            advantages = torch.from_numpy(rows.advantages[picked]).repeat_interleave(repeats).to(device)
            weights = torch.from_numpy(rows.weights[picked]).float().repeat_interleave(repeats).to(device)
            ratio = torch.exp(logprobs - logprobs.detach())
            objective = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
            (-(objective * weights).sum()).backward()
            filled += int((rows.lengths[picked] - 1).sum())
            padded += len(picked) * (width - 1)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {TRAIN_PADDING_RATIO: 1 - filled / padded, TRAIN_GRAD_NORM: norm.item()}

    return update


def products_alone(
    folder: str, train: TrainConfig, dtype: str, device: str
) -> Callable[[TrainingRows], dict[str, float]]:
    """Return an "update" that does nothing but the matrix products of the packed learner's linear layers.

    One forward and two backward, of random numbers, in the sizes of its micro-batches; the output layer is computed where
    a token is predicted. Nothing that computes a policy gradient with these layers can be faster.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.to(device)
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]

    @cache
    def random(tokens: int, features: int) -> Tensor:
        return torch.randn(tokens, features, device=device, dtype=head.weight.dtype)

    @torch.no_grad()
    def update(rows: TrainingRows) -> dict[str, float]:
        split = split_ranks(rows, np.arange(len(rows)), train.microbatch_tokens, 1, packed=True)
        for batch in (collate(rows, indices, True) for indices in split[0]):
            for layer in layers:
                tokens = len(batch.keep) if layer is head else batch.filled
                inputs, gradients = random(tokens, layer.in_features), random(tokens, layer.out_features)
                torch.mm(inputs, layer.weight.T)
                torch.mm(gradients, layer.weight)
                torch.mm(gradients.T, inputs)
        return {TRAIN_PADDING_RATIO: 0.0, TRAIN_GRAD_NORM: float("nan")}

    return update


def _process(rank: int, job: dict[str, Any], answers: Any) -> None:
    train, ranks, device = job["train"], job["ranks"], job["device"]
    started = time.monotonic()
    if job["alone"] is not None:
        update = job["alone"](job["folder"], train, job["dtype"], device)
    else:
        address = ("127.0.0.1", job["port"])
        learner = Learner(rank, ranks, *address, job["folder"], train, job["dtype"], 100, 0, device)
        update = learner.update
    loaded_s = time.monotonic() - started
    times, cpu, metrics = [], [], {}
    for rows in job["rows"]:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        metrics = update(rows)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - begun_cpu)
    cuda = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    peak = cuda or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answers.put((rank, {"times": times, "cpu": cpu, "metrics": metrics, "peak_gib": peak / 2**30, "load_s": loaded_s}))
    if job["alone"] is None:
        learner.shutdown()


def measure(job: dict[str, Any], warm: int = 2) -> dict[str, float]:
    """Run a job in processes of its own and return medians over the steps after the first `warm` ones.

    Peak memory is that of the rank that needed most.
    """
    spawn = multiprocessing.get_context("spawn")
    job["port"] = free_port()
    answers = spawn.Queue()
    ranks = [spawn.Process(target=_process, args=(rank, job, answers)) for rank in range(job["ranks"])]
    for process in ranks:
        process.start()
    try:
        found = dict(answers.get(timeout=1800) for _ in ranks)
    finally:
        for process in ranks:
            process.join(60)
            process.kill()
    times = found[0]["times"]
    step_s = [tokens / t for tokens, t in zip((rows.lengths.sum() for rows in job["rows"]), times, strict=True)]
    metrics = found[0]["metrics"]
    return {
        "tokens_per_s": float(np.median(step_s[warm:])),
        "step_s": float(np.median(times[warm:])),
        # Of rank 0; depends less on what else runs than the wall time does.
        "cpu_s": float(np.median(found[0]["cpu"][warm:])),
        "first_step_s": times[0],
        "load_s": found[0]["load_s"],
        "peak_memory_gib": max(each["peak_gib"] for each in found.values()),
        "padding_ratio": metrics[TRAIN_PADDING_RATIO],
        "attention_padding_ratio": metrics.get(TRAIN_ATTENTION_PADDING_RATIO, float("nan")),
        "computed_tokens": metrics.get(TRAIN_COMPUTED_TOKENS, float("nan")),
        "grad_norm": metrics[TRAIN_GRAD_NORM],
    }


def compare(name: str, steps: int, ranks: list[int], train: TrainConfig, device: str, dtype: str) -> dict[str, Any]:
    """Compare the plain loop, matrix products, padded learner, and packed learner on each number of ranks, on the same rows."""
    load = WORKLOADS[name]
    train = replace(train, microbatch_tokens=load.microbatch_tokens)
    rows = [step_rows(make_groups(load, seed), train) for seed in range(steps + 2)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(load.shape, folder)
        job = {"folder": folder, "rows": rows, "dtype": dtype, "device": device, "alone": None, "ranks": 1}
        found = {"plain torch loop": measure(job | {"train": train, "alone": plain_loop})}
        found[PRODUCTS] = measure(job | {"train": train, "alone": products_alone})
        found["learner, padded"] = measure(job | {"train": replace(train, packing=False)})
        for count in ranks:
            label = f"learner, packed, {count} rank{'s' if count > 1 else ''}"
            found[label] = measure(job | {"train": train, "ranks": count})
    plain_s, products_s = found["plain torch loop"]["step_s"], found[PRODUCTS]["step_s"]
    return {
        label: values | {"speedup": plain_s / values["step_s"], "products": values["step_s"] / products_s}
        for label, values in found.items()
    }


def flops(shape: str, rows: TrainingRows) -> float:
    """Count the floating-point operations of the model on these rows, forward and backward.

    6 for each weight of a matrix product and token, and attention's 6 T^2 H D a layer (causal); recomputation and the
    embeddings' lookup are not counted.
    """
    hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary = SHAPES[shape]
    layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * intermediate
    tokens = rows.lengths - 1
    dense = 6 * (layers * layer * tokens.sum() + hidden * vocabulary * rows.response_lengths.sum())
    return float(dense + 6 * layers * heads * head_dim * (tokens.astype(float) ** 2).sum())


def utilisation(shape: str, tokens: int, steps: int, train: TrainConfig) -> dict[str, Any]:
    """Measure model FLOPs utilisation on one CUDA device in bf16, on pairs of rollouts with prompts of 64 tokens."""
    # The last token is not computed, so `tokens` are.
    response = (tokens - 63, tokens - 63)
    load = Workload(shape, 8, 16, (64, 64), response, 1e6, train.microbatch_tokens)
    rows = [step_rows(make_groups(load, seed), train) for seed in range(steps + 2)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(shape, folder)
        job = {"folder": folder, "rows": rows, "dtype": "bfloat16", "device": "cuda", "alone": None, "ranks": 1}
        found = measure(job | {"train": train})
    device = torch.cuda.get_device_name()
    peak = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in device), float("nan"))
    achieved = flops(shape, rows[-1]) / found["step_s"] / 1e12
    return found | {"device": device, "tflops": achieved, "peak_tflops": peak, "mfu": achieved / peak}


def environment() -> None:
    """Set the environment of the learner's actors for all measured processes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ |= {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
