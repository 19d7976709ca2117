"""Nobody but its owner can read the token that gives access to a Ray."""

from __future__ import annotations

import logging
import os
import stat

import pytest

from kray.cluster.token import protect_token, token_file
from kray.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home folder, and a umask that keeps nothing from others."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_token_is_made_for_its_owner_alone():
    protect_token()
    file = token_file()
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    token = file.read_text()
    assert len(token) == 64
    int(token, 16)
    protect_token()
    assert file.read_text() == token
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]


def test_open_token_is_closed_and_reported_once(caplog):
    file = token_file()
    file.parent.mkdir(mode=0o777)
    file.write_text("0" * 64)
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        protect_token()
        protect_token()
    assert (mode(file), mode(file.parent)) == (0o600, 0o755)
    assert file.read_text() == "0" * 64
    assert [str(file) in record.message for record in caplog.records] == [True]
    assert "0" * 64 not in caplog.text


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "x" * 64), ("RAY_AUTH_TOKEN_PATH", "/x"), ("RAY_AUTH_MODE", "disabled")]
)
def test_no_file_where_ray_needs_none(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    protect_token()
    assert not token_file().parent.exists()


def test_unusable_home_is_one_error(home):
    token_file().parent.write_text("a file in the folder's place")
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN"):
        protect_token()
