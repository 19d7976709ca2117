"""What a run costs in modelled FLOPs, and how its counts are read."""

from __future__ import annotations

import numpy as np
import pytest

from kray.compare.costs import FlopsModel, Work, flops, parse_flops
from kray.compare.results import read_work
from kray.errors import ConfigError

MODEL = FlopsModel(prompt_tokens=10, response_tokens=100, generation_factor=3)


def work(**counts: float) -> Work:
    names = ("rollouts", "prompts", "rows", "row_prompts", "old_rows", "old_prompts")
    return Work(*(np.array([0.0, counts.get(name, 0.0)]) for name in names))


@pytest.mark.parametrize(
    ("counts", "expected", "weighted"),
    [
        ({"rollouts": 8}, 2 * 8 * 100, 3 * 2 * 8 * 100),
        ({"prompts": 4}, 2 * 4 * 10, 2 * 4 * 10),
        ({"rows": 5}, 6 * 5 * 100, 6 * 5 * 100),
        ({"row_prompts": 3}, 6 * 3 * 10, 6 * 3 * 10),
        ({"old_rows": 5, "old_prompts": 3}, 2 * (5 * 100 + 3 * 10), 2 * (5 * 100 + 3 * 10)),
    ],
)
def test_each_part_has_its_price(counts, expected, weighted):
    assert flops(work(**counts), MODEL).tolist() == [0, expected]
    assert flops(work(**counts), MODEL, weighted=True).tolist() == [0, weighted]


def step(done: int, **of: float) -> dict:
    line = {"step": done, "progress/rollouts": 16.0 * done, "planner/admitted": 8.0, "train/rows": 12.0}
    return line | {"train/groups_ratio": 0.5} | of


def test_counts_are_sums_over_the_steps():
    found = read_work([step(1, **{"train/prompts": 5.0}), step(2, **{"train/prompts": 3.0})], 1)
    assert found.rollouts.tolist() == [0, 16, 32]
    assert found.prompts.tolist() == [0, 8, 16]
    assert found.rows.tolist() == [0, 12, 24]
    assert found.row_prompts.tolist() == [0, 5, 8]
    assert found.old_rows.tolist() == [0, 0, 0]
    assert found.at(np.array([0, 2])).rows.tolist() == [0, 24]


def test_prompts_of_older_runs_are_those_of_groups_with_a_gradient():
    passes = {"train/epochs": 2.0}
    found = read_work([step(1), step(2, **passes), step(3, **passes, **{"train/rows": 6.0})], 1)
    assert np.diff(found.row_prompts).tolist() == [4, 8, 6]  # in the last step at most one a row


def test_old_log_probabilities_are_computed_once_where_a_pass_has_several_updates():
    found = read_work([step(1, **{"train/prompts": 6.0, "train/epochs": 3.0})], 2)
    assert found.old_rows.tolist() == [0, 4]
    assert found.old_prompts.tolist() == [0, 2]


def test_proportions_are_read_and_refused():
    assert parse_flops("") == FlopsModel()
    assert parse_flops("512") == FlopsModel(prompt_tokens=512)
    assert parse_flops("100, 2000, 2.5") == FlopsModel(100, 2000, 2.5)
    for text in ("0", "a,b", "1,2,3,4", "1,-2", "inf"):
        with pytest.raises(ConfigError, match="--flops"):
            parse_flops(text)
