"""Faults at random moments of a run, one after the other, and how long the run took to get over each.

A fault is due when the run reaches its step (random, seeded); then it waits for the phase that it wants to hit. A run is over a
fault when it has noticed it (its log says so, or a later driver is at work) and has then completed a step with all its
engines serving.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from kray.faults import rewards
from kray.faults.cluster import Nodes, Server
from kray.faults.instrumented import CLOCK, read
from kray.faults.targets import Target, actors
from kray.faults.unwritable import read_only, writable
from kray.train.checkpoints import newest_checkpoint

logger = logging.getLogger(__name__)

PHASE_WAIT_S = 20.0  # for the phase that a fault wants to hit; then it comes anyway
RECOVERY_WAIT_S = 240.0
BALLAST = "ballast"
# Seconds for which a driver is stopped, and by which its wall clock is made to jump.
STOPPED_S = 20.0
JUMPS_S = (-86400.0, -3600.0, 3600.0, 86400.0)
# Kind -> its share among the faults: those that cost the run most come least.
KINDS = {
    "engine killed, idle": 2,
    "engine killed, generating": 3,
    "engine killed, syncing": 2,
    "engine stopped": 1,
    "learner rank killed": 4,
    "scorer process killed": 7,
    "driver killed": 2,
    "driver stopped for a while": 1,
    "driver killed, MLflow away": 1,
    "wall clock jumps": 4,
    "node removed": 1,
    "node preempted": 1,
    "MLflow server killed": 2,
    "checkpoint disk full": 5,
    "checkpoints read-only": 2,
    "newest checkpoint corrupt": 2,
    "reward raises": 10,
    "reward hangs": 8,
    "reward says no text": 4,
    "reward is no reward": 4,
}
PHASES = {"engine killed, generating": "collect", "engine killed, syncing": "sync", "learner rank killed": "update"}
DEFECTS = {
    "reward raises": rewards.RAISE,
    "reward hangs": rewards.HANG,
    "reward says no text": rewards.TEXT,
    "reward is no reward": rewards.VALUE,
}


@dataclass
class Fault:
    """step: of the run at which it is due. recovered_s: None while the run is not over it."""

    kind: str
    step: int
    hit: str = ""  # who
    at: float = 0.0  # monotonic seconds
    recovered_s: float | None = None
    before: dict[str, Any] = field(default_factory=dict)
    after_step: int = 0  # learned when it had been done


def plan_faults(count: int, steps: int, seed: int, chosen: Collection[str] = tuple(KINDS)) -> list[Fault]:
    """`count` faults of the kinds by their shares, in random order, at random steps; the last tenth is for late ones."""
    shares = {kind: share for kind, share in KINDS.items() if kind in chosen}
    rng, total = Random(seed), sum(shares.values())
    kinds = [kind for kind, share in shares.items() for _ in range(max(1, round(count * share / total)))]
    kinds += rng.choices(list(shares), list(shares.values()), k=max(0, count - len(kinds)))
    rng.shuffle(kinds)
    kinds = kinds if len(kinds) <= count else _trimmed(kinds, count)
    at = sorted(rng.randint(1, max(1, steps * 9 // 10 - 4)) for _ in kinds)
    return [Fault(kind, step) for kind, step in zip(kinds, at, strict=True)]


def _trimmed(kinds: list[str], count: int) -> list[str]:
    while len(kinds) > count:
        kinds.remove(max(set(kinds), key=lambda kind: (kinds.count(kind), kind)))
    return kinds


class Injector:
    """What one run can be hit with. Faults run in a thread of their own; `stop` ends it early."""

    def __init__(self, folder: Path, engines: int, nodes: Nodes, server: Server, control: Path, rng: Random):
        self.folder, self.engines, self.nodes, self.server = folder, engines, nodes, server
        self.control, self.rng, self.stop, self.count = control, rng, False, 0
        self.lines: list[dict[str, Any]] = []
        self._stopped: list[Target] = []

    def run(self, faults: list[Fault]) -> None:
        """Inject all faults, in order; return early when `stop` is set."""
        for fault in faults:
            if not self._until(partial(self._at_step, fault.step), 3600.0):
                return
            phase = PHASES.get(fault.kind)
            if phase:
                self._until(partial(self._in_phase, phase), PHASE_WAIT_S)
            time.sleep(self.rng.uniform(0, 0.3))
            fault.before, fault.at = self._standing(), time.monotonic()
            fault.hit = self._inject(fault.kind)
            self.lines = read(self.folder)
            fault.after_step = self._step()
            if fault.kind != "engine stopped":  # the pool gives it up after a minute: others may come meanwhile
                self._until(partial(self._over, fault), RECOVERY_WAIT_S)
            took = "" if fault.recovered_s is None else f", over it after {fault.recovered_s:.1f} s"
            logger.info(
                f"fault {faults.index(fault) + 1}/{len(faults)} at step {self._step()}: {fault.kind} {fault.hit}{took}"
            )
        self._until(lambda: all(self._over(fault) for fault in faults), RECOVERY_WAIT_S)

    # -- what the run's log says --------------------------------------------------------------------------------------

    def _until(self, reached: Callable[[], bool], limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and not self.stop:
            self.lines = read(self.folder)
            if reached():
                return True
            time.sleep(0.1)
        return False

    def _last(self, event: str) -> dict[str, Any]:
        return next((line for line in reversed(self.lines) if line["event"] == event), {})

    def _at_step(self, step: int) -> bool:
        return self._step() >= step

    def _in_phase(self, name: str) -> bool:
        return self._last("phase").get("name") == name

    def _step(self) -> int:
        return self._last("learned").get("step", 0)

    def _standing(self) -> dict[str, Any]:
        return self._last("state") | {"life": self.lines[-1]["life"] if self.lines else 0}

    def _over(self, fault: Fault) -> bool:
        """Whether the run has noticed the fault and then completed a step with all engines."""
        if fault.recovered_s is not None:
            return True
        since = [line for line in self.lines if line["t"] > fault.at]
        noticed = next((line["t"] for line in since if self._notices(fault, line)), None)
        if noticed is None:
            return False
        serving = 0
        for line in self.lines:
            serving = line.get("serving", serving)
            if line["event"] == "learned" and line["t"] > noticed and serving == self.engines:
                fault.recovered_s = line["t"] - fault.at
                return True
        return False

    def _notices(self, fault: Fault, line: dict[str, Any]) -> bool:
        kind, before = fault.kind, fault.before
        if line["life"] > before["life"]:
            return True
        if kind == "MLflow server killed":
            return line["event"] == "learned" and self._delivered() > fault.after_step
        if kind in ("checkpoint disk full", "checkpoints read-only"):
            return line["event"] == "printed" and line["line"].startswith("saved ") and not self._unwritable()
        if kind in ("driver stopped for a while", "wall clock jumps"):
            return line["event"] == "learned" and line["step"] > fault.after_step
        if kind.startswith("driver killed"):
            return False
        if line["event"] != "state":
            return False
        grown = {name for name in ("losses", "learner", "scorer", "timeouts", "failures") if line[name] > before[name]}
        wanted = {kind: {"failures"} for kind in ("reward raises", "reward says no text", "reward is no reward")}
        wanted |= {"reward hangs": {"timeouts"}, "scorer process killed": {"scorer"}}
        usual = {"learner"} if "learner" in kind or "corrupt" in kind else {"losses"}
        usual |= {"learner"} if "node" in kind else set()
        return bool(grown & wanted.get(kind, usual))

    def _delivered(self) -> int:
        """Return the last step that MLflow has; 0 for none, or while the file is being written."""
        with contextlib.suppress(OSError, ValueError):
            return int(json.loads((self.folder / "metrics.delivered").read_text())["step"])
        return 0

    # -- what is done -------------------------------------------------------------------------------------------------

    def _inject(self, kind: str) -> str:
        """Inject a fault; return what was hit."""
        self.count += 1
        if kind.startswith("engine"):
            return self._kill("-engine-", signal.SIGSTOP if kind == "engine stopped" else signal.SIGKILL)
        if kind == "learner rank killed":
            return self._kill("-learner-", signal.SIGKILL)
        if kind.startswith("driver"):
            return self._hit_driver(kind)
        if kind == "scorer process killed":
            return self._kill_scorer()
        if kind.startswith("node"):
            return self._lose_node(preempted=kind == "node preempted")
        if kind == "MLflow server killed":
            self.server.kill()
            time.sleep(self.rng.uniform(2, 5))
            self.server.start()
            return "and started again"
        if kind == "checkpoint disk full":
            return self._fill_disk()
        if kind == "checkpoints read-only":
            with read_only(self.folder / "checkpoints"):
                return self._until_unsaved()
        if kind == "wall clock jumps":
            wrong_s = self.rng.choice(JUMPS_S)
            (self.folder / CLOCK).write_text(str(wrong_s))
            return f"to {wrong_s:+.0f} s"
        if kind == "newest checkpoint corrupt":
            return f"{self._damage()}, then {self._kill('-learner-', signal.SIGKILL)} killed"
        rewards.order(self.control, DEFECTS[kind], self.count)
        return ""

    def _kill(self, part: str, sign: signal.Signals) -> str:
        """Send a signal to an actor with this in its name; wait for one when there is none."""
        deadline = time.monotonic() + 60
        while not (there := actors(f"kray-{self.folder.name}", part)) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not there:
            return "nobody"
        target = self.rng.choice(there)
        target.send(sign)
        if sign is signal.SIGSTOP:
            self._stopped.append(target)
        return target.name

    def _hit_driver(self, kind: str) -> str:
        """Kill the driver, also while MLflow is away for a moment, or stop it for a while."""
        stopped, away = kind == "driver stopped for a while", kind == "driver killed, MLflow away"
        if away:
            self.server.kill()
        name = self._kill("-driver", signal.SIGSTOP if stopped else signal.SIGKILL)
        if stopped:
            time.sleep(STOPPED_S)
            self._stopped.pop().send(signal.SIGCONT) if self._stopped else None
        if away:
            time.sleep(self.rng.uniform(5, 10))
            self.server.start()
        return name

    def close(self) -> None:
        """End processes that were stopped and are still there."""
        import psutil

        for target in self._stopped:
            with contextlib.suppress(psutil.Error):
                if psutil.Process(target.pid).status() == psutil.STATUS_STOPPED:
                    target.send(signal.SIGKILL)

    def _kill_scorer(self) -> str:
        """Kill a scoring process, which is a child of the driver."""
        import psutil

        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for driver in actors(f"kray-{self.folder.name}", "-driver"):
                with contextlib.suppress(psutil.Error):
                    children = psutil.Process(driver.pid).children()
                    scorers = [child for child in children if any("rewards.worker" in word for word in child.cmdline())]
                    if scorers:
                        scorers[0].kill()
                        return f"process {scorers[0].pid}"
            time.sleep(0.2)
        return "nobody"

    def _lose_node(self, preempted: bool) -> str:
        """Remove or preempt a node that holds an actor of the run."""
        held = {target.node_id for target in actors(f"kray-{self.folder.name}", "-e") if "driver" not in target.name}
        index = next((i for i, node in enumerate(self.nodes.nodes) if node.node_id in held), 0)
        name = self.nodes.nodes[index].node_id[:8]
        self.nodes.preempt(index) if preempted else self.nodes.remove(index)
        return name

    def _fill_disk(self) -> str:
        """Fill the disk until a checkpoint could not be written."""
        disk = self.folder / "checkpoints"
        with (disk / BALLAST).open("wb") as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(b"\0" * 65536)
                ballast.flush()
        said = self._until_unsaved()
        with contextlib.suppress(FileNotFoundError):
            (disk / BALLAST).unlink()
        return said

    def _until_unsaved(self) -> str:
        known = len(self._unsaved())
        self._until(lambda: len(self._unsaved()) > known, RECOVERY_WAIT_S)
        return f"until {len(self._unsaved()) - known} was not written"

    def _unsaved(self) -> list[str]:
        lines = [line["line"] for line in self.lines if line["event"] == "printed"]
        return [line for line in lines if "checkpoint of step" in line and "not written" in line]

    def _unwritable(self) -> bool:
        return (self.folder / "checkpoints" / BALLAST).exists() or not writable(self.folder / "checkpoints")

    def _damage(self) -> str:
        """Flip bits in the middle of the largest file of the newest checkpoint."""
        self._until(lambda: newest_checkpoint(self.folder) is not None, RECOVERY_WAIT_S)
        checkpoint = newest_checkpoint(self.folder)
        if checkpoint is None:
            return "nothing"
        file = max((checkpoint / "learner").rglob("*"), key=lambda file: file.stat().st_size)
        with file.open("r+b") as stream:
            stream.seek(os.path.getsize(file) // 2)
            byte = stream.read(1)
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([byte[0] ^ 0xFF]))
        return checkpoint.name
