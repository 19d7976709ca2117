"""Checks of a configuration beyond its types.

`problems` checks single keys (ranges, choices), then keys against each other; each problem names its keys. Pure: opens no file.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kray import plan_modes as plan_rules
from kray import reward_settings as reward_rules
from kray.config.actor_options import option_problems
from kray.config.adapters import adapters_impossible
from kray.config.engine_options import counted_problems
from kray.config.export import flat
from kray.config.players import player_problems
from kray.config.prompts_schema import SourceConfig
from kray.config.ranges import FIXED, RANGES, WEIGHT, number_problem
from kray.config.reading import attribute
from kray.config.redaction import HIDDEN, is_secret_key
from kray.config.rounding import rounding_problems
from kray.config.schema import KrayConfig
from kray.config.sync_buckets import bucket_problems
from kray.config.templates import check_template
from kray.config.train_schema import aggregation_of
from kray.config.turns import turn_problems
from kray.errors import ConfigError

# Kinds of prompt sources.
PROMPT_KINDS = (
    "arithmetic",
    "questions",
    "programs",
    "passages",
    "jsonl",
    "parquet",
    "huggingface",
    "reasoning_gym",
    "nim",
    "seeds",
    "verifiers",
)

# Key -> its allowed values.
CHOICES: dict[str, tuple[str, ...]] = {
    "plan.mode": plan_rules.MODES,
    "plan.unit": plan_rules.UNITS,
    "plan.value": ("auto", *plan_rules.VALUES),
    "plan.gain": plan_rules.GAINS,
    "plan.marginal": plan_rules.MARGINALS,
    "plan.weights": plan_rules.WEIGHTS,
    "plan.prior_by": ("kind", "source", "all"),
    "prompts.train.kind": PROMPT_KINDS,
    "prompts.test.kind": PROMPT_KINDS,
    "prompts.train.prompt_format": ("auto", "text", "json"),
    "prompts.test.prompt_format": ("auto", "text", "json"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "rollout.lora": ("merged", "adapter"),
    "train.loss": ("grpo", "dr_grpo", "dapo", "gspo", "cispo"),
    "train.baseline": ("auto", "group", "belief", "batch"),
    "train.advantage": ("auto", "std", "mean"),
    "train.lr_schedule": ("constant", "linear", "cosine"),
    "train.offload": ("none", "optimizer", "all"),
    "train.aggregation": ("auto", "token_mean", "sequence_mean", "prompt_mean", "constant"),
    "train.moments": ("float32", "bfloat16"),
    "train.lr_scaling": ("none", "sqrt", "linear"),
    "track.log_model": ("", "log", "register"),
}

# Built-in environments; pkg.module:Class is allowed as well.
ENVIRONMENTS = (
    "calculator",
    "tools",
    "nim",
    "solver_checker",
    "textarena",
    "textarena_players",
    "skyrl_gym",
    "gem",
    "openenv",
    "verifiers",
)

# Arguments of apply_chat_template that are not variables of a chat template.
NO_VARIABLES = (
    "conversation",
    "messages",
    "chat_template",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
)

# Characters that MLflow forbids in the name of a model.
NOT_IN_MODELS = "/:.%\"'"

# Timeout of the code verifier in seconds, where reward.options.timeout_s is not given.
CODE_TIMEOUT_S = 6.0


@dataclass(frozen=True)
class Problem:
    """A problem of a configuration, with the dotted keys whose change can solve it."""

    keys: tuple[str, ...]
    message: str


def check(config: KrayConfig) -> list[str]:
    """Return all problems as sentences; empty when the configuration can be run."""
    return [problem.message for problem in problems(config)]


def require(config: KrayConfig) -> None:
    """Raise ConfigError with all problems, one on each line, if there are any."""
    found = check(config)
    if found:
        raise ConfigError("\n".join(found))


def problems(config: KrayConfig) -> list[Problem]:
    """Return the problems of single keys; only if there are none, those of keys against each other."""
    single = list(_single(config))
    return single or [
        *_run(config),
        *_model(config),
        *_prompts(config),
        *_environment(config),
        *_plan(config),
        *_train(config),
        *_track(config),
        *_resources(config),
        *(Problem(keys, text) for keys, text in turn_problems(config)),
        *(Problem(keys, text) for keys, text in bucket_problems(config)),
        *_hidden(dataclasses.asdict(config), ""),
        *_dotted(config),
    ]


def value_at(config: KrayConfig, key: str) -> Any:
    """Return the value of a dotted key; None under a section that is None."""
    value: Any = config
    for part in key.split("."):
        value = None if value is None else getattr(value, attribute(part))
    return value


def _single(config: KrayConfig) -> Iterator[Problem]:
    for key in RANGES:
        value = value_at(config, key)
        if value is not None and (text := number_problem(key, value)):
            yield Problem((key,), text)
    for key, (only, reason) in FIXED.items():
        if value_at(config, key) != only:
            yield Problem((key,), f"{key} must stay {only} in training, not {value_at(config, key)}: {reason}")
    for key, choices in CHOICES.items():
        value = value_at(config, key)
        if value not in choices:
            known = ", ".join(choice or '""' for choice in choices)
            yield Problem((key,), f"{key} must be one of {known}, not {value!r}{_near(value, choices)}")


def _near(value: str, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(value, choices, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _run(config: KrayConfig) -> Iterator[Problem]:
    name = config.run.name
    if not name.strip() or "/" in name or "\0" in name or name in (".", ".."):
        yield Problem(("run.name",), f"run.name is part of a folder's name and cannot be {name!r}")
    if not os.path.isabs(os.path.expanduser(config.run.dir)):
        reason = "a job's working directory goes away with the cluster"
        yield Problem(("run.dir",), f"run.dir must be absolute or begin with ~, not {config.run.dir!r}: {reason}")


def _track(config: KrayConfig) -> Iterator[Problem]:
    name = config.track.model_name
    if name and not name.strip():
        yield Problem(("track.model_name",), f"track.model_name {name!r} is blank")
    if bad := sorted(set(name) & set(NOT_IN_MODELS)):
        text = f"track.model_name {name!r} holds {' '.join(bad)}, which MLflow forbids in the name of a model"
        yield Problem(("track.model_name",), text)


def _model(config: KrayConfig) -> Iterator[Problem]:
    model, tiny = config.model, config.model.tiny
    keys = ("model.path", "model.tiny")
    if not model.path and tiny is None:
        yield Problem(
            keys,
            "no model: set model.path (a folder, hub id or package) or a section model.tiny",
        )
    if model.path and tiny is not None:
        yield Problem(keys, f"two models: model.path {model.path!r} and model.tiny; empty one (model.tiny=null)")
    if tiny is not None and tiny.hidden_size % (2 * tiny.heads):
        keys = ("model.tiny.hidden_size", "model.tiny.heads")
        rule = "must be a multiple of twice model.tiny.heads"
        yield Problem(keys, f"model.tiny.hidden_size {tiny.hidden_size} {rule} {tiny.heads} (heads have an even width)")
    if tiny is not None and tiny.heads % tiny.kv_heads:
        keys = ("model.tiny.heads", "model.tiny.kv_heads")
        yield Problem(keys, f"model.tiny.heads {tiny.heads} must be a multiple of model.tiny.kv_heads {tiny.kv_heads}")


def _prompts(config: KrayConfig) -> Iterator[Problem]:
    yield from _source("prompts.train", config.prompts.train)
    yield from _source("prompts.test", config.prompts.test)
    own_s = config.reward.options.get("timeout_s", CODE_TIMEOUT_S)
    if config.reward.verifier == "code" and isinstance(own_s, int | float) and own_s >= config.reward.timeout_s:
        text = f"reward.options.timeout_s {own_s:g} (of the code verifier) must be below reward.timeout_s"
        yield Problem(("reward.options.timeout_s", "reward.timeout_s"), f"{text} {config.reward.timeout_s:g}")
    sources = {f"prompts.{part}.verifier": getattr(config.prompts, part).verifier for part in ("train", "test")}
    wrong = reward_rules.contradictions(config.reward, sources)
    yield from (Problem(keys, text) for keys, text in wrong)
    if not wrong:
        yield from (Problem((key,), text) for key, text in _reward_numbers(config.reward))


def _reward_numbers(reward: reward_rules.RewardConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, message) of numbers out of range in mappings of the section, in which nothing else is wrong."""
    judges: dict[str, Mapping[str, Any]] = {"reward.judge": {"range": reward.judge.range}}
    if reward.verifier == reward_rules.JUDGE:
        judges["reward.options"] = reward.options
    sizes: list[tuple[str, float]] = []
    for name, function in reward_rules.reward_functions(reward.functions).items():
        place = f"reward.functions.{name}"
        low, high = function.range or (0.0, 1.0)
        sizes += [(f"{place}.weight", function.weight), *((f"{place}.range", each) for each in (low, high, high - low))]
        if function.verifier == reward_rules.JUDGE:
            judges[f"{place}.options"] = function.options
    for place, given in judges.items():
        for key, value in given.items():
            if key == "range":
                sizes += [(f"{place}.range", each) for each in (*value, value[-1] - value[0])]
            elif f"reward.judge.{key}" in RANGES and (
                text := number_problem(f"reward.judge.{key}", value, f"{place}.{key}")
            ):
                yield f"{place}.{key}", text
    for key, size in sizes:
        if text := WEIGHT.problem(abs(size)):
            yield key, f"{key}: the size of its numbers must be {text}, not {size}"


def _is_path(name: str) -> bool:
    """Return whether the name has the form pkg.module:name."""
    module, colon, function = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), function])


def _environment(config: KrayConfig) -> Iterator[Problem]:
    name = config.environment.name
    if name and name not in ENVIRONMENTS and not _is_path(name):
        known = f"{', '.join(ENVIRONMENTS)} or pkg.module:Class"
        yield Problem(
            ("environment.name",), f"environment.name must be one of {known}, not {name!r}{_near(name, ENVIRONMENTS)}"
        )
    yield from (Problem((key,), message) for key, message in player_problems(config.environment))


def _source(key: str, source: SourceConfig) -> Iterator[Problem]:
    if source.kind in ("jsonl", "parquet", "huggingface", "verifiers") and not source.path:
        yield Problem((f"{key}.path", f"{key}.kind"), f"{key}.path is empty: {key}.kind {source.kind} reads from it")
    if source.kind == "reasoning_gym" and not source.tasks:
        yield Problem((f"{key}.tasks",), f"{key}.tasks is empty: {key}.kind reasoning_gym needs at least one task name")
    generated = source.kind in ("arithmetic", "questions", "programs", "passages", "nim")
    if generated and source.split not in ("train", "test"):
        yield Problem((f"{key}.split",), f"{key}.split must be train or test for {source.kind}, not {source.split!r}")
    for name in source.chat_template_kwargs:
        if name in NO_VARIABLES:
            text = f"{key}.chat_template_kwargs.{name} is set by kray; only variables of the chat template can be given"
            yield Problem((f"{key}.chat_template_kwargs.{name}", f"{key}.chat_template_kwargs"), text)
    if source.chat_template_kwargs and not source.chat:
        text = f"{key}.chat_template_kwargs are variables of the chat template, which {key}.chat false does not apply"
        yield Problem((f"{key}.chat_template_kwargs", f"{key}.chat"), text)
    if source.template:
        try:
            check_template(source.template, "prompt")
        except ValueError as error:
            yield Problem((f"{key}.template",), f"{key}.template {error}")


def _plan(config: KrayConfig) -> Iterator[Problem]:
    plan, per_step = config.plan, config.prompts.per_step
    wrong = plan_rules.contradictions(plan)
    for names, text in wrong:
        yield Problem(tuple(f"plan.{name}" for name in names), text)
    keys = ("plan.budget", "plan.lower", "plan.upper", "prompts.per_step")
    share = plan_rules.offered_share(plan)
    # prompts that may fall due in one step
    offered = plan_rules.due_of_all(per_step) if plan.candidates == 0 else round(share * per_step)
    if wrong or plan.unit == "tokens":
        pass
    elif plan.budget < plan.lower * per_step:
        least = f"plan.lower {plan.lower} x prompts.per_step {per_step} = {plan.lower * per_step}"
        yield Problem((keys[0], keys[1], keys[3]), f"plan.budget {plan.budget} is below {least} rollouts")
    elif share > 1 and plan_rules.due_must_fit(plan) and plan.budget < max(2, plan.lower) * offered:
        least = f"plan.lower {plan.lower} x plan.candidates {plan.candidates} x prompts.per_step {per_step}"
        text = f"plan.budget {plan.budget} is below {least}: all candidates of a step may fall due at once; lower one"
        yield Problem((*keys[:2], "plan.candidates", keys[3]), text)
    elif plan.budget > plan.upper * per_step:
        most = f"plan.upper {plan.upper} x prompts.per_step {per_step} = {plan.upper * per_step}"
        yield Problem((keys[0], keys[2], keys[3]), f"plan.budget {plan.budget} is above {most} rollouts")
    if config.train.updates > per_step:
        text = f"train.updates {config.train.updates} is above prompts.per_step {per_step}: an update needs a prompt"
        yield Problem(("train.updates", "prompts.per_step"), text)


def _train(config: KrayConfig) -> Iterator[Problem]:
    train = config.train
    if aggregation_of(train) == "constant" and train.constant_tokens < 1:
        keys = ("train.constant_tokens", "train.aggregation", "train.loss")
        usual = f"set train.constant_tokens, usually rollout.max_response_tokens {config.rollout.max_response_tokens}"
        yield Problem(keys, f"the aggregation constant (that of loss dr_grpo) divides by a length: {usual}")
    if config.plan.value == "baseline" and train.baseline == "group":
        text = "plan.value baseline may give a prompt one rollout, which has no gradient with train.baseline group: use belief"
        yield Problem(("train.baseline", "plan.value"), text)
    if config.plan.adapt and train.baseline == "batch":
        text = "plan.adapt goes by how rewards differ from the baseline of their prompt: train.baseline must be belief or group"
        yield Problem(("plan.adapt", "train.baseline"), text)
    if config.async_.max_staleness and not train.tis:
        text = f"async.max_staleness {config.async_.max_staleness} trains on older rollouts: set train.tis, usually 2"
        yield Problem(("train.tis", "async.max_staleness"), text)
    if train.ranks % train.replicas:
        text = f"train.ranks {train.ranks} cannot be divided evenly among train.replicas {train.replicas}"
        yield Problem(("train.replicas", "train.ranks"), text)
    if train.ranks % train.context_parallel:
        text = f"train.ranks {train.ranks} is not a multiple of train.context_parallel {train.context_parallel}"
        yield Problem(("train.context_parallel", "train.ranks"), text)
    if train.context_parallel > 1 and not train.packing:
        text = f"train.context_parallel {train.context_parallel} divides packed micro-batches alone: set train.packing to true"
        yield Problem(("train.context_parallel", "train.packing"), text)
    if train.context_parallel > 1 and train.compile:
        text = (
            f"train.context_parallel {train.context_parallel} has not been tested with train.compile: set that to false"
        )
        yield Problem(("train.context_parallel", "train.compile"), text)
    if train.activation_offload and not train.activation_checkpointing:
        text = "train.activation_offload moves what train.activation_checkpointing keeps: set that, too"
        yield Problem(("train.activation_offload", "train.activation_checkpointing"), text)
    if config.model.lora is not None and not config.model.lora.targets:
        yield Problem(("model.lora.targets",), "model.lora.targets is empty: name linear layers, or [all-linear]")
    if config.rollout.lora == "adapter" and config.model.lora is None:
        yield Problem(("rollout.lora", "model.lora"), "rollout.lora adapter: there are none, model.lora is null")
    elif config.rollout.lora == "adapter" and (reason := adapters_impossible(config)):
        yield Problem(("rollout.lora",), f"rollout.lora adapter: {reason}; set rollout.lora to merged")


def _resources(config: KrayConfig) -> Iterator[Problem]:
    rollout = config.rollout
    needed = config.prompts.max_tokens + rollout.max_response_tokens
    if 0 < rollout.max_context_tokens < needed:
        keys = ("rollout.max_context_tokens", "prompts.max_tokens", "rollout.max_response_tokens")
        parts = f"{keys[1]} {config.prompts.max_tokens} + {keys[2]} {rollout.max_response_tokens} = {needed}"
        yield Problem(keys, f"{keys[0]} {rollout.max_context_tokens} is below {parts}")
    if rollout.min_engines is not None and rollout.min_engines > rollout.engines:
        text = f"rollout.min_engines {rollout.min_engines} is above rollout.engines {rollout.engines}"
        yield Problem(("rollout.min_engines", "rollout.engines"), text)
    if rollout.spare and rollout.gpus_per_engine:
        text = (
            "rollout.spare prepares engines on CPU alone: an engine on GPUs gets them from Ray when its process starts"
        )
        yield Problem(("rollout.spare", "rollout.gpus_per_engine"), text)
    yield from (Problem((key,), text) for key, text in option_problems(config.run.env, rollout.vllm))
    yield from (Problem((key,), text) for key, text in rounding_problems(rollout.vllm, rollout.gpus_per_engine))
    context = rollout.max_context_tokens or needed
    yield from (Problem((key,), text) for key, text in counted_problems(rollout, context))


def _dotted(config: KrayConfig) -> Iterator[Problem]:
    try:
        flat(config)
    except ConfigError as error:
        yield Problem((), str(error))


def _hidden(value: Any, key: str) -> Iterator[Problem]:
    """Yield keys with *** in place of a secret, as `to_yaml` writes those that no environment variable holds."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _hidden(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and (f":{HIDDEN}@" in value or (value == HIDDEN and is_secret_key(key))):
        text = f"{key} holds {HIDDEN}, where a secret was taken out: give it again, best as ${{oc.env:NAME}}"
        yield Problem((key,), text)
