"""Text of any kind, from everything that may write it, to everything that shows, keeps or sends it; see kray/text.py."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from chat_tokenizers import make_tokenizer
from coin_flip_training import Record, begin, configured, flip, train
from hostile_text import ANY_TEXT, HOSTILE, is_legible, is_one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logged_lines import logged_lines
from rich.console import Console as Terminal

from kray.compare.run import ChildConsole
from kray.config import KrayConfig
from kray.config.players import EndpointConfig
from kray.driver.actor import RunConsole
from kray.driver.console import end_report, evaluation_line
from kray.driver.evaluation import _summarise
from kray.driver.evaluation_record import table
from kray.driver.held_out import compared_answers
from kray.driver.output import Console
from kray.driver.state import RunState
from kray.driver.tables import sample_rows
from kray.environments.endpoint import EndpointPlayer, _message
from kray.environments.host import _describe
from kray.environments.role_turns import RoleTurn
from kray.environments.turns import Turn, checked_observation, reward_turn
from kray.environments.workers import _turn
from kray.errors import DataError, KrayError
from kray.launch.main import guarded
from kray.monitor.status import summary as status_of
from kray.monitor.view import render
from kray.prompts.quarantine import Quarantine
from kray.prompts.tokenize import decoded, encode_answer
from kray.records import Allocation, Prompt, Rollout, RolloutGroup
from kray.reward_settings import JudgeConfig, reward_functions
from kray.rewards import Reward
from kray.rewards.composed import combine
from kray.rewards.judge import _message as judge_message
from kray.rewards.judge import _reply
from kray.rewards.judge_text import judge_request, read_verdict
from kray.rewards.outcome import Outcome
from kray.rewards.remote import _outcome, _refusal
from kray.rewards.worker import _encode_reply, _score, take_replies
from kray.rollout.collected import CollectedStep, check_failures
from kray.rollout.health import Health
from kray.rollout.outcome import Failure
from kray.text import make_legible
from kray.tracking.tables import table_json

TOKENIZER = make_tokenizer()
JUDGE = JudgeConfig(url="http://127.0.0.1:1/v1", model="m")


def scored(function) -> Outcome:
    """What the scorer makes of a verifier, through the frames of a scoring process."""
    (reply,) = take_replies(bytearray(_encode_reply(_score(function, "mine:judge", "", "", {}))))
    return Outcome(reply[1], reply[2]) if reply[0] == "scored" else Outcome(None, error=reply[1])


def raised(text: str):
    def fails(response, answer):
        raise RuntimeError(text)

    return fails


def verl(text: str):
    def compute_score(solution_str, ground_truth):
        return {"score": 1.0, text: text}

    return compute_score


def caught(error: type[Exception], call, *arguments) -> str:
    with pytest.raises(error) as found:
        call(*arguments)
    return str(found.value)


def details_of(text: str) -> list[str]:
    """Details of rewards by everything that writes one."""
    outcomes = [
        scored(lambda response, answer: Reward(1.0, text)),
        scored(verl(text)),
        _outcome({"reward": 1.0, "detail": text}),
        combine(reward_functions({"exact": 1}), {"exact": Outcome(1.0, text)}),
        Outcome(*_verdict(f"{text} Score: 3")),
    ]
    turn = Turn.read(json.loads(json.dumps(reward_turn(Reward(1.0, text), "E").plain())))
    forged = Turn.read({**Turn(b"").plain(), "detail": text})
    roles = RoleTurn.read({"state": "", "role": "", "observed": [], "ended": True, "rewards": {"a": [1.0, text]}})
    assert all(outcome.reward is not None for outcome in outcomes)
    return [*(outcome.detail for outcome in outcomes), turn.detail, forged.detail, roles.rewards["a"][1]]


def _verdict(reply: str) -> tuple[float, str]:
    verdict = read_verdict(JUDGE, reply)
    return verdict.value, verdict.detail


def reasons_of(text: str) -> list[str]:
    """Reasons of failures by everything that writes one, as the collector records them."""
    reply = json.loads(json.dumps({"choices": [{"message": {"content": text}}]}))
    outcomes = [
        scored(raised(text)),
        scored(lambda response, answer: text),
        _outcome({"reward": None, "error": text}),
        _outcome({"reward": text, "detail": text}),
        _outcome({text: text}),
        combine(reward_functions({"exact": 1}), {"exact": Outcome(None, error=text)}),
        Outcome(None, error=_refusal(json.dumps({"error": {"message": text}}))[0]),
        Outcome(None, error=judge_message(text)),
        Outcome(None, error=caught(ValueError, read_verdict, JUDGE, _reply(reply)[0].replace("core", ""))),
        Outcome(None, error=caught(ValueError, _reply, {"choices": [text]})),
    ]
    reasons = [f"reward: {outcome.error}" for outcome in outcomes]
    reasons += [
        str(_turn(Outcome(None, error=text))),
        _describe(RuntimeError(text)),
        _message(text),
        caught(ValueError, checked_observation, [{"role": text, text: 3}]),
        caught(DataError, EndpointPlayer(EndpointConfig("http://x", "m"), "")._text, {"choices": [text]}),
        f"failed 3 times, the last time: {text}",
    ]
    health = Health(1)
    health.mark_lost(text)
    return [Failure("p", 1, reason).why for reason in [*reasons, health.reason]]


def texts_of(text: str) -> list[str]:
    """Texts of policies and opponents."""
    tokenizer = SimpleNamespace(decode=lambda tokens, **_: text)
    reply = json.loads(json.dumps({"choices": [{"message": {"content": text}}]}))
    player = EndpointPlayer(EndpointConfig("http://x", "m"), "")
    return [decoded([1], tokenizer), player._text(reply)]


def collected_of(text: str) -> CollectedStep:
    """A step in which everything that may be foreign text is this text."""
    prompt = Prompt(f"p {text}", text, "exact", text, text=text, metadata={"kind": text})
    details, texts = details_of(text), texts_of(text)
    rollouts = [
        Rollout(prompt.id, i, np.zeros(3, np.int32), np.zeros(3, np.float32), "stop", (), response, 1.0, detail, {})
        for i, (detail, response) in enumerate(zip(details, texts * len(details), strict=False))
    ]
    one = np.ones(1)
    allocation = Allocation([prompt.id], len(rollouts) * one.astype(np.int64), one, one, one)
    failures = [replace(Failure(prompt.id, 1, reason)) for reason in reasons_of(text)]
    return CollectedStep(allocation, [RolloutGroup(prompt, (1, 2), rollouts, 1.0)], failures)


def ascii_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "ascii")


@given(ANY_TEXT)
def test_what_leaves_verifiers_judges_environments_and_engines_is_clean(text):
    for line in (*details_of(text), *reasons_of(text)):
        assert is_one_line(line, 2000)
    for response in texts_of(text):
        assert response.encode().decode() == response
    body, _ = judge_request(JUDGE, Prompt("p", text, "judge", "s", text=text), text)
    json.dumps(body).encode()


@given(ANY_TEXT, st.booleans())
@settings(max_examples=50)
def test_observations_are_tokenized_with_a_mark_for_halves_of_characters(text, chat):
    observation = ({"role": "user", "content": text},) if chat else text
    turn = Turn.read(json.loads(json.dumps(Turn(b"", checked_observation(observation)).plain())))
    assert turn.observation == checked_observation(turn.observation)
    try:
        tokens = encode_answer(turn.observation, -1, TOKENIZER, "p", {})
    # The template's marks are private-use characters.
    except DataError:
        assert "\ue000" in text
        return
    read = TOKENIZER.decode(tokens)
    assert ("\ufffd" in read) == ("\ufffd" in str(turn.observation))


@given(ANY_TEXT)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tables_lines_reports_and_answers_take_it(tmp_path, text):
    collected = collected_of(text)
    rows = sample_rows(collected, 4, 0, lambda tokens: text)
    folder = tmp_path / "evaluations"
    folder.mkdir(exist_ok=True)
    evaluation = _summarise(collected, collected, 1, lambda tokens: text)
    for name, found in (("step-000001", evaluation.rows), ("step-000002", evaluation.rows), ("samples", rows)):
        (folder / f"{name}.json").write_text(table_json(found), encoding="utf-8")
        data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["data"]
        assert all(is_legible(cell) for row in data for cell in row if isinstance(cell, str))

    quarantine = Quarantine(1)
    quarantine.visited([], {f.prompt_id: (1, f.why) for f in collected.failures})
    state = RunState(quarantine=quarantine.to_dict(), lengths={collected.groups[0].prompt.id: 1.0})
    (tmp_path / "state.json").write_text(json.dumps(state.to_dict(), indent=2) + "\n")
    again = RunState.from_dict(json.loads((tmp_path / "state.json").read_text()))
    quarantine.load_dict(again.quarantine)

    summary = SimpleNamespace(
        answers=compared_answers(tmp_path), accuracy_before=None, accuracy_after=float("nan"), greedy_after=None,
        shares={"idle": 0.0}, restarts={}, left_out=dict(quarantine.left_out), folder=str(tmp_path), stopped="", steps=1,
        of_steps=1, elapsed_s=1.0, rollouts=1, tokens=1, test_prompts=1, effective=0.0, engine_deaths=0, open_command="",
        charts_url="",
    )  # fmt: skip
    report = end_report(summary)
    assert is_legible(report)
    assert "not measured after" in report
    lines = [report, table(evaluation), evaluation_line(1, evaluation, "", 1.0)]
    with logged_lines() as logged, pytest.raises(KrayError) as error:
        check_failures(collected.failures, 1, 0.0)
    make_legible(error.value)
    for sent in (str(error.value), *(asdict(Outcome(1.0, line)) for line in logged)):
        msgpack.packb(sent)
        json.dumps(sent, ensure_ascii=False).encode()
    for line in (*lines, *logged, text):
        console_takes(line, tmp_path)


def console_takes(line: str, folder: Path) -> None:
    """Print a line on everything that prints lines; Ray sends the lines of a driver as MessagePack."""
    status = SimpleNamespace(last_line="")
    driver = RunConsole(status)
    ChildConsole(Console(), "child: ", folder / "child.log").print(line, urgent=True)
    driver.print(line)
    driver.close()

    async def streamed() -> list[str]:
        return [sent async for sent in driver.lines()]

    (sent,) = asyncio.run(streamed())
    assert sent == status.last_line
    assert is_legible(sent)
    msgpack.packb(sent)
    pickle.loads(pickle.dumps(sent))
    engine = {"name": "e", "state": "dead", "idle": None, "tasks": 0, "rollouts": 0, "tokens": 0, "version": 0}
    found = status_of(folder, KrayConfig(), {}, {}) | {"state": line, "folder": line, "run": line, "said": line}
    found |= {"engines": [{**engine, "restarts": 1, "lost": line}]}
    Terminal(file=io.TextIOWrapper(io.BytesIO(), "utf-8")).print(render(found))


@pytest.mark.usefixtures("same_signals")
@pytest.mark.parametrize("text", HOSTILE)
def test_a_job_ends_with_its_message_whatever_that_holds_and_whatever_the_terminal_takes(text, monkeypatch):
    def run(main):
        out, err = ascii_stream(), ascii_stream()
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        with pytest.raises(SystemExit) as ended:
            guarded(main)
        return ended.value.code, out.buffer.getvalue().decode("ascii"), err.buffer.getvalue().decode("ascii")

    def fails():
        print(text, "±")
        Console().print(f"{text} ±")
        raise DataError(text)

    code, out, err = run(fails)
    assert code == 2
    assert out.count("\\xb1") == 2
    assert err.startswith("data error: ")


def test_a_run_that_text_has_ended_is_resumed(tmp_path, monkeypatch):
    """Half a character in a detail ended the writing of a table, at each resume again."""

    def hostile_flip(*arguments) -> Rollout:
        return replace(flip(*arguments), text="\ud800", reward_detail="\ud800\0")

    class Before(Record):
        def log_table(self, step, rows, name="samples"):
            if name == "samples":
                (tmp_path / "table.json").write_text(json.dumps(list(rows), ensure_ascii=False), encoding="utf-8")

    class Now(Record):
        def log_table(self, step, rows, name="samples"):
            (tmp_path / "table.json").write_text(table_json(rows), encoding="utf-8")

    monkeypatch.setattr("coin_flip_training.flip", hostile_flip)
    config = configured(tmp_path, "run.steps=5")
    with pytest.raises(UnicodeEncodeError):
        train(begin(tmp_path, config, Before()))
    training = begin(tmp_path, config, record := Now())
    assert 0 < training.state.step < 5
    assert train(training) is None
    assert max(record.steps) == 5
