"""Prompts that are made: arithmetic and reasoning_gym."""

import dataclasses

import pytest

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts import load_prompts
from kray.prompts.generated import _pack
from kray.rewards import score

TASKS = {"chain_sum": {"max_terms": 3}, "gcd": None, "basic_arithmetic": {}}


def gym(**options) -> SourceConfig:
    return SourceConfig(**{"kind": "reasoning_gym", "size": 20, "tasks": TASKS, **options})


def test_arithmetic_prompts():
    prompts = load_prompts(SourceConfig(size=30), "exact")
    assert [prompt.id for prompt in prompts] == [f"arithmetic/train/{i}" for i in range(30)]
    assert prompts[0].text.endswith("=")
    assert prompts[0].verifier == "exact"
    assert prompts[0].metadata == {"kind": "add1"}
    assert load_prompts(SourceConfig(size=30, limit=7), "exact") == prompts[:7]
    test = load_prompts(SourceConfig(size=30, split="test"), "exact")
    assert not {prompt.text for prompt in prompts} & {prompt.text for prompt in test}


def test_reasoning_gym_tasks_are_mixed_evenly():
    prompts = load_prompts(gym(), "exact")
    assert [prompt.id for prompt in prompts[:4]] == ["chain_sum:0", "gcd:0", "basic_arithmetic:0", "chain_sum:1"]
    assert len({prompt.id for prompt in prompts}) == 20
    assert {prompt.verifier for prompt in prompts} == {"reasoning_gym"}
    assert prompts[0].metadata["kind"] == "chain_sum"
    assert "num_terms" in prompts[0].metadata["difficulty"]


def test_reasoning_gym_is_seeded_and_its_splits_are_disjoint():
    assert load_prompts(gym(), "exact") == load_prompts(gym(), "exact")
    assert load_prompts(gym(limit=5), "exact") == load_prompts(gym(size=5), "exact")
    train = {prompt.text for prompt in load_prompts(gym(size=300), "exact")}
    assert train != {prompt.text for prompt in load_prompts(gym(size=300, seed=1), "exact")}
    assert not train & {prompt.text for prompt in load_prompts(gym(size=300, split="test"), "exact")}


def test_a_task_comes_in_several_difficulties_under_labels():
    tasks = {
        "short": {"task": "spell_backward", "max_word_len": 4},
        "long": {"task": "spell_backward", "min_word_len": 7},
    }
    prompts = load_prompts(gym(tasks=tasks), "exact")
    assert [prompt.id for prompt in prompts[:3]] == ["short:0", "long:0", "short:1"]
    assert [prompt.metadata["kind"] for prompt in prompts[:2]] == ["short", "long"]
    assert len(prompts[0].text) < len(prompts[1].text)
    plain = load_prompts(gym(tasks=tasks, verifier="exact"), "reasoning_gym")
    assert [prompt.verifier for prompt in plain] == ["exact"] * 20
    for prompt, other in zip(plain, prompts, strict=True):
        assert score("reasoning_gym", prompt.answer, other.answer).value == 1.0


@pytest.mark.parametrize(
    "task",
    [
        "chain_sum",
        "countdown",
        "graph_color",
        "arc_agi",
        "rearc",
        "zebra_puzzles",
        "knights_knaves",
        "mini_sudoku",
        "rush_hour",
    ],
)
def test_an_answer_carries_all_that_its_task_scores_by(task):
    """Also for tasks that compare tuples or keys that are not text, which plain JSON would change."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(task, seed=3, size=2)
    for entry in (dataset[0], dataset[1]):
        packed = _pack(task, entry)
        for given in (entry["answer"] or "nothing", "42"):
            expected = reasoning_gym.get_score_answer_fn(task)(answer=given, entry=entry)
            assert score("reasoning_gym", f"<answer>{given}</answer>", packed).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (gym(tasks={}), "tasks is empty"),
        (gym(tasks={"no_such_task": {}}), "tasks.no_such_task: reasoning_gym cannot make it: .*not registered"),
        (gym(tasks={"gcd": {"sizes": 3}}), "tasks.gcd: reasoning_gym cannot make it: .*sizes"),
        (gym(tasks={"gcd": {"seed": 3}}), "tasks.gcd.seed: set it on the source"),
        (gym(split="dev"), 'split "dev" is not one of train, test'),
        (gym(size=0), "size must be at least 1"),
        (SourceConfig(split="dev"), 'split "dev" is not one of train, test'),
        (SourceConfig(size=0), "size must be at least 1"),
    ],
)
def test_what_cannot_be_made_is_named(source, message):
    with pytest.raises(DataError, match=message):
        load_prompts(source, "exact")


def test_prompts_can_be_compared_and_copied():
    prompt = load_prompts(SourceConfig(size=1), "exact")[0]
    assert dataclasses.replace(prompt) == prompt


@pytest.mark.parametrize("verifier", ["exact", "math"])
def test_a_task_without_answers_needs_its_own_verifier(verifier):
    source = SourceConfig(kind="reasoning_gym", size=2, tasks={"propositional_logic": {}}, verifier=verifier)
    with pytest.raises(DataError, match=rf"tasks\.propositional_logic: entry 0 has no answer that verifier {verifier}"):
        load_prompts(source, "exact")
