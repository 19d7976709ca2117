"""Who may use a service, and where it listens. Does not import Ray.

The key comes from KRAY_API_KEY, else from a file that only its owner can read and that is created if it does not exist. It
is printed once, when it is created, and only on a terminal, because the output of jobs is kept in logs.
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
# Characters of the shortest key.
MIN_KEY_CHARACTERS = 16
# Seconds for one request, after which Serve's proxy ends it.
REQUEST_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Access:
    """How a service is reached.

    Attributes:
        host: Address that it listens on.
        port: Port that it listens on.
        prefix: Prefix of its paths, "/" for none.
        with_key: Whether requests must carry a key.
        limits: Limits of requests.
        replicas: (fewest, most) replicas.
        drain_s: Seconds that running requests have when the service stops.
        start_s: Seconds that replicas have to start.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    prefix: str = "/"
    with_key: bool = True
    limits: Limits = field(default_factory=Limits)
    replicas: tuple[int, int] = (1, 1)
    drain_s: float = 30.0
    start_s: float = 600.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: A value is not valid; the message names its option.
        """
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
        """Base of the URLs for clients on this machine, also where the service listens on every interface."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}{self.prefix.rstrip('/')}"


def key_file() -> Path:
    """Return the file of a key that was created here."""
    return cache_folder() / "serve.key"


def cache_folder() -> Path:
    """Return kray's cache folder, the one of kray/train/tiny_policy.py, which needs torch."""
    if os.environ.get("KRAY_CACHE"):
        return Path(os.environ["KRAY_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kray"


def key_digest(access: Access) -> str:
    """Return the digest of the key that clients must send and log where the key is.

    Removes the key from this process's environment, so that no process started from here inherits it.

    Args:
        access: How the service is reached.

    Returns:
        SHA-256 in hexadecimal; "" where no key is needed.

    Raises:
        ConfigError: The key is too short, or its file cannot be read or created.
    """
    if not access.with_key:
        logger.info("key        none: the service is open to requests to the loopback address")
        return ""
    given = os.environ.pop(KEY_VARIABLE, "").strip()
    if given:
        if len(given) < MIN_KEY_CHARACTERS or not given.isascii():
            raise ConfigError(f"{KEY_VARIABLE} must hold at least {MIN_KEY_CHARACTERS} ASCII characters")
        logger.info(f"key        from {KEY_VARIABLE}")
        return digest(given)
    file = key_file()
    created = _create(file)
    if created and sys.stdout.isatty():
        print(f"key        in {file}: {created} (shown this once)", flush=True)
    else:
        logger.info(f"key        in {file}")
    return digest(created or _read(file))


def _create(file: Path) -> str:
    """Write a new key to a new file and return it; "" when the file exists."""
    key = secrets.token_urlsafe(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return ""
    except OSError as error:
        raise ConfigError(f"cannot write a key to {file}: {error.strerror}; set {KEY_VARIABLE}") from error
    with os.fdopen(descriptor, "w") as out:
        out.write(key + "\n")
    return key


def _read(file: Path) -> str:
    try:
        found = file.stat()
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the key in {file}: {error}; remove the file to have a new one created"
        ) from error
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{file} can be read by others (chmod 600 it, or remove it to have a new key created)")
    if len(key) < MIN_KEY_CHARACTERS:
        raise ConfigError(
            f"{file} holds no key of {MIN_KEY_CHARACTERS} characters; remove it to have a new one created"
        )
    return key
