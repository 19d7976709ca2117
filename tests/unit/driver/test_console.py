"""The line of a step: what it shows, in one line of a terminal."""

from kray.driver.console import evaluation_line, step_line
from kray.driver.evaluation import Evaluation
from kray.driver.matches import Match
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
from kray.rollout.outcome import Failure

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


def an_evaluation(**figures) -> Evaluation:
    known = {"prompts": 4, "samples": 2, "accuracy": 0.5, "accuracy_se": 0.1, "greedy": 0.25, "pass_at": {}}
    known |= {"mean_tokens": 3.0, "failures": [], "by_kind": {}, "by_set": {}, "rows": []}
    return Evaluation(**(known | figures))


def test_an_evaluation_never_shows_what_is_not_known():
    nan = float("nan")
    assert evaluation_line(3, an_evaluation(), "", 1.0) == (
        "evaluation after step 3: accuracy 0.500 ± 0.196, greedy 0.250 on 4 held-out prompts x 2 samples (1.0 s)"
    )
    one = evaluation_line(3, an_evaluation(prompts=1, accuracy_se=nan, greedy=None), "before training", 1.0)
    assert one == "evaluation before training: accuracy 0.500 on 1 held-out prompts x 2 samples (1.0 s)"
    lost = [Failure("p7", 8, "reward: it returned 1e+308")]
    none = evaluation_line(3, an_evaluation(prompts=0, accuracy=nan, accuracy_se=nan, failures=lost), "", 1.0)
    assert none == (
        "evaluation after step 3: no response could be scored, 8 were lost, the first of prompt p7: reward: it returned "
        "1e+308 (1.0 s)"
    )
    assert str(Match("random", 0, nan, nan)) == "no episode against random could be scored"
    assert str(Match("random", 3, 0.5, nan)) == "0.500 against random (Elo +0)"
