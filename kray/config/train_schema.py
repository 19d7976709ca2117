"""The sections `train` and `async` of a configuration; see kray/config/schema.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrainConfig:
    """The learner and its update."""

    ranks: int = 1
    """Learner ranks. Each is a Ray actor; model and optimizer are sharded over them with FSDP2."""

    replicas: int = 1
    """Copies of the sharded model and optimizer (HSDP): `ranks / replicas` ranks share one, and gradients are exchanged between
    copies once for each optimizer step. With as many ranks a copy as GPUs a node, layers are gathered within nodes; a rank
    then holds `replicas` times as much as with 1. Divides `ranks`."""

    context_parallel: int = 1
    """Ranks that compute one micro-batch together, each a part of its tokens (context parallelism by all-to-all over heads,
    arXiv 2309.14509): memory of activations and logits is divided by it, also within one long rollout. Divides `ranks` and the
    model's attention heads; needs `packing` and a model that can be packed."""

    cpus_per_rank: int = 1
    """CPU cores of a rank."""

    threads_per_rank: int = 0
    """Threads with which a rank computes on CPU; 0 and -1 as in `rollout.threads_per_engine`."""

    gpus_per_rank: int = 0
    """GPUs of a rank: 0 (CPU) or 1."""

    lr: float = 1e-6
    """Learning rate of AdamW."""

    lr_warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0, at each optimizer step."""

    lr_schedule: str = "constant"
    """Course of the learning rate after the warm-up, set anew for each optimizer step: constant, or linear or cosine down to
    `lr_final` at run.steps. A run that is resumed with another number of steps follows the schedule of the new number."""

    lr_final: float = 0.0
    """Learning rate at the end of the schedules linear and cosine, as a share of `lr`."""

    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""

    beta1: float = 0.9
    """AdamW's decay of the first moment."""

    beta2: float = 0.999
    """AdamW's decay of the second moment."""

    eps: float = 1e-8
    """AdamW's epsilon."""

    moments: str = "float32"
    """How AdamW's two moments are kept: float32, or bfloat16, which takes 4 bytes a trained parameter instead of 8. bfloat16
    values are rounded at random without bias, each within 2^-7 of its size."""

    grad_clip: float = 1.0
    """Largest global gradient norm. 0: no clipping."""

    loss: str = "dapo"
    """grpo (arXiv 2402.03300), dr_grpo (2503.20783) or dapo (2503.14476): PPO's clip with the advantage and aggregation of the
    paper. gspo (2507.18071): clips the ratio of whole rollouts; its paper's clips are 3e-4 and 4e-4. cispo (2506.13585): bounds
    the weight of each token, and no token loses its gradient; its paper bounds it from above alone, which is clip_low 1."""

    clip_low: float = 0.2
    """Ratios below 1 - clip_low are clipped."""

    clip_high: float = 0.28
    """Ratios above 1 + clip_high are clipped."""

    baseline: str = "auto"
    """What a rollout's reward is compared with. group: the mean of its prompt's rollouts in this step (GRPO); a group whose
    rewards are all equal has no gradient, so it takes at least two. belief: the success rate that the planner expected before
    the step, corrected by the prompt's other rollouts of the step; every rollout has a gradient, and one for each prompt is
    enough. batch: the mean of all rollouts of the step (REINFORCE). belief counts rewards as the planner does, cut to
    [0, 1]. auto: belief in plan.mode static, online and rounds, unless another key of `plan` is about groups (value, marginal,
    target_groups); else group."""

    advantage_floor: float = 0.1
    """Smallest standard deviation by which advantages are divided, where `baseline` is belief or batch and `advantage` is std:
    with it a success that was expected with probability .001 has an advantage of 10 and not of 32."""

    advantage: str = "auto"
    """std: divided by the standard deviation of the group's rewards (`baseline: group`), of a reward as the belief expects it
    (belief) or of the step's rewards (batch). mean: not divided. auto: as in the paper of the loss."""

    aggregation: str = "auto"
    """How rollouts are averaged: token_mean, sequence_mean, prompt_mean, constant (Dr. GRPO: divided by `constant_tokens`) or
    auto (as in the paper of the loss). In all but prompt_mean a group of N rollouts counts N times. prompt_mean removes that
    factor only: the expected gradient of a group still grows with N, as E[sqrt(k/N (1 - k/N))] with `advantage: std` (at
    success rate 1/2: .25 for N = 2, .49 for 32) and as p (1 - p) (N - 1) / N with `advantage: mean`. The planner's weights
    multiply whatever is chosen here; a group of weight 0 is in no sum and no denominator."""

    constant_tokens: int = 0
    """Denominator of `aggregation: constant`, in tokens; usually `rollout.max_response_tokens`."""

    advantage_clip: float = 0.0
    """Largest size of an advantage. 0: no bound. The only success among N rollouts has sqrt(N - 1)."""

    tis: float | None = None
    """Upper bound of the truncated importance weight between engine and learner; 2 is usual. 0: no such weight. null: 2 where
    engines compute with 8-bit numbers (`rollout.vllm` with quantization or kv_cache_dtype), else 0."""

    kl: float = 0.0
    """Coefficient of the KL divergence from the start model, on the rollouts that have an advantage. 0: no such term."""

    lr_scaling: str = "none"
    """none, sqrt or linear: multiply the learning rate by the share of groups with a gradient, to the power 0, 1/2 or 1. Adam
    undoes the size of gradients, so that without it a step with few informative prompts moves the policy as far as any other,
    with more noise."""

    max_nonfinite: int = 5
    """Steps in a row whose gradient is not finite, each of them skipped, before the run stops. 0: no limit."""

    updates: int = 1
    """Optimizer steps of one pass over a step's rollouts. Groups are divided evenly among them."""

    epochs: int = 1
    """Passes over the rollouts of a step. From the second optimizer step on, the policy is no longer the one that sampled, and
    PPO's clip bounds the probability ratio between the two. With several `updates`, each pass takes them in another order."""

    max_kl: float = 0.0
    """KL divergence (k3 estimate, nats a token) from the policy before the step above which no further optimizer step is made
    on the step's rollouts. 0: no such limit."""

    thin: float = 1.0
    """Share of the rollouts with an advantage that are trained on. Below 1 they are drawn with a probability in proportion to
    the size of their gradient (at most 1) and weighted by its inverse: the gradient stays without bias, and an update costs
    less. The size is estimated by the advantage and by how unlikely the sampled tokens were: rollouts whose reward was
    expected, and those of which the policy was certain, are the ones that are left out."""

    microbatch_tokens: int = 16384
    """Tokens of one forward pass, padding included, on one rank or on `context_parallel` ranks together. A longer rollout is a
    forward pass of its own."""

    packing: bool = True
    """Put sequences one behind the other without padding and compute a group's prompt once. Models that cannot be packed are
    padded anyway."""

    reduce_each_microbatch: bool | None = None
    """Reduce gradients after each micro-batch, on several ranks: less memory, because no rank holds a whole gradient (4 bytes
    a trained parameter), and more communication. null: above 4 GiB of whole gradients, and with `offload: all`."""

    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    offload: str = "none"
    """What of a rank's state is kept in main memory instead of on its GPU. optimizer: AdamW's moments, which are brought to the
    GPU a part at a time. all: parameters and gradients, too; a layer is on the GPU while it is used, and AdamW runs on the
    CPU. Less memory, more time; the update is the same."""
    activation_offload: bool = False
    """Keep the inputs of decoder layers, all that `activation_checkpointing` keeps of them, in main memory until the backward
    pass. Needs `activation_checkpointing`; the gradient is the same."""

    compile: bool = False
    """Compile the decoder layers with torch.compile."""

    timeout_s: float = 1800.0
    """Deadline for one update in seconds."""

    max_restarts: int = 3
    """Restarts of the learner after a rank was lost or did not answer. All ranks start again; see `run.max_restarts`."""


# Keys of `train` with which learner ranks are built; the others may change between two runs on the same ranks.
BUILT_WITH = (
    "ranks",
    "replicas",
    "context_parallel",
    "cpus_per_rank",
    "threads_per_rank",
    "gpus_per_rank",
    "kl",
    "packing",
    "activation_checkpointing",
    "offload",
    "activation_offload",
    "compile",
    "timeout_s",
)

# Upper bound of truncated importance weights where they are on by default.
TIS_CAP = 2.0

# Bytes of a whole float32 gradient above which ranks reduce it after each micro-batch by default.
WHOLE_GRADIENT_BYTES = 4 * 2**30

# Bytes of moments that train.offload optimizer brings to the device at once; a larger parameter is a part of its own.
OFFLOAD_PART_BYTES = 2**28

# The advantage and the aggregation of each loss's paper.
PAPERS = {
    "grpo": ("std", "sequence_mean"),
    "dr_grpo": ("mean", "constant"),
    "dapo": ("std", "token_mean"),
    "gspo": ("std", "sequence_mean"),
    "cispo": ("std", "token_mean"),
}


def advantage_of(train: TrainConfig) -> str:
    """Return the advantage in use: std or mean."""
    return PAPERS[train.loss][0] if train.advantage == "auto" else train.advantage


def aggregation_of(train: TrainConfig) -> str:
    """Return the aggregation in use: token_mean, sequence_mean, prompt_mean or constant."""
    return PAPERS[train.loss][1] if train.aggregation == "auto" else train.aggregation


def reduces_each_microbatch(train: TrainConfig, trained: int) -> bool:
    """Return whether gradients are reduced after each micro-batch.

    Args:
        train: The section `train`.
        trained: Number of parameters that are trained.
    """
    if train.reduce_each_microbatch is not None:
        return train.reduce_each_microbatch
    # Gradients leave the device when they are reduced.
    return train.offload == "all" or (train.ranks > 1 and 4 * trained > WHOLE_GRADIENT_BYTES)


@dataclass
class AsyncConfig:
    """Overlap of generation and learning. Policy version s, the policy after s updates, learns from step s."""

    max_staleness: int = 0
    """0: strictly on-policy; engines wait while the learner updates. n: generation runs up to n steps ahead of the learner,
    engines take new weights without losing the rollouts they are generating, and no token is older than n versions when it is
    learned from. Above 0 it needs `train.tis`, which corrects for the difference."""
