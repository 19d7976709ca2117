"""Who can be hit: the processes of a run, found by their actors' names. Needs a connection to the run's Ray."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass

import ray


@dataclass(frozen=True, slots=True)
class Target:
    """A live actor's process on this machine."""

    name: str
    pid: int
    node_id: str

    def send(self, sign: signal.Signals) -> bool:
        """Whether the process was still there to get the signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, sign)
            return True
        return False


def actors(*parts: str) -> list[Target]:
    """Return the live actors with all these in their names, by name."""
    found = ray._private.state.actors().values()
    live = [actor for actor in found if actor["State"] == "ALIVE" and actor["Pid"]]
    named = [actor for actor in live if all(part in actor["Name"] for part in parts)]
    return sorted((Target(a["Name"], a["Pid"], a["Address"]["NodeID"]) for a in named), key=lambda target: target.name)
