"""Declarations of every metric that kray writes, with unit and meaning, which all other code uses by reference.

MLflow's x axis is the training step. Times are wall-clock seconds of the driver. MLflow's own system/* metrics (every 5 s,
of the driver's machine) come on top. docs/reference/metrics.md is generated from these declarations.
"""

from __future__ import annotations

from typing import Any, Literal

PrometheusKind = Literal["gauge", "counter", "sum"]


class Metric(str):
    """Name of a metric, with its description as attributes. Pickled and written, it is its name alone.

    Attributes:
        unit: "s", "tokens", "ratio", ...; "1" for numbers without one.
        meaning: one phrase for the reference page.
        prometheus: the name under which Ray's Prometheus endpoint shows its newest value, "" where it does not.
        prometheus_kind: gauge; counter: the metric itself counts up; sum: the values of the steps are added up.
    """

    unit: str
    meaning: str
    prometheus: str
    prometheus_kind: PrometheusKind

    def __new__(
        cls,
        name: str,
        unit: str,
        meaning: str,
        prometheus: str = "",
        prometheus_kind: PrometheusKind = "gauge",
    ) -> Metric:
        """Make a metric; the arguments are its name and its attributes."""
        made = super().__new__(cls, name)
        made.unit, made.meaning, made.prometheus, made.prometheus_kind = unit, meaning, prometheus, prometheus_kind
        return made

    @property
    def described(self) -> str:
        """Name, meaning and unit in one line."""
        return f"{self}: {self.meaning} ({self.unit})"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class MetricFamily:
    """Metrics that differ in one part of their name, such as eval/pass_at_<k>."""

    def __init__(self, pattern: str, unit: str, meaning: str):
        self.pattern, self.unit, self.meaning = pattern, unit, meaning
        self._prefix, _, rest = pattern.partition("<")
        self._suffix = rest.partition(">")[2]

    def of(self, key: object) -> Metric:
        """Return the family's metric for `key`."""
        return Metric(f"{self._prefix}{key}{self._suffix}", self.unit, self.meaning)

    def has(self, name: str) -> bool:
        """Return whether the metric of this name belongs to the family."""
        return name.startswith(self._prefix) and name.endswith(self._suffix)


METRICS: dict[str, Metric | MetricFamily] = {}


def _metric(name: str, unit: str, meaning: str, **exported: Any) -> Metric:
    made = METRICS[name] = Metric(name, unit, meaning, **exported)
    return made


def _family(pattern: str, unit: str, meaning: str) -> MetricFamily:
    made = METRICS[pattern] = MetricFamily(pattern, unit, meaning)
    return made


TRAIN_LOSS = _metric(
    "train/loss", "nats", "policy loss of the step, mean over its optimizer steps", prometheus="kray_loss_nats"
)
TRAIN_GRAD_NORM = _metric("train/grad_norm", "1", "global gradient norm before clipping", prometheus="kray_grad_norm")
TRAIN_LR = _metric("train/lr", "1", "learning rate of the last optimizer step")
TRAIN_ENTROPY = _metric(
    "train/entropy",
    "nats",
    "mean entropy of the policy's next-token distribution over response tokens",
    prometheus="kray_entropy_nats",
)
TRAIN_CLIP_RATIO = _metric("train/clip_ratio", "ratio", "response tokens whose probability ratio was clipped")
TRAIN_LOGPROB_GAP_MEAN = _metric(
    "train/logprob_gap_mean",
    "nats",
    "mean |learner - engine| logprob of the sampled tokens before the update",
    prometheus="kray_logprob_gap_nats",
)
TRAIN_LOGPROB_GAP_MAX = _metric(
    "train/logprob_gap_max", "nats", "largest |learner - engine| logprob of a sampled token"
)
TRAIN_LOGPROB_KL = _metric("train/logprob_kl", "nats", "estimated KL from the engines' to the learner's distribution")
TRAIN_PADDING_RATIO = _metric("train/padding_ratio", "ratio", "padding among the tokens that the learner computed on")
TRAIN_KL = _metric("train/kl", "nats", "estimated KL from the policy before the step's first optimizer step")
TRAIN_REFERENCE_KL = _metric("train/reference_kl", "nats", "estimated KL from the start model, where train.kl is set")
TRAIN_TIS_RATIO = _metric(
    "train/tis_ratio", "ratio", "response tokens whose importance weight was truncated, where train.tis is set"
)
TRAIN_ADVANTAGE_MAX = _metric("train/advantage_max", "1", "largest advantage in the step")
TRAIN_ADVANTAGE_CUT_GROUPS = _metric(
    "train/advantage_cut_groups", "groups", "groups in which train.advantage_clip cut an advantage"
)
TRAIN_COMPUTED_TOKENS = _metric(
    "train/computed_tokens", "tokens", "tokens that went through the model, padding included, shared prompts once"
)
TRAIN_ATTENTION_PADDING_RATIO = _metric(
    "train/attention_padding_ratio", "ratio", "places of the packed attention that hold no key"
)
TRAIN_TOKENS = _metric("train/tokens", "tokens", "response tokens trained on: those of mixed groups")
TRAIN_ROWS = _metric("train/rows", "rollouts", "rollouts trained on")
TRAIN_GROUPS_RATIO = _metric("train/groups_ratio", "ratio", "groups that were trained on")
TRAIN_OPTIMIZER_STEPS = _metric("train/optimizer_steps", "count", "optimizer steps done in the step")
TRAIN_NONFINITE = _metric(
    "train/nonfinite",
    "count",
    "optimizer steps skipped because the gradient was not finite",
    prometheus="kray_nonfinite_updates_total",
    prometheus_kind="sum",
)
TRAIN_SKIPPED = _metric(
    "train/skipped",
    "0 or 1",
    "1 if the step did no optimizer step: no group was mixed, or no gradient finite",
    prometheus="kray_skipped_updates_total",
    prometheus_kind="sum",
)
TRAIN_UPDATE_S = _metric("train/update_s", "s", "the update as the learner's rank 0 saw it")
TRAIN_PEAK_MEMORY_GIB = _metric(
    "train/peak_memory_gib", "GiB", "peak memory of the largest learner rank: the GPU's, or resident without one"
)
REWARD_MEAN = _metric("reward/mean", "reward", "mean over the step's rollouts", prometheus="kray_reward_mean")
REWARD_STD = _metric("reward/std", "reward", "standard deviation over the step's rollouts")
REWARD_FAILED = _metric(
    "reward/failed",
    "rollouts",
    "rollouts lost to data failures",
    prometheus="kray_failed_rollouts_total",
    prometheus_kind="sum",
)
FRAC_REWARD_ZERO_STD = _metric("frac_reward_zero_std", "ratio", "groups whose rewards are all equal")
COMPLETIONS_MEAN_LENGTH = _metric(
    "completions/mean_length",
    "tokens",
    "mean response length; of a conversation, what the policy wrote",
    prometheus="kray_response_tokens_mean",
)
COMPLETIONS_MAX_LENGTH = _metric("completions/max_length", "tokens", "longest response")
COMPLETIONS_CLIPPED_RATIO = _metric(
    "completions/clipped_ratio", "ratio", "responses cut at the length limit", prometheus="kray_response_clipped_ratio"
)
ENVIRONMENT_TURNS_MEAN = _metric(
    "environment/turns_mean", "turns", "mean turns of the policy in a conversation, where environment.name is set"
)
ENVIRONMENT_TURNS_MAX = _metric("environment/turns_max", "turns", "most turns of a conversation")
ENVIRONMENT_MULTI_TURN_RATIO = _metric(
    "environment/multi_turn_ratio", "ratio", "conversations of more than one turn: for tools, those with a call"
)
ENVIRONMENT_TOKENS_RATIO = _metric(
    "environment/tokens_ratio", "ratio", "tokens of conversations that the environment wrote, which carry no loss"
)
ENVIRONMENT_FAILED = _metric(
    "environment/failed", "rollouts", "conversations lost to an environment that raised, hung or died"
)
BUDGET_MIN = _metric("budget/min", "rollouts", "smallest budget of a prompt in the step")
BUDGET_P50 = _metric("budget/p50", "rollouts", "median budget")
BUDGET_P99 = _metric("budget/p99", "rollouts", "99th percentile of the budgets")
BUDGET_MAX = _metric("budget/max", "rollouts", "largest budget", prometheus="kray_budget_max_rollouts")
BUDGET_SHARE = _family(
    "budget/share_<status>",
    "ratio",
    "rollouts given to prompts that were never_solved, hard (<= .2), medium, easy (>= .8), always_solved at their last "
    "visit, or unlabelled",
)
GROUP_EFFECTIVE_RATIO_ROLLOUTS = _metric(
    "group/effective_ratio_rollouts",
    "ratio",
    "rollouts that belong to a group with mixed rewards",
    prometheus="kray_effective_rollouts_ratio",
)
GROUP_EFFECTIVE_RATIO_PROMPTS = _metric(
    "group/effective_ratio_prompts",
    "ratio",
    "prompts whose group has mixed rewards",
    prometheus="kray_effective_prompts_ratio",
)
PLANNER_VALUE_PLANNED = _metric(
    "planner/value_planned",
    "value",
    "sum over prompts of the expected Value(N, p) of their budget",
    prometheus="kray_planner_value_planned",
)
PLANNER_VALUE_REALISED = _metric(
    "planner/value_realised",
    "value",
    "sum over mixed groups of p (1 - p)^2 at the success rate seen in the step",
    prometheus="kray_planner_value_realised",
)
PLANNER_BRIER = _metric(
    "planner/brier",
    "1",
    "mean squared error of the beliefs' success rate over the step's rollouts",
    prometheus="kray_planner_brier",
)
PLANNER_EPOCH_BRIER = _metric("planner/epoch_brier", "1", "planner/brier over the epoch that ended with the step")
PLANNER_EPOCH_CALIBRATION_ERROR = _metric(
    "planner/epoch_calibration_error", "ratio", "mean |predicted - observed| success rate over the epoch's rollouts"
)
PLANNER_PREDICTED = _family(
    "planner/predicted_<k>", "ratio", "mean predicted success rate over the epoch's rollouts in the k-th tenth"
)
PLANNER_OBSERVED = _family("planner/observed_<k>", "ratio", "observed success rate of the same rollouts")
PLANNER_ADMITTED = _metric("planner/admitted", "prompts", "prompts that got rollouts")
PLANNER_LOST = _metric("planner/lost", "rollouts", "rollouts that failed for good, as the plan counts them")
PLANNER_UNSPENT_RATIO = _metric("planner/unspent_ratio", "ratio", "of the step's budget, by expected cost")
PLANNER_MIXED = _metric("planner/mixed", "groups", "groups with different rewards")
PROMPTS_WAITING = _metric("prompts/waiting", "prompts", "candidates that wait to be admitted (plan.candidates > 1)")
PROMPTS_LONGEST_WAIT = _metric(
    "prompts/longest_wait", "steps", "from a prompt's first offer to its visit, longest so far"
)
PROMPTS_LONGEST_GAP = _metric("prompts/longest_gap", "steps", "between two visits of a prompt, longest so far")
PROMPTS_QUARANTINED = _metric(
    "prompts/quarantined", "prompts", "left out because nothing came back of them, over the run so far"
)
POOL_PROBE_GAP = _metric(
    "pool/probe_gap",
    "nats",
    "largest mean |engine - learner| logprob of the probe when the new weights were proved",
    prometheus="kray_probe_gap_nats",
)
POOL_ENGINES = _metric("pool/engines", "engines", "engines that served the step", prometheus="kray_engines")
POOL_RESTARTS = _metric(
    "pool/restarts",
    "count",
    "engine restarts so far in this start of the run",
    prometheus="kray_engine_restarts_total",
    prometheus_kind="counter",
)
POOL_PREEMPTIONS = _metric(
    "pool/preemptions",
    "count",
    "engines lost to preempted nodes so far in this start of the run",
    prometheus="kray_engine_preemptions_total",
    prometheus_kind="counter",
)
POOL_RETRIES = _metric(
    "pool/retries",
    "tasks",
    "rollout tasks given to another engine so far in this start of the run",
    prometheus="kray_task_retries_total",
    prometheus_kind="counter",
)
LEARNER_RESTARTS = _metric(
    "learner/restarts", "count", "times that the learner was started anew so far in this start of the run"
)
DRIVER_RESTARTS = _metric("driver/restarts", "count", "times that the driver was started anew so far by this job")
CHECKPOINT_FAILED = _metric(
    "checkpoint/failed", "count", "checkpoints that could not be written so far in this start of the run"
)
STALENESS_MEAN = _metric(
    "staleness/mean",
    "versions",
    "mean over response tokens: versions between the policy that sampled and the one that learned",
    prometheus="kray_staleness_mean_versions",
)
STALENESS_MAX = _metric(
    "staleness/max",
    "versions",
    "of the oldest token that was learned from; at most async.max_staleness",
    prometheus="kray_staleness_max_versions",
)
STALENESS_MIXED_RATIO = _metric("staleness/mixed_ratio", "ratio", "rollouts during which the engine took new weights")
STALENESS_DROPPED_GROUPS = _metric(
    "staleness/dropped_groups",
    "groups",
    "left out because a token was older than async.max_staleness allows",
    prometheus="kray_dropped_groups_total",
    prometheus_kind="sum",
)
TIMING_S_PLAN = _metric("timing_s/plan", "s", "planning")
TIMING_S_GENERATE = _metric("timing_s/generate", "s", "generation, first task out to last rollout in")
TIMING_S_REWARD = _metric("timing_s/reward", "s", "waiting for rewards after the last rollout")
TIMING_S_WAIT = _metric("timing_s/wait", "s", "the learner waiting for the step's groups")
TIMING_S_UPDATE = _metric("timing_s/update", "s", "the learner's update")
TIMING_S_SYNC = _metric("timing_s/sync", "s", "sending weights to the engines and proving them")
TIMING_S_EVALUATE = _metric("timing_s/evaluate", "s", "evaluation")
TIMING_S_EXACT = _metric(
    "timing_s/exact", "s", "computing exact success rates, which are no part of a method (jobs/compare.py)"
)
TIMING_S_CHECKPOINT = _metric(
    "timing_s/checkpoint", "s", "that training stood still to save a checkpoint; it is written in the background"
)
TIMING_S_IDLE = _metric("timing_s/idle", "s", "time of the step in which an engine did not generate, mean over engines")
TIMING_S_STEP = _metric("timing_s/step", "s", "the whole step")
PROGRESS_ROLLOUTS = _metric(
    "progress/rollouts",
    "rollouts",
    "rollouts since the run began",
    prometheus="kray_rollouts_total",
    prometheus_kind="counter",
)
PROGRESS_TOKENS = _metric(
    "progress/tokens",
    "tokens",
    "response tokens since the run began",
    prometheus="kray_tokens_total",
    prometheus_kind="counter",
)
PROGRESS_EPOCH = _metric(
    "progress/epoch", "epochs", "visits of prompts so far / training prompts", prometheus="kray_epoch"
)
THROUGHPUT_ROLLOUTS_PER_S = _metric(
    "throughput/rollouts_per_s", "rollouts/s", "of the whole step", prometheus="kray_rollouts_per_second"
)
THROUGHPUT_TOKENS_PER_S = _metric(
    "throughput/tokens_per_s", "tokens/s", "response tokens, of the whole step", prometheus="kray_tokens_per_second"
)
EVAL_ACCURACY = _metric(
    "eval/accuracy",
    "ratio",
    "mean success of sampled responses to the test prompts; of graded rewards, their mean",
    prometheus="kray_accuracy",
)
EVAL_ACCURACY_OF_SET = _family(
    "eval/accuracy_<set>", "ratio", "of one test set, where `prompts.more_tests` names several"
)
EVAL_SET_MEAN_ACCURACY = _metric("eval/set_mean_accuracy", "ratio", "mean of the test sets' accuracies")
EVAL_GREEDY_ACCURACY = _metric(
    "eval/greedy_accuracy",
    "ratio",
    "success of one greedy response to each test prompt",
    prometheus="kray_greedy_accuracy",
)
EVAL_EXACT_ACCURACY = _metric(
    "eval/exact_accuracy",
    "ratio",
    "mean probability of the right answer to a test prompt, from log-probabilities (jobs/compare.py, unique answers)",
)
EVAL_ACCURACY_SE = _metric("eval/accuracy_se", "ratio", "standard error of eval/accuracy over prompts")
EVAL_PASS_AT = _family(
    "eval/pass_at_<k>", "ratio", "probability that one of k sampled responses solves a test prompt, without bias"
)
EVAL_MEAN_LENGTH = _metric("eval/mean_length", "tokens", "mean length of sampled responses")
EVAL_TURNS_MEAN = _metric(
    "eval/turns_mean", "turns", "mean turns of sampled conversations, where environment.name is set"
)
EVAL_MULTI_TURN_RATIO = _metric("eval/multi_turn_ratio", "ratio", "sampled conversations of more than one turn")
EVAL_FAILED = _metric("eval/failed", "responses", "lost to data failures")
MEMORY_DRIVER_GIB = _metric(
    "memory/driver_gib", "GiB", "peak resident memory of the driver process", prometheus="kray_driver_memory_gib"
)
TRACKING_NONFINITE = _metric("tracking/nonfinite", "count", "metrics of the step that were not finite and are left out")


# What a step's time is divided into; those of one step add up to about timing_s/step.
STEP_PARTS = ("plan", "generate", "reward", "update", "sync")


def declared(group: str, name: str) -> Metric:
    """Return the metric <group>/<name>; KeyError where none is declared."""
    found = METRICS[f"{group}/{name}"]
    assert isinstance(found, Metric)
    return found


def timing(part: str) -> Metric:
    """Return the metric of a part's seconds, such as timing_s/generate."""
    return declared("timing_s", part)


# Metrics that the console's line of a step shows.
STEP_LINE = {REWARD_MEAN, BUDGET_MIN, BUDGET_MAX, GROUP_EFFECTIVE_RATIO_PROMPTS}
STEP_LINE |= {THROUGHPUT_ROLLOUTS_PER_S, THROUGHPUT_TOKENS_PER_S}
STEP_LINE |= {TIMING_S_STEP, *(timing(part) for part in STEP_PARTS)}

# Metrics that the status view (`jobs/status.py`) shows.
STATUS_VIEW = {BUDGET_MIN, BUDGET_P50, BUDGET_P99, BUDGET_MAX, EVAL_ACCURACY, REWARD_MEAN, STALENESS_MEAN}
STATUS_VIEW |= {GROUP_EFFECTIVE_RATIO_PROMPTS, GROUP_EFFECTIVE_RATIO_ROLLOUTS, POOL_PREEMPTIONS, POOL_RESTARTS}
STATUS_VIEW |= {PROGRESS_ROLLOUTS, PROGRESS_TOKENS, THROUGHPUT_ROLLOUTS_PER_S, THROUGHPUT_TOKENS_PER_S}
STATUS_VIEW |= {TIMING_S_IDLE, TIMING_S_STEP}
STATUS_VIEW |= {timing(part) for part in STEP_PARTS}


def single_metrics() -> list[Metric]:
    """Return the metrics that are declared by their whole name, in the order of their declaration."""
    return [known for known in METRICS.values() if isinstance(known, Metric)]


def documented(name: str) -> bool:
    """Return whether a metric of this name is declared, by itself or as one of a family."""
    return name in METRICS or any(known.has(name) for known in METRICS.values() if isinstance(known, MetricFamily))
