"""Declarations of every metric that kray writes, with unit and meaning, which all other code uses by reference.

MLflow's x axis is the training step. Times are wall-clock seconds of the driver. MLflow's own system/* metrics (every 5 s,
of the driver's machine) come on top. docs/reference/metrics.md is generated from these declarations.
"""

from __future__ import annotations

from kray.metrics.declaration import (
    METRICS,
    Metric,
    MetricFamily,
    declared,
    documented,
    family,
    metric,
    single_metrics,
    timing,
)

__all__ = ["METRICS", "Metric", "MetricFamily", "declared", "documented", "single_metrics", "timing"]

TRAIN_LOSS = metric(
    "train/loss", "nats", "policy loss of the step, mean over its optimizer steps", prometheus="kray_loss_nats"
)
TRAIN_GRAD_NORM = metric("train/grad_norm", "1", "global gradient norm before clipping", prometheus="kray_grad_norm")
TRAIN_LR = metric("train/lr", "1", "learning rate of the last optimizer step")
TRAIN_ENTROPY = metric(
    "train/entropy",
    "nats",
    "mean entropy of the policy's next-token distribution over response tokens",
    prometheus="kray_entropy_nats",
)
TRAIN_CLIP_RATIO = metric("train/clip_ratio", "ratio", "response tokens whose probability ratio was clipped")
TRAIN_LOGPROB_GAP_MEAN = metric(
    "train/logprob_gap_mean",
    "nats",
    "mean |learner - engine| logprob of the sampled tokens before the update",
    prometheus="kray_logprob_gap_nats",
)
TRAIN_LOGPROB_GAP_MAX = metric("train/logprob_gap_max", "nats", "largest |learner - engine| logprob of a sampled token")
TRAIN_LOGPROB_KL = metric("train/logprob_kl", "nats", "estimated KL from the engines' to the learner's distribution")
TRAIN_PADDING_RATIO = metric("train/padding_ratio", "ratio", "padding among the tokens that the learner computed on")
TRAIN_KL = metric("train/kl", "nats", "estimated KL from the policy before the step's first optimizer step")
TRAIN_REFERENCE_KL = metric("train/reference_kl", "nats", "estimated KL from the start model, where train.kl is set")
TRAIN_TIS_RATIO = metric(
    "train/tis_ratio", "ratio", "response tokens whose importance weight was truncated, where train.tis is set"
)
TRAIN_ADVANTAGE_MAX = metric("train/advantage_max", "1", "largest advantage in the step")
TRAIN_ADVANTAGE_MEAN = metric(
    "train/advantage_mean",
    "1",
    "mean |advantage| over the step's rollouts: how much the rewards differed from what they were compared with",
    prometheus="kray_advantage_mean",
)
TRAIN_EFFECTIVE_SAMPLE_SIZE = metric(
    "train/effective_sample_size",
    "rollouts",
    "(sum |A|)^2 / sum A^2 over the step's rollouts: rollouts of equal |advantage| that give as precise a gradient",
    prometheus="kray_effective_sample_size",
)
TRAIN_EFFECTIVE_RATIO = metric(
    "train/effective_ratio",
    "ratio",
    "mean of min(1, (A / a)^2) over the step's rollouts, where a is the advantage at even odds: near 0 where rewards were "
    "expected, 0 where every group has equal rewards and the baseline is group",
    prometheus="kray_effective_ratio",
)
TRAIN_EPOCHS = metric(
    "train/epochs", "count", "passes over the step's rollouts; below train.epochs where train.max_kl ended them"
)
TRAIN_KEPT_RATIO = metric("train/kept_ratio", "ratio", "rollouts with an advantage that were trained on (train.thin)")
TRAIN_ADVANTAGE_CUT_GROUPS = metric(
    "train/advantage_cut_groups", "groups", "groups in which train.advantage_clip cut an advantage"
)
TRAIN_COMPUTED_TOKENS = metric(
    "train/computed_tokens", "tokens", "tokens that went through the model, padding included, shared prompts once"
)
TRAIN_ATTENTION_PADDING_RATIO = metric(
    "train/attention_padding_ratio", "ratio", "places of the packed attention that hold no key"
)
TRAIN_TOKENS = metric("train/tokens", "tokens", "response tokens trained on, counted at each pass (train.epochs)")
TRAIN_ROWS = metric("train/rows", "rollouts", "rollouts trained on, counted at each pass (train.epochs)")
TRAIN_PROMPTS = metric(
    "train/prompts", "prompts", "prompts of the rollouts that were trained on, counted at each pass (train.epochs)"
)
TRAIN_GROUPS_RATIO = metric(
    "train/groups_ratio", "ratio", "groups that carry a gradient; all with train.baseline belief"
)
TRAIN_OPTIMIZER_STEPS = metric("train/optimizer_steps", "count", "optimizer steps done in the step")
TRAIN_NONFINITE = metric(
    "train/nonfinite",
    "count",
    "optimizer steps skipped because the gradient was not finite",
    prometheus="kray_nonfinite_updates_total",
    prometheus_kind="sum",
)
TRAIN_SKIPPED = metric(
    "train/skipped",
    "0 or 1",
    "1 if the step did no optimizer step: no rollout had an advantage, or no gradient was finite",
    prometheus="kray_skipped_updates_total",
    prometheus_kind="sum",
)
TRAIN_UPDATE_S = metric("train/update_s", "s", "the update as the learner's rank 0 saw it")
TRAIN_PEAK_MEMORY_GIB = metric(
    "train/peak_memory_gib", "GiB", "peak memory of the largest learner rank: the GPU's, or resident without one"
)
REWARD_MEAN = metric(
    "reward/mean",
    "reward",
    "mean over the step's rollouts; with roles, of the first that learns",
    prometheus="kray_reward_mean",
)
REWARD_OF_ROLE = family(
    "reward/mean_<role>", "reward", "mean reward of one role that learns, where the environment has roles"
)
REWARD_STD = metric("reward/std", "reward", "standard deviation over the step's rollouts")
REWARD_FAILED = metric(
    "reward/failed",
    "rollouts",
    "rollouts lost to data failures",
    prometheus="kray_failed_rollouts_total",
    prometheus_kind="sum",
)
REWARD_FUNCTION = family(
    "reward/function_<name>",
    "reward",
    "mean value of one of `reward.functions`, as it gives it, over the step's rollouts to which it applies",
)
JUDGE_REQUESTS = metric("judge/requests", "count", "requests to judges since the driver started, evaluations included")
JUDGE_RETRIES = metric("judge/retries", "count", "those of them that repeated one that an outage had lost")
JUDGE_FAILURES = metric("judge/failures", "responses", "responses without a verdict since the driver started")
JUDGE_PROMPT_TOKENS = metric("judge/prompt_tokens", "tokens", "tokens of these requests, as the endpoint counts them")
JUDGE_COMPLETION_TOKENS = metric("judge/completion_tokens", "tokens", "tokens of the judges' replies")
JUDGE_COST = metric(
    "judge/cost", "currency", "cost of these tokens, where `reward.judge.prompt_price` or the other is set"
)
FRAC_REWARD_ZERO_STD = metric("frac_reward_zero_std", "ratio", "groups whose rewards are all equal")
COMPLETIONS_MEAN_LENGTH = metric(
    "completions/mean_length",
    "tokens",
    "mean response length; of a conversation, what the policy wrote",
    prometheus="kray_response_tokens_mean",
)
COMPLETIONS_MAX_LENGTH = metric("completions/max_length", "tokens", "longest response")
COMPLETIONS_CLIPPED_RATIO = metric(
    "completions/clipped_ratio", "ratio", "responses cut at the length limit", prometheus="kray_response_clipped_ratio"
)
ENVIRONMENT_TURNS_MEAN = metric(
    "environment/turns_mean", "turns", "mean turns of the policy in a conversation, where environment.name is set"
)
ENVIRONMENT_TURNS_MAX = metric("environment/turns_max", "turns", "most turns of a conversation")
ENVIRONMENT_MULTI_TURN_RATIO = metric(
    "environment/multi_turn_ratio", "ratio", "conversations of more than one turn: for tools, those with a call"
)
ENVIRONMENT_TOKENS_RATIO = metric(
    "environment/tokens_ratio", "ratio", "tokens of conversations that the environment wrote, which carry no loss"
)
ENVIRONMENT_FAILED = metric(
    "environment/failed", "rollouts", "conversations lost to an environment that raised, hung or died"
)
BUDGET_MIN = metric("budget/min", "rollouts", "smallest budget of a prompt in the step")
BUDGET_P50 = metric("budget/p50", "rollouts", "median budget")
BUDGET_P99 = metric("budget/p99", "rollouts", "99th percentile of the budgets")
BUDGET_MAX = metric("budget/max", "rollouts", "largest budget", prometheus="kray_budget_max_rollouts")
BUDGET_SHARE = family(
    "budget/share_<status>",
    "ratio",
    "rollouts given to prompts that were never_solved, hard (<= .2), medium, easy (>= .8), always_solved at their last "
    "visit, or unlabelled",
)
GROUP_EFFECTIVE_RATIO_ROLLOUTS = metric(
    "group/effective_ratio_rollouts",
    "ratio",
    "rollouts that belong to a group with mixed rewards",
    prometheus="kray_effective_rollouts_ratio",
)
GROUP_EFFECTIVE_RATIO_PROMPTS = metric(
    "group/effective_ratio_prompts",
    "ratio",
    "prompts whose group has mixed rewards",
    prometheus="kray_effective_prompts_ratio",
)
PLANNER_VALUE_PLANNED = metric(
    "planner/value_planned",
    "value",
    "sum over prompts of the expected Value(N, p) of their budget",
    prometheus="kray_planner_value_planned",
)
PLANNER_VALUE_REALISED = metric(
    "planner/value_realised",
    "value",
    "sum over mixed groups of p (1 - p)^2 at the success rate seen in the step",
    prometheus="kray_planner_value_realised",
)
PLANNER_BRIER = metric(
    "planner/brier",
    "1",
    "mean squared error of the beliefs' success rate over the step's rollouts",
    prometheus="kray_planner_brier",
)
PLANNER_EPOCH_BRIER = metric("planner/epoch_brier", "1", "planner/brier over the epoch that ended with the step")
PLANNER_EPOCH_CALIBRATION_ERROR = metric(
    "planner/epoch_calibration_error", "ratio", "mean |predicted - observed| success rate over the epoch's rollouts"
)
PLANNER_PREDICTED = family(
    "planner/predicted_<k>", "ratio", "mean predicted success rate over the epoch's rollouts in the k-th tenth"
)
PLANNER_OBSERVED = family("planner/observed_<k>", "ratio", "observed success rate of the same rollouts")
PLANNER_ADMITTED = metric("planner/admitted", "prompts", "prompts that got rollouts")
PLANNER_LOST = metric("planner/lost", "rollouts", "rollouts that failed for good, as the plan counts them")
PLANNER_UNSPENT_RATIO = metric("planner/unspent_ratio", "ratio", "of the step's budget, by expected cost")
PLANNER_MIXED = metric("planner/mixed", "groups", "groups with different rewards")
PLANNER_KIND_SIGNAL = family(
    "planner/kind_signal_<kind>", "ratio", "variance of the kind's latest rewards, over that of all (plan.adapt)"
)
PLANNER_KIND_OFFERED = family("planner/kind_offered_<kind>", "ratio", "candidates offered to the plan (plan.adapt)")
PLANNER_KIND_TRIED = family("planner/kind_tried_<kind>", "ratio", "never-solved candidates offered (plan.adapt)")
PLANNER_KIND_LOWER = family("planner/kind_lower_<kind>", "rollouts", "plan.lower of the kind (plan.adapt)")
PLANNER_KIND_UPPER = family("planner/kind_upper_<kind>", "rollouts", "plan.upper of the kind (plan.adapt)")
PROMPTS_WAITING = metric("prompts/waiting", "prompts", "candidates that wait to be admitted (plan.candidates > 1)")
PROMPTS_LONGEST_WAIT = metric(
    "prompts/longest_wait", "steps", "from a prompt's first offer to its visit, longest so far"
)
PROMPTS_LONGEST_GAP = metric("prompts/longest_gap", "steps", "between two visits of a prompt, longest so far")
PROMPTS_QUARANTINED = metric(
    "prompts/quarantined", "prompts", "left out because nothing came back of them, over the run so far"
)
POOL_PROBE_GAP = metric(
    "pool/probe_gap",
    "nats",
    "largest mean |engine - learner| logprob of the probe when the new weights were proved",
    prometheus="kray_probe_gap_nats",
)
POOL_ENGINES = metric("pool/engines", "engines", "engines that served the step", prometheus="kray_engines")
POOL_RESTARTS = metric(
    "pool/restarts",
    "count",
    "engine restarts so far in this start of the run",
    prometheus="kray_engine_restarts_total",
    prometheus_kind="counter",
)
POOL_PREEMPTIONS = metric(
    "pool/preemptions",
    "count",
    "engines lost to preempted nodes so far in this start of the run",
    prometheus="kray_engine_preemptions_total",
    prometheus_kind="counter",
)
POOL_RETRIES = metric(
    "pool/retries",
    "tasks",
    "rollout tasks given to another engine so far in this start of the run",
    prometheus="kray_task_retries_total",
    prometheus_kind="counter",
)
LEARNER_RESTARTS = metric(
    "learner/restarts", "count", "times that the learner was started anew so far in this start of the run"
)
DRIVER_RESTARTS = metric("driver/restarts", "count", "times that the driver was started anew so far by this job")
CHECKPOINT_FAILED = metric(
    "checkpoint/failed", "count", "checkpoints that could not be written so far in this start of the run"
)
STALENESS_MEAN = metric(
    "staleness/mean",
    "versions",
    "mean over response tokens: versions between the policy that sampled and the one that learned",
    prometheus="kray_staleness_mean_versions",
)
STALENESS_MAX = metric(
    "staleness/max",
    "versions",
    "of the oldest token that was learned from; at most async.max_staleness",
    prometheus="kray_staleness_max_versions",
)
STALENESS_MIXED_RATIO = metric("staleness/mixed_ratio", "ratio", "rollouts during which the engine took new weights")
STALENESS_DROPPED_GROUPS = metric(
    "staleness/dropped_groups",
    "groups",
    "left out because a token was older than async.max_staleness allows",
    prometheus="kray_dropped_groups_total",
    prometheus_kind="sum",
)
TIMING_S_PLAN = metric("timing_s/plan", "s", "planning")
TIMING_S_GENERATE = metric("timing_s/generate", "s", "generation, first task out to last rollout in")
TIMING_S_REWARD = metric("timing_s/reward", "s", "waiting for rewards after the last rollout")
TIMING_S_WAIT = metric("timing_s/wait", "s", "the learner waiting for the step's groups")
TIMING_S_UPDATE = metric("timing_s/update", "s", "the learner's update")
TIMING_S_SYNC = metric("timing_s/sync", "s", "sending weights to the engines and proving them")
TIMING_S_EVALUATE = metric("timing_s/evaluate", "s", "evaluation")
TIMING_S_EXACT = metric(
    "timing_s/exact", "s", "computing exact success rates, which are no part of a method (jobs/compare.py)"
)
TIMING_S_CHECKPOINT = metric(
    "timing_s/checkpoint", "s", "that training stood still to save a checkpoint; it is written in the background"
)
TIMING_S_IDLE = metric("timing_s/idle", "s", "time of the step in which an engine did not generate, mean over engines")
TIMING_S_STEP = metric("timing_s/step", "s", "the whole step")
PROGRESS_ROLLOUTS = metric(
    "progress/rollouts",
    "rollouts",
    "rollouts since the run began",
    prometheus="kray_rollouts_total",
    prometheus_kind="counter",
)
PROGRESS_TOKENS = metric(
    "progress/tokens",
    "tokens",
    "response tokens since the run began",
    prometheus="kray_tokens_total",
    prometheus_kind="counter",
)
PROGRESS_EPOCH = metric(
    "progress/epoch", "epochs", "visits of prompts so far / training prompts", prometheus="kray_epoch"
)
THROUGHPUT_ROLLOUTS_PER_S = metric(
    "throughput/rollouts_per_s", "rollouts/s", "of the whole step", prometheus="kray_rollouts_per_second"
)
THROUGHPUT_TOKENS_PER_S = metric(
    "throughput/tokens_per_s", "tokens/s", "response tokens, of the whole step", prometheus="kray_tokens_per_second"
)
EVAL_ACCURACY = metric(
    "eval/accuracy",
    "ratio",
    "mean success of sampled responses to the test prompts; of graded rewards, their mean",
    prometheus="kray_accuracy",
)
EVAL_ACCURACY_OF_SET = family(
    "eval/accuracy_<set>", "ratio", "of one test set, where `prompts.more_tests` names several"
)
EVAL_SET_MEAN_ACCURACY = metric("eval/set_mean_accuracy", "ratio", "mean of the test sets' accuracies")
EVAL_GREEDY_ACCURACY = metric(
    "eval/greedy_accuracy",
    "ratio",
    "success of one greedy response to each test prompt",
    prometheus="kray_greedy_accuracy",
)
EVAL_EXACT_ACCURACY = metric(
    "eval/exact_accuracy",
    "ratio",
    "mean probability of the right answer to a test prompt, from log-probabilities (jobs/compare.py, unique answers)",
)
EVAL_ACCURACY_SE = metric("eval/accuracy_se", "ratio", "standard error of eval/accuracy over prompts")
EVAL_PASS_AT = family(
    "eval/pass_at_<k>", "ratio", "probability that one of k sampled responses solves a test prompt, without bias"
)
EVAL_FUNCTION = family(
    "eval/function_<name>",
    "reward",
    "mean value of one of `reward.functions` over sampled responses to the test prompts",
)
EVAL_ENTROPY = metric(
    "eval/entropy",
    "nats",
    "mean -log-probability of the tokens of sampled responses to the test prompts: the entropy of what the policy samples, "
    "on prompts that are the same for every run (train/entropy is over the rollouts that were trained on)",
)
EVAL_MEAN_LENGTH = metric("eval/mean_length", "tokens", "mean length of sampled responses")
EVAL_TURNS_MEAN = metric(
    "eval/turns_mean", "turns", "mean turns of sampled conversations, where environment.name is set"
)
EVAL_MULTI_TURN_RATIO = metric("eval/multi_turn_ratio", "ratio", "sampled conversations of more than one turn")
EVAL_WIN_RATE = family(
    "eval/win_rate_<opponent>",
    "ratio",
    "mean reward of the policy against an opponent of environment.evaluate_against, all its roles alike; with _<role>: in one",
)
EVAL_WIN_RATE_SE = family("eval/win_rate_se_<opponent>", "ratio", "standard error of the win rate over prompts")
EVAL_ELO = family(
    "eval/elo_<opponent>",
    "Elo points",
    "rating of the policy above an opponent: 400 log10(s / (1 - s)) at win rate s, with half a win and half a loss added",
)
EVAL_FAILED = metric("eval/failed", "responses", "lost to data failures")
MEMORY_DRIVER_GIB = metric(
    "memory/driver_gib", "GiB", "peak resident memory of the driver process", prometheus="kray_driver_memory_gib"
)
TRACKING_NONFINITE = metric("tracking/nonfinite", "count", "metrics of the step that were not finite and are left out")


# What a step's time is divided into; those of one step add up to about timing_s/step.
STEP_PARTS = ("plan", "generate", "reward", "update", "sync")


# Metrics that the console's line of a step shows.
STEP_LINE = {REWARD_MEAN, BUDGET_MIN, BUDGET_MAX, TRAIN_EFFECTIVE_RATIO}
STEP_LINE |= {THROUGHPUT_ROLLOUTS_PER_S, THROUGHPUT_TOKENS_PER_S}
STEP_LINE |= {TIMING_S_STEP, *(timing(part) for part in STEP_PARTS)}

# Metrics that the status view (`jobs/status.py`) shows.
STATUS_VIEW = {BUDGET_MIN, BUDGET_P50, BUDGET_P99, BUDGET_MAX, EVAL_ACCURACY, REWARD_MEAN, STALENESS_MEAN}
STATUS_VIEW |= {GROUP_EFFECTIVE_RATIO_PROMPTS, GROUP_EFFECTIVE_RATIO_ROLLOUTS, POOL_PREEMPTIONS, POOL_RESTARTS}
STATUS_VIEW |= {PROGRESS_ROLLOUTS, PROGRESS_TOKENS, THROUGHPUT_ROLLOUTS_PER_S, THROUGHPUT_TOKENS_PER_S}
STATUS_VIEW |= {TIMING_S_IDLE, TIMING_S_STEP, TRAIN_EFFECTIVE_RATIO}
STATUS_VIEW |= {timing(part) for part in STEP_PARTS}
