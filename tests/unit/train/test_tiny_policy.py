"""The tiny policy is made once and is a folder like any other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from logged_lines import logged_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from kray.config.schema import TinyPolicyConfig
from kray.errors import ConfigError
from kray.prompts import demonstrations
from kray.prompts.arithmetic import CHARACTERS, KINDS, make_problems
from kray.train.tiny_files import TOOL_CHARACTERS, check_tiny, default_cache, digest, make_tokenizer, tokenizer_of
from kray.train.tiny_policy import CALCULATOR, IGNORED, _batches, _texts, ensure_tiny_policy

TINY = TinyPolicyConfig(
    hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=32, warmup_steps=3, batch_size=8
)


def test_made_once_and_reloads(tmp_path):
    with logged_lines() as lines:
        folder = ensure_tiny_policy(TINY, tmp_path)
    assert any("3/3" in line for line in lines)
    with logged_lines() as lines:
        assert ensure_tiny_policy(TINY, tmp_path) == folder
    assert not lines
    assert [path.name for path in (tmp_path / "policies").iterdir()] == [folder.name]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = CHARACTERS + "12+34="
    tokens = tokenizer(text).input_ids
    assert len(tokens) == len(text)
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode([*tokens, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer.chat_template is None
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_usual_policy_stays_what_it_was():
    """Folders made before there were habits and tasks to choose are still the ones that are found."""
    assert digest(TinyPolicyConfig()) == "db5fadba00ea69b86679"
    assert make_tokenizer().get_vocab() == {
        token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])
    }


def test_every_part_of_a_recipe_is_in_the_folders_name(monkeypatch):
    tasks = {"spell": {"task": "spell_backward", "max_word_len": 3}, "gcd": {"max_value": 9}}
    usual = {"tasks": tasks}
    others = (
        {**usual, "tasks": dict(reversed(tasks.items()))},  # other tokens, other questions
        {**usual, "tasks": tasks | {"gcd": {"max_value": 10}}},
        {**usual, "clean_share": 0.5},
        {"tasks": {}},
        {"habits": True},
        {"kinds": ["add1"]},
        {"draft_digits": 3},
        {"draft_digits": 4},
    )
    names = [digest(TinyPolicyConfig(**settings)) for settings in (usual, *others)]
    monkeypatch.setattr(demonstrations, "version", lambda package: "0.0")
    assert len({*names, digest(TinyPolicyConfig(**usual))}) == len(others) + 2


def test_a_policy_of_tasks_reads_their_questions(tmp_path):
    tasks = {"spell": {"task": "spell_backward", "max_word_len": 3}, "gcd": {"max_value": 9}}
    tiny = TinyPolicyConfig(**{**vars(TINY), "tasks": tasks})
    folder = ensure_tiny_policy(tiny, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for demonstration in demonstrations.make_demonstrations(tasks, 10, 0):
        tokens = tokenizer(demonstration.text).input_ids
        assert len(tokens) < 12
        assert tokenizer.decode(tokens) == demonstration.text


def test_settings_determine_weights_and_folder(tmp_path):
    first = ensure_tiny_policy(TINY, tmp_path / "a")
    second = ensure_tiny_policy(TINY, tmp_path / "b")
    assert first.name == second.name
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    other = TinyPolicyConfig(**{**vars(TINY), "seed": 1})
    assert ensure_tiny_policy(other, tmp_path / "a") != first


def test_a_policy_without_a_tool_is_the_one_that_caches_hold():
    """Written down once: the figures of configs/tiny.yaml are compared over time."""
    assert digest(TinyPolicyConfig()) == "db5fadba00ea69b86679"
    assert digest(TinyPolicyConfig(tool_share=0.2)) != digest(TinyPolicyConfig())
    assert len(make_tokenizer()) == 17


def test_verdicts_are_learned_and_what_they_judge_is_not():
    """Right at first, then little more often than by chance; on right and wrong answers alike."""
    kinds = ["add1", "sub2"]
    answers = {problem.text: problem.answer for problem in make_problems(kinds, 4000, 0, "train")}
    tiny = replace(TINY, check_share=0.5, warmup_steps=120, clean_share=0.5, kinds=kinds)
    tokenizer = tokenizer_of(tiny, [])
    found = Counter()
    for step, (input_ids, labels) in enumerate(_batches(tokenizer, tiny, _texts(tiny))):
        for tokens, learned in zip(input_ids.tolist(), labels.tolist(), strict=True):
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            places = [place for place, label in enumerate(learned) if label != IGNORED]
            said = tokenizer.decode(tokens[places[0] : places[-1]], skip_special_tokens=True)
            if "?" not in text:
                assert said == text.partition("=")[2]
                continue
            question, _, rest = text.partition("=")
            shown, _, verdict = rest.partition("?")
            assert said == verdict
            right = shown == answers[f"{question}="]
            assert len(shown) == len(answers[f"{question}="])
            found[step < 60, right, verdict == ("y" if right else "n")] += 1
    assert found[True, True, False] == found[True, False, False] == 0
    assert 0.4 < found[True, True, True] / (found[True, True, True] + found[True, False, True]) < 0.6
    later = found[False, True, True] + found[False, False, True]
    assert 0.5 < later / (later + found[False, True, False] + found[False, False, False]) < 0.7


def test_judging_is_refused_beside_what_it_is_not_made_for():
    with pytest.raises(ConfigError, match=r"model\.tiny\.check_share: answers to plain arithmetic are judged"):
        check_tiny(replace(TINY, check_share=0.2, tool_share=0.1))
    assert digest(replace(TINY, check_share=0.2)) != digest(TINY)


def test_calls_are_learned_and_results_are_not():
    """The warm-up's texts are conversations as the calculator would have them, and its words carry no loss either."""
    tokenizer, tiny = make_tokenizer(CHARACTERS + TOOL_CHARACTERS), replace(TINY, tool_share=0.6, warmup_steps=60)
    calls, wrong = 0, 0
    for step, (input_ids, labels) in enumerate(_batches(tokenizer, tiny, _texts(tiny))):
        for tokens, learned in zip(input_ids.tolist(), labels.tolist(), strict=True):
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            asked, _, answer = text.partition("=")
            places = [place for place, label in enumerate(learned) if label != IGNORED]
            if "[" not in text:
                assert tokenizer.decode([tokens[place] for place in places]) == f"{answer}<eos>"
                continue
            calls += 1
            call, _, rest = answer.partition("]")
            result, done = CALCULATOR.step(f"{call}]")
            assert not done
            assert rest.startswith(result)
            assert tokenizer.decode([tokens[place] for place in places]) == f"{call}]{rest.removeprefix(result)}<eos>"
            wrong += call != f"[{asked}"
            assert call == f"[{asked}" or step >= 40, "right calls come first"
    assert 0.5 < calls / 480 < 0.7
    assert 0.3 < wrong / (calls / 3) < 0.7


def test_drafts_are_learned_before_right_and_wrong_answers():
    tokenizer, tiny = make_tokenizer(), replace(TINY, draft_digits=2, habits=True, warmup_steps=40, clean_share=0.5)
    answers = {problem.text: problem.answer for problem in make_problems(KINDS, 40 * 8, tiny.seed, "train")}
    right, drafts = Counter(), Counter()
    for step, (input_ids, labels) in enumerate(_batches(tokenizer, tiny, _texts(tiny))):
        for tokens, learned in zip(input_ids.tolist(), labels.tolist(), strict=True):
            question, draft, answer = tokenizer.decode(tokens, skip_special_tokens=True).split("=")
            places = [place for place, label in enumerate(learned) if label != IGNORED]
            assert tokenizer.decode([tokens[place] for place in places]) == f"{draft}={answer}<eos>"
            drafts[len(draft)] += 1
            right[step < 20] += answer == answers[f"{question}="]
    assert right[True] == 160
    assert 40 < right[False] < 120
    assert set(drafts) == {0, 1, 2}


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kray.train.tiny_policy._train", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure_tiny_policy(TINY, tmp_path)
    assert not list((tmp_path / "policies").iterdir())


def test_settings_that_give_no_model_are_named(tmp_path):
    with pytest.raises(ConfigError, match="kv_heads"):
        ensure_tiny_policy(TinyPolicyConfig(heads=4, kv_heads=3), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.tiny\.draft_digits: drafts are of arithmetic"):
        ensure_tiny_policy(TinyPolicyConfig(draft_digits=2, tool_share=0.1), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.tiny\.layers"):
        ensure_tiny_policy(TinyPolicyConfig(layers=0), tmp_path)


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KRAY_CACHE", raising=False)
    assert default_cache() == tmp_path / "kray"
    monkeypatch.setenv("KRAY_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
