"""Every metric that kray writes, with its unit and meaning; MLflow's x axis is the training step.

Times are wall-clock seconds of the driver. MLflow's own system/* metrics (every 5 s, the driver's machine) come on top.
"""

from __future__ import annotations

METRICS: dict[str, tuple[str, str]] = {
    "train/loss": ("nats", "policy loss of the step, mean over its optimizer steps"),
    "train/grad_norm": ("1", "global gradient norm before clipping"),
    "train/lr": ("1", "learning rate of the last optimizer step"),
    "train/entropy": ("nats", "mean entropy of the policy's next-token distribution over response tokens"),
    "train/clip_ratio": ("ratio", "response tokens whose probability ratio was clipped"),
    "train/logprob_gap_mean": ("nats", "mean |learner - engine| logprob of the sampled tokens before the update"),
    "train/logprob_gap_max": ("nats", "largest |learner - engine| logprob of a sampled token"),
    "train/logprob_kl": ("nats", "estimated KL from the engines' to the learner's distribution"),
    "train/padding_ratio": ("ratio", "padding among the tokens that the learner computed on"),
    "train/kl": ("nats", "estimated KL from the policy before the step's first optimizer step"),
    "train/reference_kl": ("nats", "estimated KL from the start model, where train.kl is set"),
    "train/tis_ratio": ("ratio", "response tokens whose importance weight was truncated, where train.tis is set"),
    "train/advantage_max": ("1", "largest advantage in the step"),
    "train/advantage_cut_groups": ("groups", "groups in which train.advantage_clip cut an advantage"),
    "train/computed_tokens": ("tokens", "tokens that went through the model, padding included, shared prompts once"),
    "train/attention_padding_ratio": ("ratio", "places of the packed attention that hold no key"),
    "train/tokens": ("tokens", "response tokens trained on: those of mixed groups"),
    "train/rows": ("rollouts", "rollouts trained on"),
    "train/groups_ratio": ("ratio", "groups that were trained on"),
    "train/optimizer_steps": ("count", "optimizer steps done in the step"),
    "train/nonfinite": ("count", "optimizer steps skipped because the gradient was not finite"),
    "train/skipped": ("0 or 1", "1 if the step did no optimizer step: no group was mixed, or no gradient finite"),
    "train/update_s": ("s", "the update as the learner's rank 0 saw it"),
    "train/peak_memory_gib": ("GiB", "peak memory of the largest learner rank: the GPU's, or resident without one"),
    "reward/mean": ("reward", "mean over the step's rollouts"),
    "reward/std": ("reward", "standard deviation over the step's rollouts"),
    "reward/failed": ("rollouts", "rollouts lost to data failures"),
    "frac_reward_zero_std": ("ratio", "groups whose rewards are all equal"),
    "completions/mean_length": ("tokens", "mean response length; of a conversation, what the policy wrote"),
    "completions/max_length": ("tokens", "longest response"),
    "completions/clipped_ratio": ("ratio", "responses cut at the length limit"),
    "environment/turns_mean": ("turns", "mean turns of the policy in a conversation, where environment.name is set"),
    "environment/turns_max": ("turns", "most turns of a conversation"),
    "environment/multi_turn_ratio": ("ratio", "conversations of more than one turn: for tools, those with a call"),
    "environment/tokens_ratio": ("ratio", "tokens of conversations that the environment wrote, which carry no loss"),
    "environment/failed": ("rollouts", "conversations lost to an environment that raised, hung or died"),
    "budget/min": ("rollouts", "smallest budget of a prompt in the step"),
    "budget/p50": ("rollouts", "median budget"),
    "budget/p99": ("rollouts", "99th percentile of the budgets"),
    "budget/max": ("rollouts", "largest budget"),
    "budget/share_<status>": (
        "ratio",
        "rollouts given to prompts that were never_solved, hard (<= .2), medium, easy (>= .8), always_solved at their last "
        "visit, or unlabelled",
    ),
    "group/effective_ratio_rollouts": ("ratio", "rollouts that belong to a group with mixed rewards"),
    "group/effective_ratio_prompts": ("ratio", "prompts whose group has mixed rewards"),
    "planner/value_planned": ("value", "sum over prompts of the expected Value(N, p) of their budget"),
    "planner/value_realised": ("value", "sum over mixed groups of p (1 - p)^2 at the success rate seen in the step"),
    "planner/brier": ("1", "mean squared error of the beliefs' success rate over the step's rollouts"),
    "planner/epoch_brier": ("1", "planner/brier over the epoch that ended with the step"),
    "planner/epoch_calibration_error": ("ratio", "mean |predicted - observed| success rate over the epoch's rollouts"),
    "planner/predicted_<k>": ("ratio", "mean predicted success rate over the epoch's rollouts in the k-th tenth"),
    "planner/observed_<k>": ("ratio", "observed success rate of the same rollouts"),
    "planner/admitted": ("prompts", "prompts that got rollouts"),
    "planner/lost": ("rollouts", "rollouts that failed for good, as the plan counts them"),
    "planner/unspent_ratio": ("ratio", "of the step's budget, by expected cost"),
    "planner/mixed": ("groups", "groups with different rewards"),
    "prompts/waiting": ("prompts", "candidates that wait to be admitted (plan.candidates > 1)"),
    "prompts/longest_wait": ("steps", "from a prompt's first offer to its visit, longest so far"),
    "prompts/longest_gap": ("steps", "between two visits of a prompt, longest so far"),
    "prompts/quarantined": ("prompts", "left out because nothing came back of them, over the run so far"),
    "pool/probe_gap": ("nats", "largest mean |engine - learner| logprob of the probe when the new weights were proved"),
    "pool/engines": ("engines", "engines that served the step"),
    "pool/restarts": ("count", "engine restarts so far in this start of the run"),
    "pool/preemptions": ("count", "engines lost to preempted nodes so far in this start of the run"),
    "pool/retries": ("tasks", "rollout tasks given to another engine so far in this start of the run"),
    "learner/restarts": ("count", "times that the learner was started anew so far in this start of the run"),
    "driver/restarts": ("count", "times that the driver was started anew so far by this job"),
    "checkpoint/failed": ("count", "checkpoints that could not be written so far in this start of the run"),
    "staleness/mean": (
        "versions",
        "mean over response tokens: versions between the policy that sampled and the one that learned",
    ),
    "staleness/max": ("versions", "of the oldest token that was learned from; at most async.max_staleness"),
    "staleness/mixed_ratio": ("ratio", "rollouts during which the engine took new weights"),
    "staleness/dropped_groups": ("groups", "left out because a token was older than async.max_staleness allows"),
    "timing_s/plan": ("s", "planning"),
    "timing_s/generate": ("s", "generation, first task out to last rollout in"),
    "timing_s/reward": ("s", "waiting for rewards after the last rollout"),
    "timing_s/wait": ("s", "the learner waiting for the step's groups"),
    "timing_s/update": ("s", "the learner's update"),
    "timing_s/sync": ("s", "sending weights to the engines and proving them"),
    "timing_s/evaluate": ("s", "evaluation"),
    "timing_s/exact": ("s", "computing exact success rates, which are no part of a method (jobs/compare.py)"),
    "timing_s/checkpoint": ("s", "that training stood still to save a checkpoint; it is written in the background"),
    "timing_s/idle": ("s", "time of the step in which an engine did not generate, mean over engines"),
    "timing_s/step": ("s", "the whole step"),
    "progress/rollouts": ("rollouts", "rollouts since the run began"),
    "progress/tokens": ("tokens", "response tokens since the run began"),
    "progress/epoch": ("epochs", "visits of prompts so far / training prompts"),
    "throughput/rollouts_per_s": ("rollouts/s", "of the whole step"),
    "throughput/tokens_per_s": ("tokens/s", "response tokens, of the whole step"),
    "eval/accuracy": ("ratio", "mean success of sampled responses to the test prompts; of graded rewards, their mean"),
    "eval/accuracy_<set>": ("ratio", "of one test set, where `prompts.more_tests` names several"),
    "eval/set_mean_accuracy": ("ratio", "mean of the test sets' accuracies"),
    "eval/greedy_accuracy": ("ratio", "success of one greedy response to each test prompt"),
    "eval/exact_accuracy": (
        "ratio",
        "mean probability of the right answer to a test prompt, from log-probabilities (jobs/compare.py, unique answers)",
    ),
    "eval/accuracy_se": ("ratio", "standard error of eval/accuracy over prompts"),
    "eval/pass_at_<k>": ("ratio", "probability that one of k sampled responses solves a test prompt, without bias"),
    "eval/mean_length": ("tokens", "mean length of sampled responses"),
    "eval/turns_mean": ("turns", "mean turns of sampled conversations, where environment.name is set"),
    "eval/multi_turn_ratio": ("ratio", "sampled conversations of more than one turn"),
    "eval/failed": ("responses", "lost to data failures"),
    "memory/driver_gib": ("GiB", "peak resident memory of the driver process"),
    "tracking/nonfinite": ("count", "metrics of the step that were not finite and are left out"),
}


def documented(name: str) -> bool:
    """Whether METRICS has the name, perhaps as a pattern such as eval/pass_at_<k>."""
    return name in METRICS or any("<" in known and name.startswith(known.partition("<")[0]) for known in METRICS)


def describe() -> str:
    """METRICS as a Markdown table."""
    rows = [
        f"| `{name}` | {unit} | {meaning.replace('|', chr(92) + '|')} |" for name, (unit, meaning) in METRICS.items()
    ]
    return "\n".join(["| metric | unit | meaning |", "|---|---|---|", *rows])
