"""How good a policy is: accuracy of sampled and greedy responses, and unbiased pass@k, on prompts it does not train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import comb, isfinite
from typing import Any

import numpy as np

from kray.config import KrayConfig
from kray.config.players import Player, read_players
from kray.config.schema import EvaluateConfig
from kray.driver.components import Components, sampling
from kray.driver.matches import Match, play
from kray.driver.step_metrics import conversation_record, function_means, judge_record
from kray.metrics import (
    EVAL_ACCURACY,
    EVAL_ACCURACY_OF_SET,
    EVAL_ACCURACY_SE,
    EVAL_ENTROPY,
    EVAL_FAILED,
    EVAL_FUNCTION,
    EVAL_GREEDY_ACCURACY,
    EVAL_MEAN_LENGTH,
    EVAL_PASS_AT,
    EVAL_SET_MEAN_ACCURACY,
    declared,
)
from kray.prompts.arithmetic_meaning import response_meaning
from kray.prompts.tokenize import as_read
from kray.records import EncodedPrompt, Rollout, RolloutGroup, Sampling, derive_seed
from kray.rollout.collected import CollectedStep, check_failures
from kray.rollout.collector import EVALUATION, Collector, Draw
from kray.rollout.episodes import EpisodeRunner
from kray.rollout.outcome import Failure
from kray.rollout.plans import FixedPlan
from kray.text import one_line

CONVERSATION = ("turns_mean", "multi_turn_ratio")  # of what is known about conversations
SOLVED = 0.5  # a reward above it counts as solved in pass@k


def pass_at_k(solved: int, samples: int, k: int) -> float:
    """Probability that one of k of the `samples` responses is among the `solved` ones, without bias.

    1 - C(n - c, k) / C(n, k): Chen et al., arXiv 2107.03374, equation 1. Raises ValueError unless 0 <= c <= n, 1 <= k <= n.
    """
    if not (0 <= solved <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@k needs 0 <= solved <= samples and 1 <= k <= samples; got {solved}, {samples}, k {k}")
    return 1.0 - comb(samples - solved, k) / comb(samples, k)


@dataclass(slots=True)
class Evaluation:
    """prompts: how many were judged. accuracy: mean reward of sampled responses; accuracy_se: its standard error over
    prompts. greedy: mean reward of greedy responses, None if none were made. pass_at: by k. failures: responses lost."""

    prompts: int
    samples: int
    accuracy: float
    accuracy_se: float
    greedy: float | None
    pass_at: dict[int, float]
    mean_tokens: float
    failures: list[Failure]
    by_kind: dict[str, tuple[int, float]]  # kind of prompt, where the source names one -> (prompts, accuracy)
    by_set: dict[str, tuple[int, float]]  # test set, where there are several -> (prompts, accuracy)
    # One per prompt: id, prompt, rendered_prompt, answer, accuracy, the first response, and the greedy one with its reward.
    rows: list[dict[str, Any]]
    conversations: dict[str, float] = field(default_factory=dict)  # see report.conversation_record
    entropy: float = float("nan")  # nats a token, see eval/entropy
    functions: dict[str, float] = field(default_factory=dict)  # mean value of each of reward.functions
    judges: dict[str, float] = field(default_factory=dict)  # metrics of what judges were asked for
    matches: list[Match] = field(default_factory=list)  # against environment.evaluate_against; accuracy is of the first

    @property
    def failed(self) -> int:
        """Responses that could not be had or judged."""
        return sum(failure.rollouts for failure in self.failures)

    @property
    def nothing_judged(self) -> str:
        """Why there are no figures, where no response could be had or judged."""
        lost = f"no response could be scored, {self.failed} were lost"
        first = self.failures[0] if self.failures else None
        return f"{lost}, the first of prompt {one_line(first.prompt_id)}: {first.why}" if first else lost

    def metrics(self) -> dict[str, float]:
        """Return the metrics under their names in MLflow; those that are not known are left out."""
        named: dict[str, float] = {
            EVAL_ACCURACY: self.accuracy,
            EVAL_ACCURACY_SE: self.accuracy_se,
            EVAL_FAILED: self.failed,
        }
        named |= {EVAL_PASS_AT.of(k): value for k, value in self.pass_at.items()}
        named |= {EVAL_MEAN_LENGTH: self.mean_tokens} | self.judges
        named |= {EVAL_FUNCTION.of(name): value for name, value in self.functions.items()}
        named[EVAL_ENTROPY] = self.entropy
        named |= {EVAL_ACCURACY_OF_SET.of(name): accuracy for name, (_, accuracy) in self.by_set.items()}
        if self.by_set:
            named[EVAL_SET_MEAN_ACCURACY] = _mean([accuracy for _, accuracy in self.by_set.values()])
        named |= {
            declared("eval", name): self.conversations[name] for name in CONVERSATION if name in self.conversations
        }
        for match in self.matches:
            named |= match.metrics()
        named |= {} if self.greedy is None else {EVAL_GREEDY_ACCURACY: self.greedy}
        return {name: value for name, value in named.items() if isfinite(value)}


async def evaluate(
    collector: Collector,
    prompts: Sequence[EncodedPrompt],
    settings: EvaluateConfig,
    sampling: Sampling,
    version: int,
    seed: int,
    opponents: Mapping[str, Player] | None = None,
) -> Evaluation:
    """Evaluate the served policy.

    Args:
        collector: Carries out the plans.
        prompts: What it is evaluated on.
        settings: Samples, and whether greedy responses are made.
        sampling: How responses are drawn.
        version: The policy version that engines serve.
        seed: The same seed draws the same responses from the same policy.
        opponents: Name -> opponent (environment.evaluate_against); responses are then episodes against the first of them.
    """
    ids = [prompt.id for prompt, _ in prompts]

    def seeds(prompt_id: str) -> int:
        return derive_seed(seed, "evaluate", prompt_id)

    cold, read = replace(sampling, temperature=0.0, top_p=1.0, top_k=0), partial(as_read, tokenizer=collector.tokenizer)
    greedy: CollectedStep | None = None
    if opponents:
        matches, played = await play(collector, opponents, prompts, settings.samples, sampling, version, seed)
        if settings.greedy:
            first = dict(list(opponents.items())[:1])
            _, (greedy,) = await play(collector, first, prompts, 1, cold, version, seed)
        seats = max((len(group.rollouts) for group in played[0].groups), default=settings.samples)
        found = _summarise(played[0], greedy, seats, read)
        lost = [failure for step in played[1:] for failure in step.failures]
        return replace(found, matches=matches, failures=found.failures + lost)
    draw = Draw(seeds, sampling, version)
    sampled = await collector.collect(FixedPlan(ids, settings.samples), prompts, draw, EVALUATION)
    if settings.greedy:
        greedy = await collector.collect(FixedPlan(ids, 1), prompts, replace(draw, sampling=cold), EVALUATION)
    found = _summarise(sampled, greedy, settings.samples, read)
    found.judges = judge_record(getattr(collector.scorer, "usage", None))
    return found


async def judge(config: KrayConfig, components: Components, collector: Collector, version: int) -> Evaluation:
    """Evaluate the served policy on the test prompts.

    Raises:
        KrayError: Too many responses were lost (run.max_failed_share).
    """
    opponents = read_players(config.environment.evaluate_against, "environment.evaluate_against")
    found = await evaluate(
        collector,
        components.test,
        config.evaluate,
        sampling(config, components, config.evaluate.temperature),
        version,
        config.run.seed,
        opponents,
    )
    host = collector.host
    seats = len(host.learning) if opponents and isinstance(host, EpisodeRunner) else 1
    games = config.evaluate.samples * max(1, len(opponents)) + config.evaluate.greedy
    ordered = len(components.test) * seats * games
    check_failures(found.failures, ordered, config.run.max_failed_share)
    return found


def _summarise(
    sampled: CollectedStep, greedy: CollectedStep | None, samples: int, read: Callable[[Sequence[int]], str]
) -> Evaluation:
    means = np.array([group.rewards.mean() for group in sampled.groups])
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= samples]
    cold = {group.prompt.id: group.rollouts[0] for group in greedy.groups} if greedy is not None else {}
    whole = [group for group in sampled.groups if len(group.rollouts) == samples]  # pass@k needs them all
    solved = [int((group.rewards > SOLVED).sum()) for group in whole]
    lengths = [rollout.sampled_tokens for group in sampled.groups for rollout in group.rollouts]
    functions = function_means([rollout for group in sampled.groups for rollout in group.rollouts])
    return Evaluation(
        prompts=len(sampled.groups),
        samples=samples,
        accuracy=float(means.mean()) if len(means) else float("nan"),
        accuracy_se=float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("nan"),
        greedy=_mean([float(group.rewards.mean()) for group in greedy.groups]) if greedy and greedy.groups else None,
        pass_at={k: _mean([pass_at_k(c, samples, k) for c in solved]) for k in ks if solved},
        mean_tokens=_mean(lengths),
        failures=sampled.failures + (greedy.failures if greedy is not None else []),
        by_kind=_by("kind", sampled.groups, means),
        by_set=_by("set", sampled.groups, means),
        rows=[
            {
                "id": group.prompt.id,
                "prompt": group.prompt.text or str(group.prompt.messages),
                "rendered_prompt": read(group.prompt_tokens),
                "answer": group.prompt.answer,
                "accuracy": float(mean),
                "response": group.rollouts[0].text,
                **{f"reward_{name}": group.rollouts[0].reward_parts.get(name) for name in functions},
                **_greedy(cold.get(group.prompt.id)),
                **_meaning(group),
            }
            for group, mean in zip(sampled.groups, means, strict=True)
        ],
        conversations=conversation_record([rollout for group in sampled.groups for rollout in group.rollouts]),
        entropy=_entropy([rollout for group in sampled.groups for rollout in group.rollouts]),
        functions=functions,
    )


def _entropy(rollouts: Sequence[Rollout]) -> float:
    """Return the mean of -log p over the sampled tokens in nats, an unbiased estimate of the entropy; NaN without tokens.

    An environment's tokens have 0 for a log-probability.
    """
    tokens = sum(rollout.sampled_tokens for rollout in rollouts)
    return -sum(float(rollout.logprobs.sum()) for rollout in rollouts) / tokens if tokens else float("nan")


def _greedy(rollout: Rollout | None) -> dict[str, Any]:
    return {} if rollout is None else {"greedy_response": rollout.text, "greedy_reward": rollout.reward}


def _meaning(group: RolloutGroup) -> dict[str, str]:
    """Return the column that says an arithmetic prompt and its first response plainly; {} for other prompts."""
    first = group.rollouts[0]
    meaning = response_meaning(group.prompt, first.text, first.reward)
    return {"meaning": meaning} if meaning else {}


def _by(key: str, groups: Sequence[RolloutGroup], means: np.ndarray) -> dict[str, tuple[int, float]]:
    """Value of the prompts' metadata -> (prompts, mean of their means); without prompts that have none."""
    found: dict[str, list[float]] = {}
    for group, mean in zip(groups, means, strict=True):
        if key in group.prompt.metadata:
            found.setdefault(str(group.prompt.metadata[key]), []).append(float(mean))
    return {value: (len(each), _mean(each)) for value, each in sorted(found.items())}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
