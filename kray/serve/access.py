"""Who may use a service, and where it listens. No Ray here.

The key comes from KRAY_API_KEY, else from a file that only its owner can read and that is made when there is none. It is
shown on a terminal once, when it is made; nowhere else, since what a job prints is kept in logs.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

from kray.errors import ConfigError
from kray.serve.gate import LOOPBACK, Limits, digest

logger = logging.getLogger(__name__)

KEY_VARIABLE = "KRAY_API_KEY"
LEAST_CHARACTERS = 16  # of a key
ANSWER_S = 600.0  # for one request, after which Serve's proxy ends it


@dataclass(frozen=True, slots=True)
class Access:
    """How a service is reached. prefix: of its paths, / for none. replicas: (at least, at most). drain_s: that requests
    under way have when the service ends."""

    host: str = "127.0.0.1"
    port: int = 8000
    prefix: str = "/"
    with_key: bool = True
    limits: Limits = field(default_factory=Limits)
    replicas: tuple[int, int] = (1, 1)
    drain_s: float = 30.0
    start_s: float = 600.0

    def __post_init__(self) -> None:
        """Raises ConfigError that names the option."""
        least, most = self.replicas
        if not (self.with_key or self.host in LOOPBACK):
            raise ConfigError(f"--no-key goes with a loopback --host only ({', '.join(LOOPBACK)}), not {self.host}")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"--port must be from 1 to 65535, not {self.port}")
        if not self.prefix.startswith("/") or (self.prefix != "/" and self.prefix.endswith("/")):
            raise ConfigError(f"--prefix must begin with / and not end with it, not {self.prefix!r}")
        if not (0 <= least <= most and most >= 1):
            raise ConfigError(
                f"--min-replicas {least} and --max-replicas {most}: 0 <= min <= max, and at least 1, are needed"
            )
        if self.limits.concurrency < 1 or self.limits.body_bytes < 1:
            raise ConfigError("--concurrency and --request-mib must be positive")
        if not (self.drain_s >= 0 and self.start_s > 0):
            raise ConfigError("--drain-s must be at least 0 and --start-s above 0")

    @property
    def address(self) -> str:
        """What clients begin their URLs with. An address that means every interface is shown as this machine's own."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}{self.prefix.rstrip('/')}"


def key_file() -> Path:
    """Where a key that was made here is kept."""
    return cache_folder() / "serve.key"


def cache_folder() -> Path:
    """As kray/train/tiny_policy.py has it, which needs torch."""
    if os.environ.get("KRAY_CACHE"):
        return Path(os.environ["KRAY_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kray"


def key_digest(access: Access) -> str:
    """The digest of the key that clients must send, "" for none; says where the key is. Raises ConfigError.

    Takes the key out of this process's environment, so that no process started from here inherits it.
    """
    if not access.with_key:
        logger.info("key        none: requests to the loopback address are answered without one")
        return ""
    given = os.environ.pop(KEY_VARIABLE, "").strip()
    if given:
        if len(given) < LEAST_CHARACTERS or not given.isascii():
            raise ConfigError(f"{KEY_VARIABLE} must hold at least {LEAST_CHARACTERS} ASCII characters")
        logger.info(f"key        that of {KEY_VARIABLE}")
        return digest(given)
    file = key_file()
    made = _make(file)
    if made and sys.stdout.isatty():
        print(f"key        in {file}: {made} (shown this once)", flush=True)
    else:
        logger.info(f"key        in {file}")
    return digest(made or _read(file))


def _make(file: Path) -> str:
    """A new key in a new file, "" when the file is there already."""
    key = secrets.token_urlsafe(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return ""
    except OSError as error:
        raise ConfigError(f"the key cannot be kept in {file}: {error.strerror}; give one in {KEY_VARIABLE}") from error
    with os.fdopen(descriptor, "w") as out:
        out.write(key + "\n")
    return key


def _read(file: Path) -> str:
    try:
        found = file.stat()
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the key in {file} cannot be read: {error}; remove the file to have a new one made"
        ) from error
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{file} can be read by others (chmod 600 it, or remove it to have a new key made)")
    if len(key) < LEAST_CHARACTERS:
        raise ConfigError(f"{file} holds no key of {LEAST_CHARACTERS} characters; remove it to have a new one made")
    return key
