"""Expected failures: each message says what went wrong, where, and what to do, and is shown without a traceback."""

from __future__ import annotations


class KrayError(Exception):
    """A failure whose message says what went wrong, where, and what to do; shown to people without a traceback."""


class ConfigError(KrayError):
    """A configuration that cannot be run; names the key and, where known, file:line."""


class DataError(KrayError):
    """Prompts that cannot be used; names the file, the line and the field."""


class InfrastructureError(KrayError):
    """Something died, hung or could not be reached: worth another try, elsewhere or later."""


class StorageError(KrayError):
    """A checkpoint could not be written, or is not what was written."""
