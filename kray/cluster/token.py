"""The token with which the processes and clients of a Ray started here know each other.

Whoever reads it can run code as its owner. Ray creates the file for every user of the machine to read; here it is created, or
made again, so that only its owner can. Does not import Ray.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from pathlib import Path

from kray.errors import ConfigError

logger = logging.getLogger(__name__)

# Ray's variables: whether a token is needed, the token itself, and a file with it.
AUTH_MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
# Random bytes of a token, as Ray's own have.
TOKEN_BYTES = 32


def token_file() -> Path:
    """Return the file that Ray takes a user's token from."""
    return Path.home() / ".ray" / "auth_token"


def protect_token() -> None:
    """Create this user's token where Ray would, or close an existing file to others; before a Ray is started here.

    A token that the environment gives is left as it is.

    Raises:
        ConfigError: The file or its folder cannot be created or closed to others.
    """
    if os.environ.get(TOKEN) or os.environ.get(TOKEN_FILE):
        return
    file, needed = token_file(), os.environ.get(AUTH_MODE, "token").lower() == "token"
    if not (needed or file.exists()):
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Who may write to the folder could put another token in the file's place.
        _close(file.parent, 0o022)
        if not _create(file) and _close(file, 0o077):
            logger.warning(
                f"{file} could be read by other users of this machine until now, and with it they can run code in your Rays: "
                "stop these and remove the file to have a new one made"
            )
    except OSError as error:
        raise ConfigError(
            f"Ray's token {file} cannot be kept from other users ({error.strerror or error}); set {TOKEN} instead"
        ) from error


def _create(file: Path) -> bool:
    """Create the file with a new token, complete or not at all; return whether there was none."""
    if file.exists():
        return False
    unfinished = file.with_name(f".{file.name}-{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(TOKEN_BYTES))
        # Two processes may start at once: a link, unlike a rename, replaces nothing.
        os.link(unfinished, file)
        return True
    except FileExistsError:
        return False
    finally:
        unfinished.unlink()


def _close(path: Path, bits: int) -> bool:
    """Take permission bits off a path; return whether it had any of them."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & bits:
        path.chmod(mode & ~bits)
    return bool(mode & bits)
