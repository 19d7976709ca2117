"""Reward functions in the signatures of other trainers, which tests name as pkg.mod:fn."""

from __future__ import annotations

import re


def trl_even(completions, **kwargs):
    """TRL: 1 for an even first digit; text or chat messages."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(text[:1] in ("0", "2", "4", "6", "8")) for text in texts]


def trl_length(prompts, completions, completion_ids, **kwargs):
    """TRL: the number of tokens."""
    assert len(prompts) == len(completions) == len(completion_ids) == 1
    return [float(len(ids)) for ids in completion_ids]


def trl_level(completions, level):
    """TRL, without **kwargs: None where the row's level is none of its business."""
    return [None if each != "hard" else 1.0 for each in level]


def trl_solution(completions, solution, **kwargs):
    """TRL: the number in the completion against a column."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(text.strip() == right) for text, right in zip(texts, solution, strict=True)]


async def trl_async(completions, **kwargs):
    return [0.25 for _ in completions]


def trl_two(completions, **kwargs):
    return [1.0, 0.0]


def trl_number(completions, **kwargs):
    return 1.0


def trl_two_points(completions, solution, **kwargs):
    """TRL: 2 for a right answer, as some recipes give it."""
    return [2.0 * value for value in trl_solution(completions, solution)]


def trl_broken(completions, **kwargs):
    raise RuntimeError("no reward today")


def trl_hangs(completions, **kwargs):
    while True:
        pass


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """Follow verl: the last number against the ground truth, half of the reward for any number at all."""
    assert data_source in ("openai/gsm8k", "tiny/sums"), data_source
    numbers = re.findall(r"-?\d+", solution_str)
    score = 0.5 * bool(numbers) + 0.5 * bool(numbers and numbers[-1] == str(ground_truth))
    return {"score": score, "split": (extra_info or {}).get("split"), "said": numbers[-1:]}


def compute_score_plain(solution_str, ground_truth, method="strict"):
    return float(solution_str == ground_truth) if method == "strict" else 0.5


def compute_score_without(data_source, solution_str, ground_truth, extra_info=None):
    return {"acc": 1.0}


def target_score(data_source, solution_str, ground_truth, extra_info=None):
    """Follow verl, with a ground truth that is an object."""
    return float(eval(solution_str) == ground_truth["target"]) if sorted(ground_truth["numbers"]) else 0.0


def rubric(completion, answer, info):
    """Follow verifiers: an answer below a bound that the row's info names."""
    said = completion[-1]["content"]
    return float(said == answer and int(said) < info["below"])


def none_of_them(text):
    return 1.0


def two_at_once(completions, solution_str):
    return 1.0
