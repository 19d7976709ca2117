"""Checks that a long run does not degrade: memory, files, descriptors and step time. Used by jobs/bench_soak.py.

While the driver trains, a thread samples the processes that this one has started and the run's folder every few seconds.
What must be bounded (memory, descriptors, threads, object store, step time) is checked by its slope after the first third,
in which caches fill; what grows with the steps (records on disk) must not grow faster towards the end.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy.stats import theilslopes

from kray.config import KrayConfig, load_checked
from kray.driver.remote import run_on_cluster
from kray.driver.run_folder import run_folder
from kray.metrics import TIMING_S_STEP, timing

logger = logging.getLogger(__name__)

# Many short steps: everything that a run does besides training happens, and more often than usual.
OVERRIDES = (
    "model.tiny.hidden_size=64",
    "model.tiny.layers=2",
    "model.tiny.heads=2",
    "model.tiny.kv_heads=1",
    "model.tiny.intermediate_size=128",
    "model.tiny.warmup_steps=120",
    "model.tiny.batch_size=64",
    "run.checkpoint_every=50",
    "prompts.per_step=16",
    "prompts.train.size=256",
    "prompts.test.size=32",
    "plan.budget=96",
    "plan.upper=32",
    "train.lr=3.0e-4",
    "rollout.max_response_tokens=6",
    "rollout.max_sequences=96",
    "rollout.kv_cache_gib=0.1",
    "evaluate.every=50",
    "evaluate.samples=2",
)
# Generation runs ahead of the learner, and each step's rollouts teach twice, half of them each time.
OVERLAP = ("async.max_staleness=1", "train.tis=2", "train.epochs=2", "train.thin=0.5")
# What Ray's actors are called, whatever the engines and learners of this run can do besides: ray::ReceivingEngine.update.
TITLE = re.compile(r"ray::[A-Za-z]*(Driver|Engine|Learner)\b")
ROLES = ("driver", "engine", "learner")
RECORDS = ("metrics.jsonl", "mlflow.db", "mlruns-artifacts", "samples", "transitions", "beliefs", "figures")
MIB = 2**20
# Largest gain in 100 steps of a series that counts as flat: this share of its median, or this much in MiB, number or
# seconds, whichever is larger; sampling noise of a healthy run stays below.
FLAT_SHARE, FLAT_MIB, FLAT_COUNT, FLAT_S = 0.01, 1.0, 0.5, 0.01
# Largest growth of a record between the last two thirds of the run, over that between the first two.
LINEAR = 1.25


def soak_config(path: str, folder: str, steps: int, overrides: Sequence[str], overlap: bool = False) -> KrayConfig:
    """Return a configuration with many short steps and its results under `folder`.

    Args:
        path: Of the configuration's file.
        folder: Where results go.
        steps: Of the run.
        overrides: Of single keys, which come last.
        overlap: Whether generation and learning overlap and rollouts are used twice.
    """
    own = [*OVERRIDES, *(OVERLAP if overlap else ()), f"run.dir={folder}", f"run.steps={steps}", "run.name=soak"]
    return load_checked(path, [*own, *overrides])


def run_soak(config: KrayConfig, model: str, every_s: float) -> dict[str, Any]:
    """Train through the real driver and sample it; needs a Ray cluster that this process has started."""
    folder = run_folder(config)
    watch = _Watch(folder, every_s)
    watch.start()
    started = time.monotonic()
    try:
        run_on_cluster(config, model, folder, None, "run")
    finally:
        watch.end()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logger.info(f"{len(watch.samples)} samples over {time.monotonic() - started:.0f} s")
    return {"run_s": time.monotonic() - started, "samples": watch.samples, "series": check_series(watch.samples, rows)}


class _Watch(threading.Thread):
    """A thread that appends to `samples`, each a dict of the step and the sampled figures by name."""

    def __init__(self, folder: Path, every_s: float):
        super().__init__(name="soak-watch", daemon=True)
        self.folder, self.every_s = folder, every_s
        self.samples: list[dict[str, float]] = []
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self.every_s):
            step = last_step(self.folder / "metrics.jsonl")
            # Before the first step some processes are still starting.
            if step > 0:
                self.samples.append({"step": step} | processes() | object_store() | sizes(self.folder))

    def end(self) -> None:
        self._ended.set()
        self.join(timeout=60.0)


def last_step(file: Path) -> int:
    """Return the step of the last complete line of a metrics.jsonl, -1 for none."""
    try:
        with file.open("rb") as lines:
            lines.seek(0, 2)
            lines.seek(max(0, lines.tell() - 2**15))
            found = [line for line in lines.read().split(b"\n")[:-1] if line.startswith(b'{"step"')]
        return int(json.loads(found[-1])["step"]) if found else -1
    except (OSError, ValueError):
        return -1


def processes() -> dict[str, float]:
    """Sample memory (MiB), descriptors and threads of the processes that this one has started, by role."""
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline()[:4])
            actor = TITLE.match(command)
            role = actor[1].lower() if actor else "scorer" if "kray.rewards.worker" in command else ""
            role = role or next((name for name in ("gcs_server", "raylet") if f"/{name} " in f"{command} "), "others")
            with process.oneshot():
                memory, fds, threads = process.memory_full_info(), process.num_fds(), process.num_threads()
        except (psutil.Error, OSError):
            # It has just ended.
            continue
        for name, value in (
            ("rss_mib", memory.rss / MIB),
            ("private_mib", memory.uss / MIB),
            ("descriptors", fds),
            ("threads", threads),
            ("processes", 1),
        ):
            found[f"{role} {name}"] = found.get(f"{role} {name}", 0.0) + value
    return found


def object_store() -> dict[str, float]:
    """Sample the use of Ray's object stores: MiB, and how many objects they hold."""
    import ray
    from ray._private.internal_api import node_stats

    name = "object_store_memory"
    used = ray.cluster_resources().get(name, 0.0) - ray.available_resources().get(name, 0.0)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    stats = [
        node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False) for node in nodes
    ]
    return {"object store mib": used / MIB, "object store objects": sum(s.store_stats.num_local_objects for s in stats)}


def sizes(folder: Path) -> dict[str, float]:
    """Sample the size on disk of the run's records, its checkpoints and Ray's logs, KiB."""
    import ray

    logs = Path(ray.get_runtime_context().worker.node.get_logs_dir_path())
    found = {f"{name} kib": _size(folder / name) / 1024 for name in (*RECORDS, "checkpoints")}
    return found | {"ray logs kib": _size(logs) / 1024, "records files": float(sum(1 for _ in folder.rglob("*")))}


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            # A temporary file that has just been renamed.
            continue
    return total


def check_series(samples: list[dict[str, float]], rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each series the medians of the run's thirds, the slope a 100 steps, and whether it meets its bound."""
    steps = [row for row in rows if TIMING_S_STEP in row]
    series = {name: [(s["step"], s[name]) for s in samples if name in s] for name in {k for s in samples for k in s}}
    series.pop("step", None)
    times = np.diff([rows[0]["time"], *(row["time"] for row in steps)])
    series["step s"] = [(row["step"], float(seconds)) for row, seconds in zip(steps, times, strict=True)]
    for part in ("generate", "update", "sync"):
        series[f"{part} s"] = [(row["step"], row[timing(part)]) for row in steps if timing(part) in row]
    last = steps[-1]["step"]
    return {name: _check(name, points, last) for name, points in sorted(series.items()) if len(points) >= 9}


def _check(name: str, points: list[tuple[float, float]], last: int) -> dict[str, Any]:
    step, value = np.array(points, dtype=float).T
    thirds = [value[(step > last * i / 3) & (step <= last * (i + 1) / 3)] for i in range(3)]
    first, middle, end = (float(np.median(third)) if len(third) else float("nan") for third in thirds)
    settled = step > last / 3
    slope = 100 * float(theilslopes(value[settled], step[settled])[0]) if len(set(step[settled])) > 2 else float("nan")
    row: dict[str, Any] = {"first": first, "middle": middle, "last": end, "slope": slope}
    if name.removesuffix(" kib") in (*RECORDS, "ray logs") or name == "records files":
        # Growth between the middles of the thirds, in which one file more or less may have been written.
        early, late, file = middle - first, end - middle, float(np.diff(value).max())
        row |= {"must": "growing linearly", "holds": bool(late <= LINEAR * early + file)}
    else:
        unit = name.rsplit("_", 1)[-1].rsplit(" ", 1)[-1]
        least = {"mib": FLAT_MIB, "kib": 1024 * FLAT_MIB, "s": FLAT_S}.get(unit, FLAT_COUNT)
        row |= {"must": "flat", "holds": bool(slope <= max(least, FLAT_SHARE * abs(end)))}
    return row


def verdict(series: dict[str, dict[str, Any]], steps: int) -> dict[str, Any]:
    """Return whether the run degraded: "holds", the "failed" series with what they must be, and a "sentence".

    Args:
        series: By `check_series`.
        steps: That the run was to do.
    """
    failed = {name: row["must"] for name, row in series.items() if not row["holds"]}
    missing = [role for role in ROLES if f"{role} rss_mib" not in series]
    if missing:
        sentence = (
            f"{steps:,} steps: no verdict, since {', '.join(missing)} had too few samples (a shorter --every helps)"
        )
    elif failed:
        beyond = ", ".join(f"{name} (not {must})" for name, must in failed.items())
        sentence = f"{steps:,} steps: {len(failed)} of {len(series)} series are beyond their bounds: {beyond}"
    else:
        sentence = f"{steps:,} steps: all {len(series)} series are within their bounds"
    return {"holds": not failed and not missing, "failed": failed, "sentence": sentence}


def table(series: dict[str, dict[str, Any]]) -> str:
    """Format the series as a table."""
    lines = [f"{'':28}{'first third':>12}{'last third':>12}{'a 100 steps':>13}"]
    for name, row in series.items():
        verdict = ("" if row["holds"] else "not ") + row["must"]
        lines.append(f"{name:28}{row['first']:>12.4g}{row['last']:>12.4g}{row['slope']:>+13.3g}   {verdict}")
    return "\n".join(lines)
