"""Files of figures: JSON with what the figures depend on."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_figures(path: str, figures: dict[str, Any]) -> None:
    """Write figures as JSON."""
    Path(path).write_text(json.dumps(figures, indent=2) + "\n")
