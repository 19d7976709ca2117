"""Redaction of secrets: those of the environment, and passwords in addresses.

These are secret: the value of an environment variable whose name indicates it (HF_TOKEN, AWS_SECRET_ACCESS_KEY,
WANDB_API_KEY), the password in any address (http://user:password@host, also one in an environment variable), and text in
free-form options under such a name (reward.options.api_key). Values of fewer than 8 characters are not searched for in other
text, where they would occur by chance. Pure except for os.environ, which is read at each call.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
# Characters below which a secret is not searched for in other text.
_LEAST_CHARACTERS = 8

_NAME = re.compile(
    r"(?:^|[_-])(?:token|secret|password|passwd|pass|pat|key|api_?key|credentials?)$|secret|password", re.I
)
# From the beginning of a word, and possessive: a long one would take time quadratic in its length.
_ADDRESS = re.compile(r"(?P<scheme>(?<![a-z0-9+.-])[a-z0-9+.-]++://)(?P<user>[^\s/@:]*)(?P<password>:[^\s/]*)?@", re.I)
_QUERY = re.compile(r"(?P<name>[?&][\w-]*(?:token|secret|password|passwd|key)=)(?P<value>[^\s&#'\"]+)", re.I)


def secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return {secret: name of the variable that holds it, "" for a password in an address}, longest first.

    Args:
        environment: None: os.environ.
    """
    found: dict[str, str] = {}
    for name, value in (os.environ if environment is None else environment).items():
        if _NAME.search(name):
            found.setdefault(value, name)
        for address in _ADDRESS.finditer(value):
            found.setdefault((address["password"] or "")[1:], "")
    return {value: found[value] for value in sorted(found, key=len, reverse=True) if len(value) >= _LEAST_CHARACTERS}


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the text with *** in place of every secret; environment: None: os.environ."""
    for value in secrets(environment):
        text = text.replace(value, HIDDEN)
    return _hide_passwords(text)


def redact_value(key: str, value: Any) -> Any:
    """Return a configuration's value as it may be shown: text without secrets, *** for text under a secret's name."""
    if not isinstance(value, str):
        return value
    return HIDDEN if value and is_secret_key(key) else redact(value)


def refer(key: str, value: str) -> list[tuple[str, str]]:
    """Split a text so that it can be written and read again without its secrets.

    Returns:
        Parts: (text, ""), with *** for secrets that no variable holds, and ("", name of a variable that holds a secret).
    """
    for secret, name in secrets().items():
        before, found, after = value.partition(secret)
        if found and name:
            return [*refer(key, before), ("", name), *refer("", after)]
    return [(str(redact_value(key, value)), "")] if value else []


def is_secret_key(key: str) -> bool:
    """Return whether a dotted key lies in free-form options or fields and its name indicates a secret."""
    free = any(part in f".{key}" for part in (".options.", ".judge.request."))
    return free and bool(_NAME.search(key.rpartition(".")[2]))


def _hide_passwords(text: str) -> str:
    def hidden(address: re.Match[str]) -> str:
        # a user without a password may be a token
        shown = f"{address['user']}:{HIDDEN}" if address["password"] else HIDDEN
        return f"{address['scheme']}{shown}@"

    return _QUERY.sub(rf"\g<name>{HIDDEN}", _ADDRESS.sub(hidden, text))
