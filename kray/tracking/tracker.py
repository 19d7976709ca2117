"""Records a run: metrics, tables of rollouts, figures, datasets, parameters, tags.

Local files are written first and are authoritative: <run folder>/metrics.jsonl (one line a step), samples/, figures/,
config.yaml. One writer thread delivers the same to MLflow; training never waits for it. A server that is lost during the run
receives the rest when it answers again; `finish` reports what it did not receive. A server that is configured but does not
answer at the start is a KrayError. A resumed run is recorded in the same MLflow run; where steps are done again, MLflow shows
both points of a step while metrics.jsonl holds only the newer one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from kray.config.redaction import redact, redact_value
from kray.config.schema import TrackConfig
from kray.errors import KrayError
from kray.metrics import TRACKING_NONFINITE
from kray.records import Prompt
from kray.text import well_formed
from kray.tracking.journal import Journal
from kray.tracking.mlflow_store import MlflowRun
from kray.tracking.names import name_of, named
from kray.tracking.store import Store, bound_waits, locate, reach, unreachable
from kray.tracking.system_metrics import SystemSamples
from kray.tracking.tables import plain, table_json
from kray.tracking.writer import Writer

logger = logging.getLogger(__name__)
# Seconds for a server to open the run, and for a local store: a new SQLite database takes long on a busy machine.
SERVER_START_S = 20.0
LOCAL_START_S = 300.0
# Seconds between two samples of system metrics.
SYSTEM_EVERY_S = 5.0
# Least seconds between two deliveries to MLflow.
GATHER_S = 2.0
# The most prompts of a dataset that MLflow shows.
DATASET_ROWS = 10_000
# What logs every migration of the tables of a new SQLite store.
QUIET = ("alembic", "mlflow.store.db.utils")


class Tracker:
    """The record of one run, owned by the driver."""

    def __init__(
        self,
        track: TrackConfig,
        run_folder: Path,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        config_yaml: str,
        mlflow_run_id: str | None = None,
        resume_step: int | None = None,
        on_step: Callable[[int, Mapping[str, float]], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        """Open the record.

        Secrets of the environment and passwords in addresses are removed from params, tags, config_yaml and errors.

        Args:
            track: The configuration of tracking.
            run_folder: Where local files are written.
            run_name: The name of the MLflow run.
            params: Scalars by dotted key, recorded once.
            tags: Tags of the MLflow run.
            config_yaml: Kept as config.yaml, on resume as config-resumed-<step>.yaml.
            mlflow_run_id: The MLflow run to continue, None for a new one.
            resume_step: The step of the checkpoint that is resumed (-1: none yet), after which lines of metrics.jsonl are
                dropped; None for a new run.
            on_step: Called with the metrics of every step as soon as they are on disk.
            check: Called before anything is written; raises a KrayError where this process may not write any more.

        Raises:
            KrayError: The store cannot be used, or does not answer in time.
        """
        check()
        self._check = check
        bound_waits()
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._folder = Path(run_folder).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._nonfinite, self._on_step = set[str](), on_step
        store = locate(track.uri, self._folder)
        reach(store)
        name = "config.yaml" if resume_step is None else f"config-resumed-{max(resume_step, 0):06d}.yaml"
        # Imported here, so that the seconds it takes do not count as the server's.
        import mlflow  # noqa: F401

        (self._folder / name).write_text(well_formed(redact(config_yaml)), encoding="utf-8")
        self._journal = Journal(self._folder, resume_step)
        self._run = MlflowRun(store, track.experiment, run_name, mlflow_run_id)
        params = {name: redact_value(name, value) for name, value in params.items()}
        all_tags = _redacted(tags) | {"kray.run_folder": str(self._folder)}
        all_tags |= {} if resume_step is None else {"kray.resumed_at": str(resume_step)}
        self._artist = ThreadPoolExecutor(1, "figures")

        def open_run() -> None:
            self._run.open(params, all_tags, [(self._folder / name, "")])
            self._journal.read_for(self._run.run_id)

        self._writer = self._started_writer(store, open_run, track.system_metrics)

    def _started_writer(self, store: Store, open_run: Callable[[], None], system_metrics: bool) -> Writer:
        """Start the writer and wait until it has opened the run."""

        def sample() -> Any:
            return SystemSamples(self._run.started_s, SYSTEM_EVERY_S).take

        sampled = sample if system_metrics else None
        writer = Writer(self._journal, self._run, open_run, sampled, SYSTEM_EVERY_S, gather_s=GATHER_S)
        writer.check = self._check
        start_s = SERVER_START_S if store.remote else LOCAL_START_S
        if not writer.opened.wait(start_s):
            writer.abandon()
            raise unreachable(store, f"no answer after {start_s:.0f} s")
        failure = writer.failure
        if failure is not None:
            raise failure if isinstance(failure, KrayError) else unreachable(store, failure) from failure
        return writer

    @property
    def mlflow_run_id(self) -> str:
        """The id of the MLflow run, which checkpoints keep."""
        return self._run.run_id

    @property
    def where(self) -> str:
        """The address of the store, without secrets."""
        return self._run.store.shown

    @property
    def open_command(self) -> str:
        """The shell command that opens the store, or the address of the run on a server."""
        return self._run.open_command

    @property
    def charts_url(self) -> str:
        """The address of the run's charts in MLflow."""
        return self._run.charts_url

    @property
    def waiting(self) -> list[str]:
        """The tables, figures, datasets and tags that MLflow has not received yet."""
        return self._writer.waiting

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; a second call for the same step adds to it.

        Values that are not finite are left out and counted in tracking/nonfinite.

        Raises:
            ValueError: The step is before the newest one.
            KrayError: Two metrics would have one name in MLflow; see kray.tracking.names.
        """
        self._check()
        names = named(metrics)
        finite = {names[name]: float(value) for name, value in metrics.items() if math.isfinite(value)}
        dropped = [name for name, value in metrics.items() if not math.isfinite(value)]
        if dropped:
            finite[TRACKING_NONFINITE] = float(len(dropped))
        # Each metric is reported once, not in every step.
        if new := set(dropped) - self._nonfinite:
            self._nonfinite |= new
            logger.warning("step %d: not finite and left out: %s", step, ", ".join(sorted(new)))
        self._journal.append(step, finite, time.time())
        self._writer.wake()
        if self._on_step is not None:
            self._on_step(step, finite)

    def rewind(self, step: int) -> None:
        """Go back to `step` (-1: before the first one) in the same run: later lines of metrics.jsonl are dropped."""
        self._check()
        self._journal.rewind(step)
        self.set_tags({"kray.resumed_at": step})

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]], name: str = "samples") -> None:
        """Record rows as the table <name>/step-<step>.json; its columns are all keys, in order of appearance."""
        self._check()
        try:
            path = self._path(name, f"step-{step:06d}.json")
            path.write_text(table_json(rows), encoding="utf-8")
        # ValueError, TypeError: a cell that JSON cannot hold.
        except (OSError, ValueError, TypeError) as error:
            # A missing table must not end a run.
            logger.warning("table %s of step %d could not be written: %s", name, step, error)
            return
        self._writer.put(f"{name}/{path.name}", lambda: self._run.table(path, name))

    def log_figure(self, step: int, name: str, draw: Callable[[], Any]) -> None:
        """Record a matplotlib figure as figures/<name>-<step>.png and in MLflow's slider of images under `name`.

        Args:
            step: The training step.
            name: The figure's name.
            draw: Makes the figure, in a thread of its own, because that takes longer than a small step.
        """
        name = name_of(name).replace("/", "-").replace(":", "-")
        path = self._path("figures", f"{name}-{step:06d}.png")

        def work() -> None:
            try:
                self._check()
                draw().savefig(path, dpi=120)
            except Exception as error:
                # A missing figure must not end a run.
                logger.warning("figure %s could not be drawn: %s", path.name, error)
            else:
                self._writer.put(f"figures/{path.name}", lambda: self._run.image(path, "figures", name, step))

        self._artist.submit(work)

    def log_traces(
        self, step: int, rows: Sequence[Mapping[str, Any]], generate_s: float, judge_s: float, ago_s: float
    ) -> None:
        """Record rollouts as MLflow traces, each with its reward.

        Args:
            step: The training step.
            rows: Rows of the step's table of samples.
            generate_s: Seconds for which the step generated.
            judge_s: Seconds for which it then waited for rewards.
            ago_s: Seconds since then.
        """
        judged = time.time() - ago_s
        times = (judged - judge_s - generate_s, judged - judge_s, judged)
        for number, row in enumerate(rows):
            send = partial(self._run.trace, step, number, plain(row), times)
            self._writer.put(f"trace {number} of step {step}", send)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Record an existing file in an artifact folder of MLflow."""
        self._writer.put(f"{folder}/{path.name}".strip("/"), lambda: self._run.file(path, folder))

    def log_dataset(self, name: str, prompts: Sequence[Prompt], context: str) -> None:
        """Record which prompts a run uses: some of them, their count and a digest over all.

        Args:
            name: The dataset's name.
            prompts: All prompts of a part.
            context: train or test.
        """
        digest = prompts_digest(prompts)
        rows = [
            plain({"id": prompt.id, "prompt": _text(prompt), "answer": prompt.answer, "source": prompt.source})
            for prompt in prompts[:DATASET_ROWS]
        ]
        count = len(prompts)
        self._writer.put(f"dataset {name}", lambda: self._run.dataset(name, digest, rows, count, context))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run; existing ones are replaced."""
        tags = _redacted(tags)
        self._writer.put(f"tags {', '.join(tags)}", lambda: self._run.tags(tags))

    def finish(self, status: str = "FINISHED", deadline_s: float = 30.0) -> list[str]:
        """End the run; takes at most about deadline_s + 10 seconds.

        Args:
            status: FINISHED, KILLED or FAILED.
            deadline_s: Seconds for what MLflow has not received yet.

        Returns:
            A sentence for each thing that MLflow did not receive.
        """
        if status not in ("FINISHED", "KILLED", "FAILED"):
            raise ValueError(f"status must be FINISHED, KILLED or FAILED, not {status!r}")
        with contextlib.suppress(TimeoutError):
            # The last one in the queue.
            self._artist.submit(int).result(deadline_s)
        self._artist.shutdown(wait=False, cancel_futures=True)
        try:
            self._check()
        except KrayError:
            # The run is another process's now.
            self._writer.halt()
            return []
        ended = self._writer.finish(status, deadline_s)
        shown = self._run.store.shown
        missing = []
        steps = self._journal.undelivered
        if steps:
            why = f" ({self._writer.refusal})" if self._writer.refusal else ""
            where = f"MLflow at {shown} lacks the metrics of steps {steps[0]} to {steps[-1]}{why}"
            missing.append(f"{where}; they are in {self._journal.path} and are delivered when the run is resumed")
        left = [*self._writer.lost, *self._run.refused, *self._writer.waiting]
        if left:
            few = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            missing.append(f"MLflow at {shown} lacks {few}; all of it is in {self._folder}")
        if not ended:
            missing.append(f"MLflow at {shown} has not recorded that run {self._run.run_id} ended as {status}")
        for sentence in missing:
            logger.warning(sentence)
        return missing

    def _path(self, folder: str, name: str) -> Path:
        (self._folder / folder).mkdir(parents=True, exist_ok=True)
        return self._folder / folder / name


def prompts_digest(prompts: Sequence[Prompt], *variables: Mapping[str, Any]) -> str:
    """Return 32 hex digits over ids, texts, answers, verifiers, sources and columns of all prompts, in order.

    Args:
        prompts: The prompts.
        variables: Variables of the chat template, of each source; those that are empty do not change the digest.
    """
    total = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        fields = [prompt.id, _text(prompt), prompt.answer, prompt.verifier, prompt.source]
        total.update(json.dumps(fields).encode())
        if prompt.columns:
            total.update(json.dumps(prompt.columns, default=str).encode())
    for given in variables:
        total.update(json.dumps(given, sort_keys=True).encode() if given else b"")
    return total.hexdigest()


def _text(prompt: Prompt) -> str:
    if prompt.text is not None:
        return prompt.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages or ())


def _redacted(tags: Mapping[str, Any]) -> dict[str, str]:
    return {name: redact(str(value)) for name, value in tags.items()}
