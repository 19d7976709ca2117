"""No answer can stop a run: cases of the scorer's processes."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kray.errors import KrayError
from kray.rewards import Outcome, Scorer

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def verdicts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))  # the scorer's processes get this process's path


def scored(scorer: Scorer, *batches):
    """Outcomes of batches that are scored at once; then the scorer is closed."""

    async def run():
        return await asyncio.wait_for(asyncio.gather(*(scorer.score(batch) for batch in batches)), 60)

    with scorer:
        outcomes = asyncio.run(run())
    return outcomes[0] if len(batches) == 1 else outcomes


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc").exists() else True


def gone(pid: int, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_come_in_the_order_of_the_items(workers):
    items = [("verdicts:length", "x" * (i % 97), "") for i in range(2000)]
    outcomes = scored(Scorer("exact", workers=workers), items)
    assert [outcome.reward for outcome in outcomes] == [i % 97 for i in range(2000)]


def test_calls_at_once_keep_their_own_outcomes():
    batches = [[("", "x" * (10 * b + i), "") for i in range(b)] for b in range(12)]
    outcomes = scored(Scorer("verdicts:length", workers=2), *batches)
    assert [[o.reward for o in batch] for batch in outcomes] == [[10 * b + i for i in range(b)] for b in range(12)]


def test_options_belong_to_the_default_verifier():
    items = [("", "abc", ""), ("verdicts:length", "abc", ""), ("exact", "abc", "ABC")]
    outcomes = scored(Scorer("verdicts:length", {"scale": 2.0}), items)
    assert [outcome.reward for outcome in outcomes] == [6.0, 6.0, 0.0]


@pytest.mark.parametrize("verifier", ["verdicts:endless", "verdicts:stuck_regex"])
def test_endless_answer_scores_0_and_others_are_scored(verifier):
    responses = ["fine"] * 40
    responses[3] = responses[20] = "endless"
    scorer = Scorer(verifier, timeout_s=1.5)
    outcomes = scored(scorer, [("", response, "") for response in responses])
    assert [outcome.reward for outcome in outcomes] == [0.0 if r == "endless" else 1.0 for r in responses]
    assert outcomes[3] == Outcome(0.0, "timeout after 1.5 s", timed_out=True, elapsed_s=1.5)
    assert (scorer.timeouts, scorer.failures) == (2, 0)


def test_math_that_never_ends_is_worth_nothing():
    outcomes = scored(Scorer("math", timeout_s=1.0), [("", "\\boxed{9^{9^{9^9}}}", "7"), ("", "\\boxed{7}", "7")])
    assert [outcome.reward for outcome in outcomes] == [0.0, 1.0]


def test_a_verifier_that_raises_is_a_data_failure():
    scorer = Scorer("verdicts:raises")
    outcomes = scored(scorer, [("", r, "") for r in ("fine", "raise", "exit", "fine")])
    assert [outcome.reward for outcome in outcomes] == [1.0, None, None, 1.0]
    assert outcomes[1].error.startswith("KeyError: 'no such column' (verdicts.py:")
    assert outcomes[2].error.startswith("SystemExit")
    assert scorer.failures == 2


def test_rewards_that_are_no_finite_number_are_data_failures():
    outcomes = scored(Scorer("verdicts:not_finite"), [("", r, "") for r in ("nan", "inf", "none", "text")])
    assert all(o.reward is None and "verdicts:not_finite" in o.error for o in outcomes)


def test_unimportable_verifier_fails_its_items_only():
    outcomes = scored(Scorer("no_such:thing"), [("", "1", "1"), ("exact", "1", "1"), ("exakt", "1", "1")])
    assert [outcome.reward for outcome in outcomes] == [None, 1.0, None]
    assert "importing no_such failed" in outcomes[0].error
    assert 'did you mean "exact"' in outcomes[2].error


def test_a_death_is_retried_once_on_a_new_process(tmp_path):
    mark = str(tmp_path / "died")
    scorer = Scorer("verdicts:dies_once")
    outcomes = scored(scorer, [("", r, mark) for r in ("fine", "die", "fine")])
    assert [outcome.reward for outcome in outcomes] == [1.0, 1.0, 1.0]
    assert scorer.failures == 0
    assert scorer.restarts >= 1


def test_answer_that_kills_twice_is_a_data_failure():
    scorer = Scorer("verdicts:dies", workers=2)
    outcomes = scored(scorer, [("", "die" if i == 7 else "fine", "") for i in range(30)])
    assert [outcome.reward for outcome in outcomes] == [None if i == 7 else 1.0 for i in range(30)]
    assert "died twice" in outcomes[7].error
    assert "exit code 3" in outcomes[7].error


def test_a_process_that_dies_idle_is_replaced_without_blame():
    async def run(scorer):
        first = await scorer.score_one("", "", "")
        os.kill(int(first.reward), signal.SIGKILL)
        await asyncio.sleep(0.1)
        return first, await scorer.score_one("", "", "")

    with Scorer("verdicts:pid") as scorer:
        first, second = asyncio.run(run(scorer))
    assert second.reward is not None
    assert second.reward != first.reward
    assert scorer.failures == 0


def test_what_verifiers_print_disturbs_nothing():
    outcomes = scored(Scorer("verdicts:prints"), [("", "", "")] * 20)
    assert [outcome.reward for outcome in outcomes] == [1.0] * 20


def test_a_busy_event_loop_does_not_make_answers_late():
    async def run(scorer):
        await scorer.score_one("", "", "")
        waiting = asyncio.create_task(scorer.score([("", "", "")] * 8))
        await asyncio.sleep(0.05)
        time.sleep(1.0)  # longer than the deadline, while outcomes arrive
        return await waiting

    with Scorer("verdicts:pid", timeout_s=0.5) as scorer:
        outcomes = asyncio.run(run(scorer))
    assert not any(outcome.timed_out for outcome in outcomes)


def test_an_abandoned_call_is_dropped_and_the_next_one_served():
    async def run(scorer):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scorer.score([("", "endless", "")] * 50), 0.5)
        return await asyncio.wait_for(scorer.score([("", "fine", "")]), 30)

    with Scorer("verdicts:endless", timeout_s=1.0) as scorer:
        outcomes = asyncio.run(run(scorer))
    assert outcomes[0].reward == 1.0
    assert scorer.timeouts <= 2  # not the 50 that nobody waits for


def test_close_kills_the_processes_and_wakes_those_who_wait():
    async def run(scorer):
        pid = int((await scorer.score_one("verdicts:pid", "", "")).reward)
        waiting = asyncio.create_task(scorer.score([("", "endless", "")]))
        await asyncio.sleep(0.1)
        scorer.close()
        with pytest.raises(KrayError, match="closed"):
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(KrayError, match="closed"):
            await scorer.score([("", "fine", "")])
        return pid

    pid = asyncio.run(run(Scorer("verdicts:endless", timeout_s=60)))
    assert not alive(pid)


def test_one_scorer_serves_one_event_loop_after_another():
    with Scorer("exact") as scorer:
        for _ in range(2):
            assert asyncio.run(scorer.score_one("", "1", "1")).reward == 1.0


def test_process_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr("kray.rewards.scoring_process._PROGRAM", "import sys; sys.exit(9)")
    with pytest.raises(
        KrayError, match=r"no process could be started in 3 attempts: died while starting .*exit code 9"
    ):
        scored(Scorer("exact"), [("", "1", "1")])
    monkeypatch.setattr("kray.rewards.scoring_process._PROGRAM", "import time; time.sleep(60)")
    with pytest.raises(KrayError, match=r"not ready after 0.2 s"):
        scored(Scorer("exact", start_timeout_s=0.2), [("", "1", "1")])


@pytest.mark.parametrize("verifier", ["verdicts:endless", "verdicts:stuck_regex"])
def test_the_processes_die_with_their_parent(verifier):
    """Also in the middle of an answer, and when the parent is killed without a word."""
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(HERE)!r})
from kray.rewards import Scorer
async def main():
    scorer = Scorer({verifier!r}, timeout_s=1.0)
    print(int((await scorer.score_one("verdicts:pid", "", "")).reward), flush=True)
    scorer.timeout_s = 600.0
    await scorer.score_one("", "endless", "")
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert alive(pid)
    parent.kill()
    parent.wait()
    assert gone(pid, within_s=10)


@pytest.mark.parametrize(("arguments", "name"), [({"workers": 0}, "workers"), ({"timeout_s": 0.0}, "timeout_s")])
def test_impossible_settings_are_refused(arguments, name):
    with pytest.raises(ValueError, match=name):
        Scorer("exact", **arguments)


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_it_works_on_the_event_loop_of_an_actor(kind):
    """In a thread that is not the main one, and on the loop that Ray's asynchronous actors use."""
    loops = pytest.importorskip(kind)
    outcomes: list = []

    async def run(scorer):
        return await scorer.score([("", r, "") for r in ("fine", "endless", "fine")])

    def in_thread():
        loop = loops.new_event_loop()
        try:
            outcomes.extend(loop.run_until_complete(run(scorer)))
        finally:
            scorer.close()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    scorer = Scorer("verdicts:endless", timeout_s=0.5)
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join(60)
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("says", ["pickle", "garbage", "deep", "nan", "types", "kind", "short"])
def test_what_a_verifier_writes_to_the_scorer_runs_nothing(says, tmp_path):
    """Frames of its own are a data failure of its answer, and other answers are judged."""
    items = [("exact", "1", "1"), ("hostile_verifiers:says", says, str(tmp_path / "made")), ("exact", "1", "2")]
    outcomes = scored(Scorer("exact", workers=1), items)
    assert [outcome.reward for outcome in outcomes] == [1.0, None, 0.0]
    assert "died twice at this answer" in outcomes[1].error
    assert list(tmp_path.iterdir()) == []


def test_a_verifier_that_says_too_much_ends_no_batch():
    items = [("", "more", ""), ("", "fine", "")]
    assert [outcome.error for outcome in scored(Scorer("hostile_verifiers:says"), items, items)[0]] == ["", ""]
