"""Where MLflow keeps a run, and everything that is said to it. The only module that calls MLflow's client.

`Store` names the place; `MlflowRun` is one run in it. Every method of MlflowRun may block for as long as MLflow's own
time-outs and may raise anything: they are called from one thread only, the writer's. `log_model` has a client of its own.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kray.config.redaction import redact
from kray.errors import ConfigError, DataError, InfrastructureError, KrayError
from kray.tracking.names import name_of, named
from kray.tracking.refusals import deliver, refusal
from kray.tracking.traces import log_trace

log = logging.getLogger(__name__)
REACH_TIMEOUT_S = 5.0
DATABASES = ("postgresql", "mysql", "mssql")
ENVIRONMENT = {  # MLflow's own defaults block for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Where `mlflow ui` shows a local store.
UI_HOST, UI_PORT = "127.0.0.1", 5000
TABLES_TAG = "mlflow.loggedArtifacts"  # tells the UI which JSON artifacts are tables
UPLOAD_TIMEOUT = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # seconds, for one file of a model
TABLES_IN_TAG = 60  # a tag holds 8,000 characters


@dataclass(frozen=True)
class Store:
    """uri: MLflow's tracking URI. artifacts: folder URI for a new experiment, None: the server decides."""

    uri: str
    artifacts: str | None
    origin: str  # who chose it, for errors

    @property
    def remote(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The URI without secrets."""
        return redact(self.uri)


def locate(uri: str, run_folder: Path) -> Store:
    """track.uri, else MLFLOW_TRACKING_URI, else sqlite in the run folder. KrayError for what cannot hold a run."""
    origin = "track.uri" if uri else "MLFLOW_TRACKING_URI"
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        folder = run_folder.absolute()
        return Store(f"sqlite:///{folder}/mlflow.db", (folder / "mlruns-artifacts").as_uri(), "the run folder")
    scheme = urlsplit(uri).scheme
    if scheme.startswith("sqlite"):
        database = Path(uri.partition("///")[2])
        if not database.is_absolute():
            raise KrayError(
                f"{origin} {redact(uri)} is relative to a folder that a job loses: write sqlite:////absolute/path.db"
            )
        return Store(uri, (database.parent / "mlruns-artifacts").as_uri(), origin)
    if scheme in ("", "file"):
        raise KrayError(
            f"{origin} {redact(uri)}: MLflow 3 has no file stores; use sqlite:////absolute/path.db or a server"
        )
    if scheme.partition("+")[0] in DATABASES:  # nobody there keeps files, and MLflow's ./mlruns is lost with the job
        return Store(uri, (run_folder.absolute().parent / "mlruns-artifacts").as_uri(), origin)
    return Store(uri, None, origin)


def bound_waits() -> None:
    """Before MLflow is first asked in a process: a server that accepts and does not answer is given up soon."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def reach(store: Store) -> None:
    """Raises KrayError when a server does not accept connections. Other stores are tried when they are opened."""
    if not store.remote:
        return
    parts = urlsplit(store.uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        raise unreachable(store, error) from None


def unreachable(store: Store, error: object) -> KrayError:
    """What to raise: a InfrastructureError, unless the store has answered that it refuses."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    kind = KrayError if isinstance(error, Exception) and refusal(error) else InfrastructureError
    return kind(f"MLflow at {store.shown} ({store.origin}) cannot be used: {redact(reason)}")


class UnknownRun(ConfigError):
    """The store does not hold the run that is to go on."""


class MlflowRun:
    """One run: opened (or reopened), fed, ended. `run_id` and `url` are there once `open` has returned."""

    def __init__(self, store: Store, experiment: str, run_name: str, run_id: str | None = None):
        self.store = store
        self.experiment = experiment
        self.run_name = run_name
        self.run_id = run_id or ""
        self.started_s = 0.0  # seconds since 1970
        self.experiment_id = ""
        self._client: Any = None
        self._tables: list[str] = []
        self.refused: list[str] = []  # parameters and tags that the store does not take, and why

    def open(self, params: Mapping[str, Any], tags: Mapping[str, Any], files: Iterable[tuple[Path, str]]) -> None:
        """Create the run with params, tags and files [(local path, artifact folder)]; a resumed one gets no params."""
        bound_waits()
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=self.store.uri)
        if self.run_id:
            run = self._reopened()
        else:
            self.experiment_id = self._experiment()
            run = self._client.create_run(self.experiment_id, run_name=self.run_name)
            self.run_id = run.info.run_id
            self._write("params", [Param(name, str(params[key])) for key, name in named(params).items()])
        self.started_s = run.info.start_time / 1000
        self._tables = [entry["path"] for entry in json.loads(run.data.tags.get(TABLES_TAG, "[]"))]
        self.tags(tags)
        for path, folder in files:
            self.file(path, folder)

    def alive(self) -> bool:
        """Whether the store answers at all."""
        try:
            self._client.get_run(self.run_id)
        except Exception:
            return False
        return True

    def metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of {step, time, name: value, ...}; the same row twice is stored once."""
        from mlflow.entities import Metric

        points = [
            Metric(name_of(name), value, int(row["time"] * 1000), row["step"])
            for row in rows
            for name, value in row.items()
            if name not in ("step", "time")
        ]
        for start in range(0, len(points), 1000):
            self._client.log_batch(self.run_id, metrics=points[start : start + 1000])

    def tags(self, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._write("tags", [RunTag(name, str(tags[key])[:8000]) for key, name in named(tags).items()])

    def _write(self, kind: str, entries: Sequence[Any]) -> None:
        """kind: params | tags. What the store refuses is told once and costs no other entry."""
        for start in range(0, len(entries), 100):  # MLflow takes 100 at a time
            some = entries[start : start + 100]
            for entry, why in deliver(some, lambda part: self._client.log_batch(self.run_id, **{kind: part})):
                self.refused.append(f"{kind.removesuffix('s')} {entry.key} ({redact(why)})")
                log.warning("MLflow refuses %s", self.refused[-1])

    def file(self, path: Path, folder: str) -> None:
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def table(self, path: Path, folder: str) -> None:
        """A JSON file in MLflow's table form; the newest tables are made known to the UI."""
        self.file(path, folder)
        name = f"{folder}/{path.name}"
        self._tables = [*(known for known in self._tables if known != name), name][-TABLES_IN_TAG:]
        self.tags({TABLES_TAG: json.dumps([{"path": known, "type": "table"} for known in self._tables])})

    def image(self, path: Path, folder: str, key: str, step: int) -> None:
        """A PNG as a file, and under `key` in the UI's slider over steps."""
        from PIL import Image

        self.file(path, folder)
        with Image.open(path) as image:
            self._client.log_image(self.run_id, image, key=key, step=step, synchronous=True)
        trim_memory()

    def trace(self, step: int, number: int, row: Mapping[str, Any], times: tuple[float, float, float]) -> None:
        """A rollout of a step as a trace; see traces.log_trace."""
        log_trace(self.store.uri, self.experiment_id, self.run_id, step, number, row, times)

    def dataset(self, name: str, digest: str, rows: Sequence[Mapping[str, Any]], count: int, context: str) -> None:
        """A dataset input. rows: a sample with the columns; count: prompts in all."""
        import pandas
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.pandas_dataset import from_pandas
        from mlflow.entities import Dataset, DatasetInput, InputTag

        sources = ", ".join(sorted({str(row["source"]) for row in rows}))[:500]
        source = CodeDatasetSource(tags={"sources": sources})
        described = from_pandas(pandas.DataFrame(list(rows)), source=source, name=name, digest=digest).to_dict()
        described["profile"] = json.dumps({"num_rows": count})
        entry = DatasetInput(Dataset(**described), [InputTag("mlflow.data.context", context)])
        self._client.log_inputs(self.run_id, [entry])

    def end(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)

    @property
    def open_command(self) -> str:
        """The shell command that opens the store, or the address of the run on a server."""
        if self.store.remote:
            return self._page
        return f"mlflow ui --backend-store-uri {shlex.quote(self.store.shown)} --host {UI_HOST} --port {UI_PORT}"

    @property
    def charts_url(self) -> str:
        """The address of the run's charts, on its server or on the one that `open_command` starts.

        Without the parameter MLflow 3 opens an experiment in its view for GenAI, which shows no charts.
        """
        return f"{self._page}/model-metrics?workflowType=machine_learning"

    @property
    def _page(self) -> str:
        server = self.store.shown.rstrip("/") if self.store.remote else f"http://{UI_HOST}:{UI_PORT}"
        return f"{server}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def _reopened(self) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(self.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            text = f"it does not hold MLflow run {self.run_id}, which this run goes on with"
            raise UnknownRun(f"MLflow at {self.store.shown} ({self.store.origin}) cannot be used: {text}") from error
        if run.info.lifecycle_stage == "deleted":
            raise KrayError(f"MLflow run {self.run_id} at {self.store.shown} is deleted; restore it to resume into it")
        self.experiment_id = run.info.experiment_id
        self._client.update_run(self.run_id, status="RUNNING")
        return run

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        for _ in range(2):  # twice: another run may create it in between
            found = self._client.get_experiment_by_name(self.experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise KrayError(
                    f"track.experiment {self.experiment} is deleted at {self.store.shown}; take another name"
                )
            if found is not None:
                return found.experiment_id
            try:
                return self._client.create_experiment(self.experiment, artifact_location=self.store.artifacts)
            except MlflowException as error:
                if error.error_code == "INVALID_PARAMETER_VALUE":
                    raise ConfigError(f"track.experiment {self.experiment!r} is refused by MLflow: {error}") from error
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise KrayError(f"track.experiment {self.experiment} can neither be found nor created at {self.store.shown}")


class SystemSamples:
    """CPU, memory, disk, network and GPU use of this machine, as MLflow's own monitor names it."""

    def __init__(self, started_s: float, every_s: float):
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self.started_s = started_s
        self.every_s = every_s
        self._monitors: list[Any] = []
        for monitor in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                self._monitors.append(monitor())
            except (ImportError, RuntimeError):  # no GPU, no driver library: nothing to measure there
                continue

    def take(self) -> dict[str, Any]:
        """One row; its step counts sampling intervals since the run began, so that a resumed run goes on in order."""
        now = time.time()
        row: dict[str, Any] = {"step": int((now - self.started_s) / self.every_s), "time": now}
        for monitor in self._monitors:
            monitor.collect_metrics()
            row.update({f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()})
            monitor.clear_metrics()
        return row


def newest_table(run_id: str, name: str) -> list[dict[str, Any]]:
    """The rows of a run's newest table <name>/step-<n>.json, from MLFLOW_TRACKING_URI. Raises DataError."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    bound_waits()
    try:
        client = MlflowClient()
        paths = sorted(file.path for file in client.list_artifacts(run_id, name) if file.path.endswith(".json"))
        if not paths:
            raise DataError(f"mlflow:{run_id}: the run has no table of {name}")
        with tempfile.TemporaryDirectory() as folder:
            table = json.loads(Path(client.download_artifacts(run_id, paths[-1], folder)).read_text())
    except MlflowException as error:
        raise DataError(f"mlflow:{run_id}: {str(error).splitlines()[0]} (is MLFLOW_TRACKING_URI set?)") from error
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def log_model(store: Store, run_id: str, folder: Path, name: str, step: int, register: bool) -> str:
    """Makes a Hugging Face folder a logged model of the run and, on request, a new version of the registered model `name`.

    step: of the policy. Returns where it is now: an address that `mlflow artifacts download --artifact-uri` and
    mlflow.artifacts.download_artifacts take. Blocks as long as the upload takes. Raises KrayError whatever goes wrong.
    """
    if store.uri.startswith("sqlite") and not Path(store.uri.partition("///")[2]).is_file():  # MLflow would make one
        raise unreachable(store, "no such file; track.uri and MLFLOW_TRACKING_URI must be as they were in the run")
    before = os.environ.get(UPLOAD_TIMEOUT[0])
    os.environ.update([UPLOAD_TIMEOUT])  # a server answers only when it has put a file of gigabytes where it keeps it
    try:
        return _log_model(store, run_id, folder, name, step, register)
    except Exception as error:  # MLflow's, requests', sqlalchemy's or that of whatever holds the artifacts
        raise unreachable(store, f"the model {name} in {folder} could not be handed over: {error}") from error
    finally:
        os.environ.pop(UPLOAD_TIMEOUT[0])
        os.environ.update({} if before is None else {UPLOAD_TIMEOUT[0]: before})


def _log_model(store: Store, run_id: str, folder: Path, name: str, step: int, register: bool) -> str:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    bound_waits()
    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.get_run(run_id).info.experiment_id
    tags = {"kray.step": str(step), "format": "huggingface"}
    model = client.create_logged_model(experiment, name, run_id, tags, model_type="causal-lm")
    try:
        client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    if not register:
        return f"models:/{model.model_id}"
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = model.artifact_location
    version = client.create_model_version(name, source, run_id, tags=tags, model_id=model.model_id)
    return f"models:/{name}/{version.version}"


def trim_memory() -> None:
    """Gives freed memory back to the system, where the C library can (glibc).

    An image is decoded into arrays of megabytes; freed, they leave holes among small allocations that glibc keeps: without
    this a run's driver grew by 0.4 MiB with every figure.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
