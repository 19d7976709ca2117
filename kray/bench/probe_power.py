"""What the probe of an engine detects in bfloat16, and how often it ends a good engine. Used by jobs/bench_probe.py.

A simulation on one model. Learner and engines compute in float32 and round to bfloat16 after every linear layer, norm,
activation and sum. The learner rounds to the nearest number; every engine rounds in a way of its own, up or down at random
in proportion to what is cut off, and in the same way whatever its weights are, as a library with other kernels does. That
is more than real engines differ by: they round in fewer places and in most as the learner does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kray.weight_sync.tolerance import TOLERANCE, Calibration, mean_gap

State = dict[str, Tensor]
# Random numbers from which roundings are drawn: a power of two that fits into caches.
TABLE = 2**20
# Bits of float32 that bfloat16 lacks.
CUT = 2**16
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Rollouts whose policy gradient gives the direction of a step, and their tokens.
ROLLOUTS, ROLLOUT_TOKENS = 8, 24
# Of the adapters that are not merged.
LORA_RANK, LORA_SCALE = 16, 2.0
HEADING = """| lr | fault | effect, nats | gap, nats | engines ended | by the fixed tolerance |
|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a fault.

    Attributes:
        lr: Learning rate of the step that the fault leaves out; 0 where there is none.
        fault: What is wrong with the engine.
        effect: Mean absolute change of the probe's logprobs by the fault, as the learner computes it, nats.
        gap: Mean over the engines of what is compared with the limit, nats.
        engines: How many were tried.
        ended: How many of them were ended.
        ended_fixed: How many a fixed tolerance would end.
    """

    lr: float
    fault: str
    effect: float
    gap: float
    engines: int
    ended: int
    ended_fixed: int


class Rounding:
    """Rounds float32 tensors to bfloat16; a model calls it after each operation."""

    def __init__(self) -> None:
        numbers = torch.Generator().manual_seed(0)
        self._noise = torch.randint(CUT, (2 * TABLE,), generator=numbers, dtype=torch.int32)
        self._places = np.random.default_rng(0)
        self._nearest = True

    def begin(self, engine: int | None) -> None:
        """Round from now on as the engine of this number does; None: as the learner."""
        self._nearest, self._places = engine is None, np.random.default_rng(engine)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the rounded tensor."""
        if self._nearest:
            return values.to(torch.bfloat16).float()
        bits = values.contiguous().view(torch.int32).reshape(-1)
        rounded = torch.empty_like(bits)
        for first in range(0, len(bits), TABLE):
            part, place = bits[first : first + TABLE], int(self._places.integers(TABLE))
            torch.add(part, self._noise[place : place + len(part)], out=rounded[first : first + TABLE])
        return (rounded & -CUT).view(torch.float32).reshape(values.shape)


class Policy:
    """A causal model that computes in simulated bfloat16; its output layer is a tensor of its own."""

    def __init__(self, path: str):
        """Load a Hugging Face folder."""
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        self.model.eval()
        self.tied = self.model.config.tie_word_embeddings
        if self.tied:
            self.model.lm_head.weight = nn.Parameter(self.model.lm_head.weight.detach().clone())
        self.rounding = Rounding()
        self.parameters: State = dict(self.model.named_parameters())
        self.start: State = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        for name, module in self.model.named_modules():
            kind = type(module).__name__
            if isinstance(module, nn.Linear) or "Norm" in kind or kind.startswith(("SiLU", "GELU")):
                module.register_forward_hook(lambda _, __, output: self.rounding(output))
            if "Norm" in kind and not name.endswith(("q_norm", "k_norm")):
                # The sum of the residual stream.
                module.register_forward_pre_hook(lambda _, inputs: (self.rounding(inputs[0]),))
        self.load(self.start)

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Use these weights, rounded to bfloat16."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name].to(torch.bfloat16))

    @torch.no_grad()
    def logprobs(self, tokens: Sequence[int], engine: int | None = None, rows: int = 1) -> np.ndarray:
        """Return (rows, P - 1) logprobs of tokens[1:], each row by an engine of its own unless it is the learner."""
        self.rounding.begin(engine)
        batch = torch.tensor([list(tokens)] * rows)
        logits = self.model(batch, use_cache=False).logits[:, :-1]
        chosen = logits.gather(2, batch[:, 1:, None])[..., 0]
        return (chosen - logits.logsumexp(-1)).double().numpy()

    @torch.no_grad()
    def sample(self, prompt: Sequence[int], count: int, seed: int) -> list[int]:
        """Return the prompt and so many sampled tokens."""
        self.rounding.begin(None)
        drawn, tokens = torch.Generator().manual_seed(seed), list(prompt)
        for _ in range(count):
            probabilities = self.model(torch.tensor([tokens]), use_cache=False).logits[0, -1].softmax(-1)
            tokens.append(int(torch.multinomial(probabilities, 1, generator=drawn)))
        return tokens

    def gradient(self, prompt: Sequence[int]) -> State:
        """Return a policy gradient at the start weights."""
        rollouts = [self.sample(prompt, ROLLOUT_TOKENS, 1 + i) for i in range(ROLLOUTS)]
        self.rounding.begin(None)
        for i, rollout in enumerate(rollouts):
            tokens = torch.tensor(rollout)
            logprobs = self.model(tokens[None], use_cache=False).logits[0, :-1].log_softmax(-1)
            chosen = logprobs.gather(1, tokens[1:, None])[len(prompt) - 1 :]
            ((-1) ** i * chosen.mean()).backward()
        found: State = {name: parameter.grad for name, parameter in self.parameters.items()}  # type: ignore[misc]
        if self.tied:
            found[HEAD] = found[EMBEDDING] = found[HEAD] + found[EMBEDDING]
        return found


def faults(policy: Policy, gradient: State, lr: float) -> Iterator[tuple[str, State, State]]:
    """Yield (fault, weights of the learner, weights of the engine) after a step of Adam, which moves each weight by lr."""
    start = policy.start
    new = {name: start[name] - lr * gradient[name].sign() for name in start}
    names = list(start)
    layer = policy.model.config.num_hidden_layers // 2
    sizes = np.cumsum([start[name].numel() for name in names]) / sum(tensor.numel() for tensor in start.values())
    bucket = [name for name, end in zip(names, sizes, strict=True) if 0.5 < end <= 0.625]

    def stale(chosen: Sequence[str]) -> State:
        return new | {name: start[name] for name in chosen}

    yield "none", new, new
    yield "all tensors stale", new, start
    yield "an eighth of the tensors stale", new, stale(bucket)
    for part in ("mlp.down_proj", "self_attn.q_proj"):
        yield f"one {part} stale", new, stale([f"model.layers.{layer}.{part}.weight"])
    yield "output layer stale", new, stale([HEAD])


def swapped(policy: Policy) -> tuple[str, State, State]:
    """Return the fault of two neighbouring layers that have each other's weights."""
    middle = policy.model.config.num_hidden_layers // 2
    one, other = f"model.layers.{middle}.", f"model.layers.{middle - 1}."
    moved = {name: policy.start[name.replace(one, other)] for name in policy.start if name.startswith(one)}
    moved |= {name: policy.start[name.replace(other, one)] for name in policy.start if name.startswith(other)}
    return "two layers swapped", policy.start, policy.start | moved


def unmerged(policy: Policy, gradient: State, lr: float) -> tuple[str, State, State]:
    """Return the fault of adapters that are not merged, after a step of Adam, which moves lora_B by lr."""
    drawn, merged = torch.Generator().manual_seed(0), dict(policy.start)
    for name, weight in policy.start.items():
        if name.endswith("_proj.weight"):
            width = weight.shape[1]
            a = (2 * torch.rand(LORA_RANK, width, generator=drawn) - 1) * (3 / width) ** 0.5 / 3**0.5
            merged[name] = weight - LORA_SCALE * lr * (gradient[name] @ a.T).sign() @ a
    return "adapters not merged", merged, policy.start


class Trial:
    """Simulated engines, calibrated with the start model, that are given weights."""

    def __init__(self, policy: Policy, probe: Sequence[int], engines: int, rows: int):
        """Calibrate them.

        Args:
            policy: The policy.
            probe: (P,) token ids.
            engines: How many, each with its own rounding.
            rows: Engines that are computed at once.
        """
        self.policy, self.probe, self.rows = policy, probe, rows
        policy.load(policy.start)
        learner = policy.logprobs(probe)[0]
        self.calibrations = [Calibration.of(engine, learner) for engine in self._engines(policy.start, engines)]

    def _engines(self, state: State, engines: int) -> Iterator[np.ndarray]:
        self.policy.load(state)
        for first in range(0, engines, self.rows):
            # A whole batch: an engine's roundings depend on its place in it.
            yield from self.policy.logprobs(self.probe, first, self.rows)[: engines - first]

    def row(self, lr: float, fault: str, right: State, wrong: State, engines: int) -> Row:
        """Give so many engines weights that may be wrong."""
        self.policy.load(right)
        expected = self.policy.logprobs(self.probe)[0]
        self.policy.load(wrong)
        effect = mean_gap(self.policy.logprobs(self.probe)[0], expected)
        gaps = [mean_gap(engine, expected) for engine in self._engines(wrong, engines)]
        pairs = zip(self.calibrations[:engines], gaps, strict=True)
        ended = [not gap <= calibration.limit("bfloat16", expected) for calibration, gap in pairs]
        fixed = [not gap <= TOLERANCE["bfloat16"] for gap in gaps]
        return Row(lr, fault, effect, float(np.mean(gaps)), engines, int(sum(ended)), int(sum(fixed)))


def run(path: str, text: str, tokens: int, lrs: Sequence[float], counts: tuple[int, int, int]) -> Iterator[str | Row]:
    """Measure false alarms and faults.

    Args:
        path: Hugging Face folder of the model.
        text: The prompt of the probe.
        tokens: P, of the probe.
        lrs: Learning rates of the one step that a fault leaves out.
        counts: Engines in all, engines for each fault, engines that are computed at once.

    Yields:
        Lines of a Markdown table, and the rows in it.
    """
    engines, fault_engines, rows = counts
    policy = Policy(path)
    prompt = prompt_tokens(path, text)[-(tokens // 2) :]
    probe = policy.sample(prompt, tokens - len(prompt), 0)
    vocabulary = policy.model.config.vocab_size
    random = [*prompt, *np.random.default_rng(0).integers(vocabulary, size=tokens - len(prompt)).tolist()]
    for name, kind in (("random tokens", random), ("the policy's own", probe)):
        gaps = np.array([calibration.gap for calibration in Trial(policy, kind, fault_engines, rows).calibrations])
        spread = f"{gaps.mean():.4f} nats, {np.quantile(gaps, 0.99):.4f} at most in 99 of 100"
        yield f"own rounding of {len(gaps)} engines, second half of the probe {name}: {spread}"
    gradient = policy.gradient(prompt)
    trial = Trial(policy, probe, engines, rows)
    yield HEADING
    for row in _rows(trial, gradient, lrs, (engines, fault_engines)):
        yield row
        where = f"{row.lr:.0e}" if row.lr else "none"
        shares = f"{row.ended} of {row.engines} | {row.ended_fixed} of {row.engines}"
        yield f"| {where} | {row.fault} | {row.effect:.4f} | {row.gap:.4f} | {shares} |"


def _rows(trial: Trial, gradient: State, lrs: Sequence[float], counts: tuple[int, int]) -> Iterator[Row]:
    engines, fault_engines = counts
    policy = trial.policy
    yield trial.row(0.0, *swapped(policy), fault_engines)
    for lr in lrs:
        for fault, right, wrong in faults(policy, gradient, lr):
            yield trial.row(lr, fault, right, wrong, engines if right is wrong else fault_engines)
        yield trial.row(lr, *unmerged(policy, gradient, lr), fault_engines)


def prompt_tokens(path: str, text: str) -> list[int]:
    """Return a prompt as the model reads it."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    if not tokenizer.chat_template:
        return list(tokenizer(text)["input_ids"])
    messages = [{"role": "user", "content": text}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
