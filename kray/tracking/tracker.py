"""What a run leaves behind: metrics, tables of rollouts, figures, datasets, parameters, tags.

Local files come first and are the truth: <run folder>/metrics.jsonl (one line a step), samples/, figures/, config.yaml.
MLflow gets the same from one writer thread; training never waits for it. A server that dies while the run goes on gets
the rest when it comes back; `finish` tells what it could not get. A server that is set but does not answer at the start
is a KrayError. On resume the same MLflow run goes on; where steps are done again, MLflow shows both points of a step
while metrics.jsonl holds the newer one only.
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
from kray.tracking.journal import Journal
from kray.tracking.mlflow_store import MlflowRun, SystemSamples, bound_waits, locate, reach, unreachable
from kray.tracking.names import name_of, named
from kray.tracking.writer import Writer

log = logging.getLogger(__name__)
START_TIMEOUT_S = {True: 20.0, False: 300.0}  # by "is a server": a new sqlite store takes its time on a busy machine
SYSTEM_EVERY_S = 5.0
DATASET_ROWS = 10_000


class Tracker:
    """One run's record, owned by the driver. `mlflow_run_id` is what a checkpoint keeps."""

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
        heard: Callable[[int, Mapping[str, float]], None] | None = None,
    ):
        """Open the record; a server answers within about 20 s or KrayError names it.

        No secret of the environment and no password in an address leaves through params, tags, config_yaml or an error.
        params: scalars by dotted key, logged once. config_yaml: kept as config.yaml, on resume as
        config-resumed-<step>.yaml. mlflow_run_id: the MLflow run to go on with. resume_step: the last step of the
        checkpoint that is resumed (-1: none yet); later lines of metrics.jsonl are dropped. Both None: a fresh run.
        heard: is told every step's metrics too, as soon as they are on disk.
        """
        bound_waits()
        for name in ("alembic", "mlflow.store.db.utils"):  # else a new sqlite store tells its whole history
            logging.getLogger(name).setLevel(logging.WARNING)
        self._folder = Path(run_folder).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._nonfinite: set[str] = set()
        self._heard = heard
        store = locate(track.uri, self._folder)
        reach(store)
        resumed = resume_step is not None
        name = f"config-resumed-{max(resume_step, 0):06d}.yaml" if resume_step is not None else "config.yaml"
        import mlflow  # noqa: F401  # seconds of importing must not count as the server's

        (self._folder / name).write_text(redact(config_yaml), encoding="utf-8")
        self._journal = Journal(self._folder, resume_step)
        self._run = MlflowRun(store, track.experiment, run_name, mlflow_run_id)
        params = {name: redact_value(name, value) for name, value in params.items()}
        all_tags = {
            **_redacted(tags),
            "kray.run_folder": self._folder,
            **({"kray.resumed_at": resume_step} if resumed else {}),
        }

        def open_run() -> None:
            self._run.open(params, all_tags, [(self._folder / name, "")])
            self._journal.read_for(self._run.run_id)

        def sample() -> Any:
            return SystemSamples(self._run.started_s, SYSTEM_EVERY_S).take

        self._artist = ThreadPoolExecutor(1, "figures")
        self._writer = Writer(
            self._journal, self._run, open_run, sample if track.system_metrics else None, SYSTEM_EVERY_S
        )
        if not self._writer.opened.wait(START_TIMEOUT_S[store.remote]):
            self._writer.abandon()
            raise unreachable(store, f"no answer after {START_TIMEOUT_S[store.remote]:.0f} s")
        failure = self._writer.failure
        if failure is not None:
            raise failure if isinstance(failure, KrayError) else unreachable(store, failure) from failure

    @property
    def mlflow_run_id(self) -> str:
        """Which MLflow run this is."""
        return self._run.run_id

    @property
    def where(self) -> str:
        """The address of the store, without secrets."""
        return self._run.store.shown

    @property
    def open_command(self) -> str:
        """The shell command that opens the results, or the run's address on a server."""
        return self._run.open_command

    @property
    def charts_url(self) -> str:
        """The address of the run's charts in MLflow."""
        return self._run.charts_url

    @property
    def waiting(self) -> list[str]:
        """What MLflow has not got yet besides metrics: names of tables, figures, datasets, tags."""
        return self._writer.waiting

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step's metrics; a second call for the same step adds to it.

        Values that are not finite are left out and counted in tracking/nonfinite. Raises ValueError for an older step,
        KrayError where two metrics would have one name (kray/names.py).
        """
        names = named(metrics)
        finite = {names[name]: float(value) for name, value in metrics.items() if math.isfinite(value)}
        dropped = [name for name, value in metrics.items() if not math.isfinite(value)]
        if dropped:
            finite[TRACKING_NONFINITE] = float(len(dropped))
        if new := set(dropped) - self._nonfinite:  # each name once, not every step
            self._nonfinite |= new
            log.warning("step %d: not finite and left out: %s", step, ", ".join(sorted(new)))
        self._journal.append(step, finite, time.time())
        self._writer.wake()
        if self._heard is not None:
            self._heard(step, finite)

    def rewind(self, step: int) -> None:
        """Goes on from `step` (-1: before the first one) in the same run: later lines of metrics.jsonl are dropped."""
        self._journal.rewind(step)
        self.set_tags({"kray.resumed_at": step})

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]], name: str = "samples") -> None:
        """Record rows as the table <name>/step-<step>.json; columns are all keys, in order of appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = {"columns": columns, "data": [[_plain(row.get(key)) for key in columns] for row in rows]}
        try:
            path = self._path(name, f"step-{step:06d}.json")
            path.write_text(json.dumps(table, ensure_ascii=False, default=str), encoding="utf-8")
        except OSError as error:  # a table less must not end a run
            log.warning("table %s of step %d could not be written: %s", name, step, error)
            return
        self._writer.put(f"{name}/{path.name}", lambda: self._run.table(path, name))

    def log_figure(self, step: int, name: str, draw: Callable[[], Any]) -> None:
        """Record a matplotlib figure as figures/<name>-<step>.png and in MLflow's slider of images under `name`.

        draw: makes the figure, in a thread of its own, since that takes longer than a small step.
        """
        name = name_of(name).replace("/", "-").replace(":", "-")
        path = self._path("figures", f"{name}-{step:06d}.png")

        def work() -> None:
            try:
                draw().savefig(path, dpi=120)
            except Exception as error:  # a picture less must not end a run
                log.warning("figure %s could not be drawn: %s", path.name, error)
            else:
                self._writer.put(f"figures/{path.name}", lambda: self._run.image(path, "figures", name, step))

        self._artist.submit(work)

    def log_traces(
        self, step: int, rows: Sequence[Mapping[str, Any]], generate_s: float, judge_s: float, ago_s: float
    ) -> None:
        """Record rollouts (rows of the step's table of samples) as MLflow traces, each with its reward.

        generate_s, judge_s: how long the step took to generate and then to judge, which ended ago_s ago.
        """
        judged = time.time() - ago_s
        times = (judged - judge_s - generate_s, judged - judge_s, judged)
        for number, row in enumerate(rows):
            plain = {key: _plain(value) for key, value in row.items()}
            send = partial(self._run.trace, step, number, plain, times)
            self._writer.put(f"trace {number} of step {step}", send)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Record a file that is there already, in MLflow under `folder`."""
        self._writer.put(f"{folder}/{path.name}".strip("/"), lambda: self._run.file(path, folder))

    def log_dataset(self, name: str, prompts: Sequence[Prompt], context: str) -> None:
        """Record which prompts a run uses: columns, count and a digest over all of them. context: train | test."""
        digest = prompts_digest(prompts)
        rows = [
            {"id": prompt.id, "prompt": _text(prompt), "answer": prompt.answer, "source": prompt.source}
            for prompt in prompts[:DATASET_ROWS]
        ]
        count = len(prompts)
        self._writer.put(f"dataset {name}", lambda: self._run.dataset(name, digest, rows, count, context))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Record facts about the run; a tag that is there already is replaced."""
        tags = _redacted(tags)
        self._writer.put(f"tags {', '.join(tags)}", lambda: self._run.tags(tags))

    def finish(self, status: str = "FINISHED", deadline_s: float = 30.0) -> list[str]:
        """End the run as FINISHED, KILLED or FAILED; returns a sentence for each thing that MLflow did not get.

        Takes at most about deadline_s + 10 seconds.
        """
        if status not in ("FINISHED", "KILLED", "FAILED"):
            raise ValueError(f"status must be FINISHED, KILLED or FAILED, not {status!r}")
        with contextlib.suppress(TimeoutError):
            self._artist.submit(int).result(deadline_s)  # the last in the queue
        self._artist.shutdown(wait=False, cancel_futures=True)
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
            missing.append(f"MLflow at {shown} does not know that run {self._run.run_id} ended as {status}")
        for sentence in missing:
            log.warning(sentence)
        return missing

    def _path(self, folder: str, name: str) -> Path:
        (self._folder / folder).mkdir(parents=True, exist_ok=True)
        return self._folder / folder / name


def prompts_digest(prompts: Sequence[Prompt], *variables: Mapping[str, Any]) -> str:
    """32 hex digits over ids, texts, answers, verifiers and sources of all prompts, in order.

    variables: of the chat template, of each source that has some; without any the digest is that of the prompts alone.
    """
    total = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        fields = [prompt.id, _text(prompt), prompt.answer, prompt.verifier, prompt.source]
        total.update(json.dumps(fields).encode())
    for given in variables:
        total.update(json.dumps(given, sort_keys=True).encode() if given else b"")
    return total.hexdigest()


def _text(prompt: Prompt) -> str:
    if prompt.text is not None:
        return prompt.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages or ())


def _redacted(tags: Mapping[str, Any]) -> dict[str, str]:
    return {name: redact(str(value)) for name, value in tags.items()}


def _plain(value: Any) -> Any:
    """A table's cell as JSON can hold it: numpy scalars as numbers, NaN as nothing."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
