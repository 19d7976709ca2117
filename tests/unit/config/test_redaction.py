"""Secrets are kept out of everything that is written, and what was written can be loaded again."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.config import KrayConfig, changed_keys, flat, load_config, redact, to_yaml
from kray.errors import ConfigError

PLANTED = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOp",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfi",
    "WANDB_API_KEY": "0123456789abcdef0123",
    "MLFLOW_TRACKING_URI": "https://me:pass-of-mlflow@mlflow.example.org",
    "DB_PASSWORD": "p4ss${w0rd}x",
}
SECRETS = [PLANTED[name] for name in PLANTED if name != "MLFLOW_TRACKING_URI"] + ["pass-of-mlflow"]


@pytest.fixture
def planted(monkeypatch):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pw@host/a", "http://user:***@host/a"),
        ("postgresql://user:p:w@x@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("https://ghp_0123456789@host", "https://***@host"),
        ("http://:pw@host and ftp://a:b@c", "http://:***@host and ftp://a:***@c"),
        ("https://host/api?user=a&token=abc&x=1", "https://host/api?user=a&token=***&x=1"),
        ("http://host:5000/path@v1", "http://host:5000/path@v1"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("me@host.org, 12:30, a/b@c", "me@host.org, 12:30, a/b@c"),
        ("a hf_AbCdEfGhIjKlMnOp b", "a *** b"),
        ("pass-of-mlflow", "***"),
    ],
)
def test_passwords_and_secrets_of_the_environment_are_hidden(planted, text, shown):
    assert redact(text) == shown


def test_text_that_only_resembles_a_secret_stays():
    environment = {
        "TOKENIZERS_PARALLELISM": "false",
        "A_TOKEN": "short",
        "MAX_TOKENS": "1638400000",
        "HOME": "/home/somebody",
    }
    text = "false short 1638400000 /home/somebody max_tokens=16"
    assert redact(text, environment) == text


def config_with_secrets(tmp_path, *overrides) -> KrayConfig:
    file = tmp_path / "given.yaml"
    file.write_text(
        "model: {path: 'x'}\n"
        "reward:\n  verifier: 'mine:judge'\n"
        "  options: {api_key: '${oc.env:WANDB_API_KEY}', tokens: 3, names: ['${oc.env:HF_TOKEN}']}\n"
        "track: {uri: 'http://me:${oc.env:DB_PASSWORD}@host'}\n"
        "prompts: {train: {system: 'key ${oc.env:HF_TOKEN}.'}}\n"
    )
    return load_config(file, list(overrides))


def test_a_written_configuration_refers_to_the_environment(planted, tmp_path):
    config = config_with_secrets(tmp_path)
    assert config.track.uri == "http://me:p4ss${w0rd}x@host"
    text = to_yaml(config)
    assert not [secret for secret in SECRETS if secret in text]
    assert "${oc.env:WANDB_API_KEY}" in text
    kept = tmp_path / "kept.yaml"
    kept.write_text(text)
    assert load_config(kept) == config
    assert changed_keys(load_config(kept), config) == []


def test_parameters_and_changes_show_no_secret(planted, tmp_path):
    config = config_with_secrets(tmp_path)
    other = config_with_secrets(
        tmp_path, "track.uri=http://me:another-password@host", "reward.options.api_key=sk-literal"
    )
    shown = repr([flat(config), flat(other), changed_keys(config, other)])
    assert not [secret for secret in [*SECRETS, "another-password", "sk-literal"] if secret in shown]
    assert flat(config)["track.uri"] == "http://me:***@host"
    assert flat(config)["reward.options.api_key"] == "***"
    assert flat(config)["reward.options.tokens"] == 3
    assert flat(config)["prompts.max_tokens"] == 1024


def test_a_secret_without_a_variable_must_be_given_again(planted, tmp_path):
    overrides = ["track.uri=http://me:another-password@host", "reward.options.api_key=sk-literal"]
    kept = tmp_path / "kept.yaml"
    kept.write_text(to_yaml(config_with_secrets(tmp_path, *overrides)))
    assert "another-password" not in kept.read_text()
    with pytest.raises(ConfigError) as caught:
        load_config(kept)
    lines = str(caught.value).splitlines()
    assert [line.split(" holds ***")[0] for line in lines] == ["reward.options.api_key", "track.uri"]
    assert all("kept.yaml:" in line for line in lines)
    assert load_config(kept, overrides) == config_with_secrets(tmp_path, *overrides)


secret_names = st.sampled_from(["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "X_PASSWORD", "OPENAI_API_KEY", "GITHUB_PAT"])
secret_values = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\*"), min_size=8, max_size=20
)


@settings(max_examples=200)
@given(st.dictionaries(secret_names, secret_values, min_size=1), st.text(max_size=20), st.data())
def test_no_secret_survives_anywhere(environment, around, data):
    value = data.draw(st.sampled_from(sorted(environment.values())))
    for text in (value, around + value + around, f"http://u:{value}@h", f"{value}{value}", repr([around, value])):
        assert value not in redact(text, environment)


@pytest.mark.parametrize("text", ["x" * 200_000, "x://" * 50_000, "x:" * 100_000, "?key" * 50_000, "?" + "a" * 200_000])
def test_long_texts_are_redacted_soon(text):
    started = time.process_time()
    redact(text + " http://me:password@host")
    assert time.process_time() - started < 2
