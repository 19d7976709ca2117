"""Where a service listens and whose key opens it."""

from __future__ import annotations

import os
import stat

import pytest
from logged_lines import logged_lines

from kray.driver.output import Console, logged_to
from kray.errors import ConfigError
from kray.serve.access import KEY_VARIABLE, Access, key_digest, key_file
from kray.serve.gate import digest


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KRAY_CACHE", str(tmp_path))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"host": "0.0.0.0", "with_key": False}, "--no-key"),
        ({"host": "10.0.0.1", "with_key": False}, "--no-key"),
        ({"port": 0}, "--port"),
        ({"prefix": "x"}, "--prefix"),
        ({"prefix": "/x/"}, "--prefix"),
        ({"replicas": (2, 1)}, "--min-replicas"),
        ({"replicas": (0, 0)}, "--max-replicas"),
        ({"drain_s": -1}, "--drain-s"),
    ],
)
def test_invalid_option_is_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        Access(**changes)


def test_address_is_reachable_by_clients():
    assert Access().address == "http://127.0.0.1:8000"
    assert Access(host="0.0.0.0", prefix="/p").address == "http://127.0.0.1:8000/p"
    assert Access(host="::1", with_key=False).address == "http://[::1]:8000"


def test_key_variable_is_removed_and_never_shown(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "planted-planted-planted")
    with logged_lines() as lines:
        assert key_digest(Access()) == digest("planted-planted-planted")
    assert KEY_VARIABLE not in os.environ
    assert not any("planted-planted" in line for line in lines)
    assert not key_file().exists()


@pytest.mark.parametrize("bad", ["short", "a" * 15, "é" * 20])
def test_weak_key_is_refused_without_being_shown(monkeypatch, bad):
    monkeypatch.setenv(KEY_VARIABLE, bad)
    with pytest.raises(ConfigError, match=KEY_VARIABLE) as caught:
        key_digest(Access())
    assert bad not in str(caught.value)


@pytest.mark.parametrize("terminal", [True, False])
def test_created_key_is_private_and_shown_once(monkeypatch, capsys, terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    with logged_to(Console()):
        first = key_digest(Access())
        assert key_digest(Access()) == first
    key = key_file().read_text().strip()
    assert first == digest(key)
    assert len(key) >= 32
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    lines = capsys.readouterr().out.splitlines()
    assert [key in line for line in lines] == [terminal, False]
    assert all(str(key_file()) in line for line in lines)


def test_readable_or_short_key_file_is_refused():
    key_digest(Access())
    key_file().chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        key_digest(Access())
    key_file().chmod(0o600)
    key_file().write_text("")
    with pytest.raises(ConfigError, match="holds no key"):
        key_digest(Access())
    assert key_digest(Access(with_key=False)) == ""
