"""Names that MLflow accepts: the same for equal texts, others for others, and valid ones as they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.config import KrayConfig, ModelConfig, TrackConfig, load_config
from kray.config.validation import problems
from kray.errors import ConfigError, KrayError
from kray.prompts import sources
from kray.tracking import METRICS, names
from kray.tracking.names import LONGEST, is_valid, name_of, named

ANY = st.text(max_size=12) | st.text("ab/.é数 ?!@", max_size=8) | st.text("a/", min_size=240, max_size=300)


def mlflow_takes(name: str) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric

    try:
        _validate_metric(name, 1.0, 1, 1)
    except MlflowException:
        return False
    return True


@given(ANY)
def test_mlflow_takes_every_name(text):
    name = name_of(text)
    assert is_valid(name)
    assert mlflow_takes(name)
    assert name_of(name) == name
    assert (name == text) == is_valid(text)


@given(st.lists(ANY, unique=True, max_size=20))
def test_different_texts_have_different_names(texts):
    assert len(set(named(texts).values())) == len(texts)


def test_names_of_these_kinds_stay_legible():
    assert name_of("eval/accuracy_算术") == "eval/accuracy_算术"
    assert name_of("tasks.what is 3 + 4?").startswith("tasks.what is 3 _ 4_-")
    assert name_of("../a//b/").startswith("a/b-")
    assert name_of("x" * 300).startswith("x" * (LONGEST - 9))
    assert len(name_of("x" * 300)) == LONGEST
    assert all(name_of(name) == name for name in METRICS if "<" not in name)


def test_two_texts_with_one_name_are_named(monkeypatch):
    monkeypatch.setattr(names, "name_of", lambda text: text[:1])
    with pytest.raises(KrayError, match=r"'ab' and 'ac' would both be recorded as 'a'"):
        named(["ab", "b", "ac"])


def config_of(tmp_path, text: str):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{tiny: {{}}}}\n{text}\n")
    return load_config(str(file), [])


def test_a_test_set_takes_no_other_metrics_name(tmp_path):
    prefix = "eval/accuracy_"
    assert {name.removeprefix(prefix) for name in METRICS if name.startswith(prefix) and "<" not in name} == set(
        sources.TAKEN
    )
    for name in sources.TAKEN:
        config = config_of(tmp_path, f"prompts: {{more_tests: {{{name}: {{size: 4}}}}}}")
        with pytest.raises(ConfigError, match=rf"prompts\.more_tests\.{name}: eval/accuracy_{name} is the name"):
            sources.test_sources(config.prompts)


def test_keys_with_dots_that_fall_together_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"reward\.options\.a\.b is given twice, by keys of mappings that hold a dot"):
        config_of(tmp_path, 'reward: {options: {"a.b": 1, a: {b: 2}}}')


@given(st.text("ab/:.%\"'é ", max_size=6))
def test_a_models_name_is_refused_as_mlflow_would(name):
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_logged_model_name, _validate_model_name

    config = KrayConfig(model=ModelConfig(path="x"), track=TrackConfig(model_name=name))
    wrong = [problem for problem in problems(config) if problem.keys == ("track.model_name",)]
    try:
        _validate_logged_model_name(name or "run")
        _validate_model_name(name or "run")
        assert not wrong
    except MlflowException:
        assert wrong
