"""The line of a step: what it shows, in one line of a terminal."""

from kray.driver.console import step_line
from kray.metrics import (
    BUDGET_MAX,
    BUDGET_MIN,
    REWARD_MEAN,
    STEP_LINE,
    STEP_PARTS,
    THROUGHPUT_ROLLOUTS_PER_S,
    THROUGHPUT_TOKENS_PER_S,
    TIMING_S_STEP,
    TRAIN_EFFECTIVE_RATIO,
    timing,
)

STEP = {
    REWARD_MEAN: 0.4123,
    TRAIN_EFFECTIVE_RATIO: 0.6,
    BUDGET_MIN: 2.0,
    BUDGET_MAX: 32.0,
    THROUGHPUT_ROLLOUTS_PER_S: 1058.4,
    THROUGHPUT_TOKENS_PER_S: 14299.0,
    TIMING_S_STEP: 2.14,
    **dict(zip(map(timing, STEP_PARTS), (0.01, 1.24, 0.05, 0.61, 0.23), strict=True)),
}


def test_a_step_is_one_line_with_rates_and_parts():
    line = step_line(7, 200, STEP, 71.0)
    assert line == (
        "step   7/200  reward 0.412  effective rollouts 60%  budget 2..32  1,058 rollouts/s  14,299 tokens/s  "
        "2.1 s (generate 1.2, reward 0.1, update 0.6, sync 0.2)  71 s left"
    )


def test_parts_that_take_no_time_are_left_out():
    line = step_line(7, 200, STEP | {timing(part): 0.0 for part in STEP_PARTS}, 71.0)
    assert line.endswith("tokens/s  2.1 s  71 s left")


def test_metrics_are_declared_as_shown_where_the_line_shows_them():
    assert set(STEP) == STEP_LINE
