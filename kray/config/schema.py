"""Every key of a configuration, its default, its unit and what it is for.

A file gives any subset; `a.b=c` on the command line overrides it. A key that is not here is an error. A field whose name
would be a word of Python's own carries a trailing underscore here and none in files: `async_` is the section `async`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kray.plan_modes import PlanConfig


@dataclass
class RunConfig:
    name: str = "run"  # results go to <dir>/<name>-<time>
    dir: str = "~/kray-runs"  # an absolute place outside the job's temporary working directory
    seed: int = 0
    steps: int = 100  # one step: plan, generate, reward, update, sync
    checkpoint_every: int = 20  # steps; 0: only at the end and when stopped
    keep_checkpoints: int = 2
    max_failed_share: float = 0.2  # of a step's rollouts that may be lost to data failures before the run stops
    # Infrastructure failures are tried again from the newest checkpoint: so often within restart_window_s (0: in the whole
    # run), at once after some progress, else after 2, 4, ... 60 s.
    max_restarts: int = 5  # of the driver; the job starts another one
    restart_window_s: float = 86400.0  # also of train.max_restarts
    max_failed_saves: int = 3  # in a row (a full disk) before the run stops; until then the checkpoint before stays


@dataclass
class TinyPolicyConfig:
    """A small Qwen3 policy, made and warmed up by supervised learning; cached, so it happens once."""

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 512
    tie_embeddings: bool = True
    warmup_steps: int = 600
    clean_share: float = 2 / 3  # of them, at the beginning, with right answers: first the ability, then the slips
    kinds: list[str] = field(default_factory=list)  # of arithmetic that are practised; empty: all
    # false: the teacher errs by kind; true: it has a habit of its own for each kind and first character, so that what is
    # learned about one prompt helps few others (kray/prompts/arithmetic.py)
    habits: bool = False
    # reasoning_gym tasks to learn in place of arithmetic, as prompts.train.tasks has them; their teacher has habits
    tasks: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 192  # sequences
    lr: float = 2e-3
    seed: int = 0
    tool_share: float = 0.0  # of the warm-up's answers that come from a call of the calculator (environment.name)


@dataclass
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685); engines get them merged into the weights."""

    rank: int = 16
    alpha: float = 32.0  # the adapters' product is scaled by alpha / rank
    targets: list[str] = field(default_factory=lambda: ["all-linear"])  # or names: [q_proj, v_proj]


@dataclass
class ModelConfig:
    path: str = ""  # a Hugging Face folder or hub id; empty when `tiny` is given
    dtype: str = "float32"  # float32 | bfloat16: of the engines' weights and the learner's compute (its master is fp32)
    lora: LoraConfig | None = None  # {} for its defaults; null: all weights are trained
    tiny: TinyPolicyConfig | None = None


@dataclass
class SourceConfig:
    """Where prompts come from."""

    kind: str = "arithmetic"  # arithmetic | jsonl | parquet | huggingface | reasoning_gym
    path: str = ""  # file, folder or glob (jsonl, parquet); dataset id or folder (huggingface)
    subset: str = ""  # huggingface configuration name
    split: str = "train"  # huggingface split; arithmetic: train | test are disjoint
    prompt_field: str = "prompt"  # text or a list of chat messages; dots reach into nested fields
    # How text in that field is read. auto: as the prompt, but JSON of a list of chat messages as those messages, and what may
    # or may not be meant as JSON is refused; text: as the prompt, whatever it holds; json: all of it is JSON
    prompt_format: str = "auto"
    answer_field: str = "answer"
    id_field: str = ""  # empty: <source>:<row>
    kind_field: str = ""  # what kind of problem a row is: its subject or level; see plan.prior_by
    system: str = ""  # system message put before a text prompt when a chat template is used
    template: str = ""  # wraps a text prompt: "{prompt}\nPut the final answer in \\boxed{{}}."
    chat: bool = True  # apply the tokenizer's chat template when it has one
    # variables of that template, such as enable_thinking: false; the policy reads all prompts of this source with them
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    special_tokens: bool = (
        False  # whether "<|im_end|>" and such in a prompt's text are tokens; else they are read as text
    )
    verifier: str = ""  # empty: reward.verifier (reasoning_gym sources use their own)
    limit: int = 0  # prompts; 0: all
    # rows that repeat the prompt and the answer of an earlier row are prompts of their own; else they are left out, and the
    # first row stays, whatever their ids
    keep_repeats: bool = False
    size: int = 1024  # prompts to generate (arithmetic, reasoning_gym)
    seed: int = 0  # of the generators
    # reasoning_gym: task name -> its options, or a label of your own -> {task: name, and its options}, so that one task can
    # come in several difficulties; arithmetic: kind -> nothing (all kinds without). Mixed evenly.
    tasks: dict[str, Any] = field(default_factory=dict)


@dataclass
class PromptsConfig:
    per_step: int = 64  # prompts a step; times plan.candidates are offered, and all of these may be visited
    max_tokens: int = 1024  # longer prompts are dropped, counted and reported
    shuffle: bool = True  # a new order each epoch, from run.seed
    # Failures in a row (engine crashes and time-outs, visits in which no rollout could be judged in time) after which a
    # prompt is left out for the rest of the run; its budget goes to the others. 0: never.
    quarantine_after: int = 3
    train: SourceConfig = field(default_factory=SourceConfig)
    test: SourceConfig = field(default_factory=lambda: SourceConfig(split="test", size=256))
    # more test sets: name -> the keys in which it differs from prompts.test. Each has an accuracy of its own.
    more_tests: dict[str, Any] = field(default_factory=dict)


@dataclass
class RolloutConfig:
    engines: int = 1  # at most; each is asked of Ray as an actor, so a cluster's autoscaler adds nodes for it
    min_engines: int | None = None  # at least, 0 allowed; null: always `engines`
    idle_s: float = 60.0  # an engine above min_engines is stopped when it was not needed for so long
    cpus_per_engine: int = 1
    gpus_per_engine: int = 0  # 0 (CPU) or 1; no tensor parallelism yet
    max_response_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0  # must stay 1 in training: logprobs would not be the sampled distribution's
    top_k: int = 0  # must stay 0 in training
    max_sequences: int = 256  # that one engine generates at a time
    max_context_tokens: int = 0  # 0: prompts.max_tokens + max_response_tokens
    kv_cache_gib: float = 1.0  # per engine on CPU
    gpu_memory_share: float = 0.85  # of a GPU that an engine may take
    eager: bool = True  # skip compilation and graph capture: starts faster, right for small models
    split: int = 32  # rollouts of one prompt that travel as one task
    task_timeout_s: float = 600.0
    start_timeout_s: float = 600.0
    sync_timeout_s: float = 300.0
    max_attempts: int = 3  # at one task, over engine deaths and time-outs
    max_restarts: int = 5  # of one engine in a run
    probe_tolerance: float = 0.0  # nats between engine and learner on the probe; 0: 1e-3 in float32, 0.1 in bfloat16


@dataclass
class RewardConfig:
    verifier: str = "exact"  # math | exact | code | reasoning_gym | pkg.module:function
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the verifier
    workers: int = 1  # processes
    timeout_s: float = 10.0  # for one answer; over it the reward is 0 and the process is replaced
    memory_gib: float = 4.0  # of one process; over it the verifier gets a MemoryError; 0: no limit
    # A reward service (jobs/serve.py rewards) that judges in place of processes beside the driver; its own settings are
    # then those of workers, timeout_s and memory_gib. Empty: none.
    url: str = ""
    key_env: str = "KRAY_API_KEY"  # environment variable, of the driver, that holds the service's key; unset: no key
    deadline_s: float = 300.0  # for the service's answer, attempts together; over it the answers are data failures


@dataclass
class EnvironmentConfig:
    """What answers the policy, so that a rollout is a conversation of several turns; off while it has no name."""

    name: str = ""  # calculator | tools | pkg.module:Class
    max_turns: int = 4  # times that the policy speaks; all its tokens and the answers share rollout.max_response_tokens
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the class
    step_timeout_s: float = 10.0  # for one answer; over it the conversation is a data failure, the process is replaced
    workers: int = 1  # processes


@dataclass
class TrainConfig:
    ranks: int = 1  # FSDP2 learner actors
    cpus_per_rank: int = 1
    gpus_per_rank: int = 0
    lr: float = 1e-6
    lr_warmup_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    grad_clip: float = 1.0  # of the global norm; 0: off
    # grpo (arXiv 2402.03300), dr_grpo (2503.20783), dapo (2503.14476): PPO's clip with the paper's advantage and
    # aggregation | gspo (2507.18071): clips the ratio of whole rollouts; its paper's clips are 3e-4 and 4e-4 |
    # cispo (2506.13585): bounds each token's weight, and no token loses its gradient; its paper bounds it from above
    # alone, which is clip_low 1
    loss: str = "dapo"
    clip_low: float = 0.2
    clip_high: float = 0.28
    advantage: str = "auto"  # std: divided by the group's std | mean: not | auto: as in the loss's paper
    # How rollouts are averaged: token_mean | sequence_mean | prompt_mean | constant (Dr.GRPO: by constant_tokens) | auto:
    # as in the loss's paper. In all but prompt_mean a group of N rollouts counts N times. prompt_mean takes that factor
    # out and no more: a group's expected gradient still grows with N, as E[sqrt(k/N (1 - k/N))] with advantage std (at
    # success rate 1/2: .25 for N = 2, .49 for 32) and as p (1 - p) (N - 1) / N with advantage mean. The planner's
    # explicit weights multiply whatever is chosen here; a group of weight 0 is in no sum and no denominator.
    aggregation: str = "auto"
    constant_tokens: int = 0  # of aggregation constant; usually rollout.max_response_tokens
    advantage_clip: float = (
        0.0  # bound of an advantage's size; 0: off. The one success among N rollouts has sqrt(N - 1)
    )
    tis: float = 0.0  # cap of the truncated importance weight between engine and learner (2 is usual); 0: off
    kl: float = 0.0  # coefficient of the KL to the start model, on the rollouts that carry an advantage; 0: off
    # Learning rate by how much a step has to teach: none | sqrt | linear: lr times (groups with a gradient / groups)
    # to that power. Adam undoes the size of gradients, so a step with few informative prompts is otherwise as long, and
    # noisier.
    lr_scaling: str = "none"
    max_nonfinite: int = (
        5  # steps in a row whose gradient is not finite, each left out, before the run stops; 0: no limit
    )
    updates: int = 1  # optimizer steps a step; groups are split evenly over them
    microbatch_tokens: int = 16384  # tokens of one forward pass on one rank, padding included
    packing: bool = True  # no padding, shared prompts computed once; models that cannot be packed are padded anyway
    reduce_each_microbatch: bool = False  # on several ranks: less memory (no whole gradient), more communication
    activation_checkpointing: bool = False
    compile: bool = False  # torch.compile of the decoder layers
    timeout_s: float = 1800.0  # for one update
    max_restarts: int = 3  # of the learner when a rank dies or hangs; all ranks start anew; see run.max_restarts


# Keys of `train` that learner ranks are built with; the others may change between two runs on the same ranks.
BUILT_WITH = (
    "ranks",
    "cpus_per_rank",
    "gpus_per_rank",
    "kl",
    "packing",
    "activation_checkpointing",
    "compile",
    "timeout_s",
)

# What a loss's paper pairs it with: (advantage, aggregation).
PAPERS = {
    "grpo": ("std", "sequence_mean"),
    "dr_grpo": ("mean", "constant"),
    "dapo": ("std", "token_mean"),
    "gspo": ("std", "sequence_mean"),
    "cispo": ("std", "token_mean"),
}


def advantage_of(train: TrainConfig) -> str:
    """std | mean."""
    return PAPERS[train.loss][0] if train.advantage == "auto" else train.advantage


def aggregation_of(train: TrainConfig) -> str:
    """token_mean | sequence_mean | prompt_mean | constant."""
    return PAPERS[train.loss][1] if train.aggregation == "auto" else train.aggregation


@dataclass
class AsyncConfig:
    """Overlap of generation and learning. Step s is learned from by policy version s, the policy after s updates."""

    # 0: strictly on-policy, engines wait while the learner updates. n: generation runs up to n steps ahead of the learner,
    # engines take new weights without losing the rollouts they are at, and no token is older than n versions when it is
    # learned from; needs train.tis, which corrects for it.
    max_staleness: int = 0


@dataclass
class EvaluateConfig:
    every: int = 20  # steps; 0: only before and after
    samples: int = 4  # sampled responses for each test prompt
    temperature: float = 1.0
    greedy: bool = True  # also one greedy response each


@dataclass
class TrackConfig:
    uri: str = ""  # empty: MLFLOW_TRACKING_URI, else sqlite in the run folder
    experiment: str = "kray"
    every: int = 10  # steps between tables of rollouts and figures
    samples: int = 16  # rollouts in a table
    traces: int = 2  # rollouts of such a step that become MLflow traces, with their reward; 0: none
    system_metrics: bool = True
    log_model: str = ""  # log | register: the trained policy goes to MLflow at the end of the run; empty: it does not
    model_name: str = ""  # of that model; empty: run.name


@dataclass
class KrayConfig:
    resume: str = ""  # a run folder, a checkpoint folder, or auto: the newest run of this name
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    async_: AsyncConfig = field(default_factory=AsyncConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
