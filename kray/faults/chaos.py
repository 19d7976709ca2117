"""One run that is hit by many faults, audited, and compared with one that is left alone. See jobs/bench_chaos.py.

Faults that end a run's job have a run of their own, in jobs.py.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from kray.config import KrayConfig, load_config
from kray.driver.remote import run_on_cluster
from kray.errors import ConfigError, KrayError
from kray.faults import jobs
from kray.faults.audit import audit, regenerated, surviving
from kray.faults.cluster import Nodes, Server
from kray.faults.injector import KINDS, Fault, Injector, plan_faults
from kray.faults.instrumented import InstrumentedDriver, read
from kray.ports import free_port
from kray.prompts import load_prompts
from kray.prompts.sampler import PromptSampler
from kray.train.checkpoints import newest_checkpoint, read_state
from kray.train.start_model import find_model

ENGINES, RANKS, NODES, CPUS = 2, 2, 3, 2
DISK_MIB = 48
CONFIG = """
run: {name: chaos, steps: 10, checkpoint_every: 2, max_restarts: 1000, max_failed_saves: 1000, max_failed_share: 0.5}
model:
  tiny: {hidden_size: 64, layers: 2, heads: 2, kv_heads: 1, intermediate_size: 128, warmup_steps: 120, batch_size: 64}
prompts:
  per_step: 16
  max_tokens: 24
  quarantine_after: 0  # which prompt a reward fails on is chance here
  train: {kind: arithmetic, size: 64}
  test: {kind: arithmetic, split: test, size: 16}
plan: {budget: 96, upper: 32, candidates: 1}  # visits whatever the sampler names: the audit counts on it
rollout:
  {engines: 2, max_response_tokens: 24, max_sequences: 32, kv_cache_gib: 0.05, split: 4, max_restarts: 1000,
   task_timeout_s: 60, sync_timeout_s: 60, start_timeout_s: 300}
reward: {verifier: "kray.faults.rewards:judge", timeout_s: 1.5}
train: {ranks: 2, lr: 3.0e-4, max_restarts: 1000, timeout_s: 60}
evaluate: {every: 0, samples: 1, greedy: false}
track: {every: 20, samples: 4, system_metrics: false}
"""


@dataclass(frozen=True)
class Selection:
    """Which faults are injected.

    Attributes:
        inside: Kinds that a run must survive, and how many.
        ending: Kinds that end the run's job, and how many.
    """

    inside: tuple[tuple[str, ...], int]
    ending: tuple[tuple[str, ...], int]

    @property
    def kinds(self) -> int:
        """How many kinds there are."""
        return sum(min(len(kinds), count) for kinds, count in (self.inside, self.ending))


def select(count: int, words: str = "") -> Selection:
    """Distribute `count` faults: a quarter ends jobs, where both sorts are chosen.

    Args:
        count: Faults in all.
        words: Parts of names of kinds, separated by commas; "": all kinds.

    Raises:
        ConfigError: A word is in no kind's name.
    """
    parts = [word.strip() for word in words.split(",") if word.strip()]
    every = (tuple(KINDS), tuple(jobs.KINDS))
    for part in parts:
        if not any(part in kind for kind in (*every[0], *every[1])):
            raise ConfigError(
                f"--kinds: no kind of fault has {part!r} in its name: {'; '.join((*every[0], *every[1]))}"
            )
    inside, ending = (
        tuple(kind for kind in kinds if not parts or any(part in kind for part in parts)) for kinds in every
    )
    last = (count if not inside else max(1, count // 4)) if ending else 0
    return Selection((inside, count - last), (ending, last))


def study(chosen: Selection, seed: int, steps: int, calm: int, folder: Path) -> dict[str, Any]:
    """Run with and without faults; return the figures of jobs/bench_chaos.py.

    Args:
        chosen: The faults.
        seed: Of kinds and moments.
        steps: Of the run that survives faults; 0: forty for each.
        calm: Steps of a run without faults; 0: none.
        folder: For runs and their logs, emptied first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "chaos.yaml").write_text(CONFIG)
    found: dict[str, Any] = {"problems": [], "kinds": {}}
    kinds, count = chosen.inside
    if count:
        found = inside(kinds, count, seed, steps or 40 * count, calm, folder)
    kinds, count = chosen.ending
    if count:
        model = find_model(load_config(str(folder / "chaos.yaml"), []))
        found |= jobs.study(folder / "chaos.yaml", folder, model, list(kinds), count, seed)
        found["problems"] += found["job_problems"]
    return found


def inside(kinds: tuple[str, ...], faults: int, seed: int, steps: int, calm: int, folder: Path) -> dict[str, Any]:
    """Run with faults that a run must survive, and without; return figures."""
    control = folder / "control"
    control.mkdir()
    server = Server(folder / "mlflow", free_port())
    settings = [f"run.dir={folder}", f"track.uri={server.uri}", f"reward.options.control={control}"]
    config = load_config(str(folder / "chaos.yaml"), [*settings, f"run.steps={steps}"])
    model = find_model(config)
    nodes = Nodes(NODES, CPUS)
    try:
        server.start()
        calm_rate = 0.0
        if calm:
            run = folder / "calm"
            short = load_config(str(folder / "chaos.yaml"), [*settings, f"run.steps={calm}"])
            calmed = run_on_cluster(short, model, run, None, "run", InstrumentedDriver)
            if calmed.stopped:
                raise KrayError(f"the calm run was stopped {calmed.stopped}")
            calm_rate = rate(read(run))
        with small_disk(folder / "hit" / "checkpoints"):
            planned = plan_faults(faults, steps, seed, kinds)
            injector = Injector(folder / "hit", ENGINES, nodes, server, control, Random(seed))
            return hit(config, model, folder / "hit", planned, injector) | against(calm_rate, folder / "hit")
    finally:
        nodes.close()
        server.kill()


def hit(config: KrayConfig, model: str, run: Path, planned: list[Fault], injector: Injector) -> dict[str, Any]:
    """Run with faults; return figures and the result of the audit."""
    hitting = threading.Thread(target=injector.run, args=(planned,), daemon=True)
    started = time.monotonic()
    hitting.start()
    try:
        summary = run_on_cluster(config, model, run, None, "run", InstrumentedDriver)
    finally:
        injector.stop = True
        hitting.join(60)
        injector.close()
    took_s = time.monotonic() - started
    lines = injector.lines = read(run)
    for fault in planned:
        if fault.at and not injector._over(fault) and summary.steps == config.run.steps:
            fault.recovered_s = lines[-1]["t"] - fault.at  # too late for another whole step: the run's end counts
    prompts = load_prompts(config.prompts.train, config.reward.verifier)
    ids = [prompt.id for prompt in prompts]
    sampler = PromptSampler(ids, config.prompts.per_step, config.run.seed, config.prompts.shuffle)
    last = newest_checkpoint(run)
    problems = audit(lines, config.run.steps, ids, sampler, config.plan, read_state(last) if last else {})
    missed = [fault.kind for fault in planned if not fault.at]
    if missed:
        problems.append(f"{len(missed)} faults did not come before the run's end: {', '.join(sorted(set(missed)))}")
    return {
        "faults": len(planned),
        "survived": sum(fault.recovered_s is not None for fault in planned),
        "steps": summary.steps,
        "took_s": took_s,
        "restarts": summary.restarts,
        "engines_lost": losses(lines),
        "rollouts": summary.rollouts,
        "regenerated": regenerated(lines, surviving(lines)[0]),
        "kinds": table(planned),
        "problems": problems,
        "events": [[f.kind, f.step, f.hit, f.recovered_s] for f in planned],
    }


def table(faults: list[Fault]) -> dict[str, dict[str, Any]]:
    """Return, by kind of fault: how often, how many the run survived, and the seconds until it had recovered."""
    rows: dict[str, dict[str, Any]] = {}
    for kind in sorted({fault.kind for fault in faults}):
        mine = [fault for fault in faults if fault.kind == kind and fault.at]
        took = [fault.recovered_s for fault in mine if fault.recovered_s is not None]
        seconds = {"median_s": statistics.median(took or [0.0]), "longest_s": max(took, default=0.0)}
        rows[kind] = {"times": len(mine), "survived": len(took)} | seconds
    return rows


def losses(lines: list[dict[str, Any]]) -> int:
    """Return the engines that were lost, over all drivers."""
    most: dict[int, int] = {}
    for line in lines:
        if line["event"] == "state":
            most[line["life"]] = max(most.get(line["life"], 0), line["losses"])
    return sum(most.values())


def rate(lines: list[dict[str, Any]]) -> float:
    """Return rollouts learned from a second, from the first step's end to the last's; repeated steps count once."""
    chain, _ = surviving(lines)
    first = next(line for line in lines if line["event"] == "learned")
    rollouts = sum(len(indices) for line in chain[1:] for _, indices in line["rollouts"])
    return rollouts / max(1e-9, chain[-1]["t"] - first["t"])


def against(calm_rate: float, run: Path) -> dict[str, float]:
    """Return the throughput of a run beside that of the run without faults."""
    mine = rate(read(run))
    lost = 1 - mine / calm_rate if calm_rate else float("nan")
    return {"rollouts_per_s": mine, "calm_rollouts_per_s": calm_rate, "lost_share": lost}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system that is small enough to be filled on a folder."""
    folder.mkdir(parents=True)
    size = f"size={DISK_MIB}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True, timeout=10)
    try:
        yield
    finally:
        kept = folder.with_name("checkpoints-kept")
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=10)
