"""Requests to MLflow about runs and models.

Every method of `MlflowRun` may block for as long as MLflow's own time limits and may raise anything: the writer's thread alone
calls them. `log_model` has a client of its own.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kray.config.redaction import redact
from kray.errors import ConfigError, DataError, KrayError
from kray.text import legible
from kray.tracking.names import name_of, named
from kray.tracking.refusals import deliver
from kray.tracking.store import Store, bound_waits, unreachable
from kray.tracking.traces import log_trace

logger = logging.getLogger(__name__)
# Where `mlflow ui` shows a local store.
UI_HOST, UI_PORT = "127.0.0.1", 5000
# The tag by which MLflow's pages know which JSON artifacts are tables, and how many it holds in its 8,000 characters.
TABLES_TAG = "mlflow.loggedArtifacts"
TABLES_IN_TAG = 60
# Seconds for one file of a model.
UPLOAD_TIMEOUT = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")


class UnknownRun(ConfigError):
    """The store does not hold the run that is to be resumed."""


class MlflowRun:
    """One run in a store.

    Attributes:
        run_id: MLflow's id of the run; "" until `open` has created it.
        started_s: When the run began, in seconds since 1970.
        refused: Parameters and tags that the store does not accept, with the reason.
    """

    def __init__(self, store: Store, experiment: str, run_name: str, run_id: str | None = None):
        self.store = store
        self.experiment = experiment
        self.run_name = run_name
        self.run_id = run_id or ""
        self.started_s = 0.0
        self.experiment_id = ""
        self._client: Any = None
        self._tables: list[str] = []
        self.refused: list[str] = []

    def open(self, params: Mapping[str, Any], tags: Mapping[str, Any], files: Iterable[tuple[Path, str]]) -> None:
        """Create the run, or reopen it.

        Args:
            params: The parameters of a new run.
            tags: Its tags.
            files: (local path, artifact folder) of files to record.
        """
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
            self._write("params", [Param(name, legible(str(params[key]))) for key, name in named(params).items()])
        self.started_s = run.info.start_time / 1000
        self._tables = [entry["path"] for entry in json.loads(run.data.tags.get(TABLES_TAG, "[]"))]
        self.tags(tags)
        for path, folder in files:
            self.file(path, folder)

    def answers(self) -> bool:
        """Return whether the store answers at all."""
        try:
            self._client.get_run(self.run_id)
        except Exception:
            return False
        return True

    def metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record rows of {step, time, metric: value, ...}; a row that is sent twice is stored once."""
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
        """Set tags."""
        from mlflow.entities import RunTag

        self._write("tags", [RunTag(name, legible(str(tags[key]))[:8000]) for key, name in named(tags).items()])

    def _write(self, kind: str, entries: Sequence[Any]) -> None:
        """Write params or tags, as `kind` says; what the store refuses is noted and does not hold back others."""
        # MLflow accepts 100 at a time.
        for start in range(0, len(entries), 100):
            some = entries[start : start + 100]
            for entry, why in deliver(some, lambda part: self._client.log_batch(self.run_id, **{kind: part})):
                self.refused.append(f"{kind.removesuffix('s')} {entry.key} ({redact(why)})")
                logger.warning("MLflow refuses %s", self.refused[-1])

    def file(self, path: Path, folder: str) -> None:
        """Record a local file in an artifact folder."""
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def table(self, path: Path, folder: str) -> None:
        """Record a JSON file in MLflow's table format; its pages show the newest tables."""
        self.file(path, folder)
        name = f"{folder}/{path.name}"
        self._tables = [*(known for known in self._tables if known != name), name][-TABLES_IN_TAG:]
        self.tags({TABLES_TAG: json.dumps([{"path": known, "type": "table"} for known in self._tables])})

    def image(self, path: Path, folder: str, key: str, step: int) -> None:
        """Record a PNG as a file, and under `key` in the slider over steps of MLflow's pages."""
        from PIL import Image

        self.file(path, folder)
        with Image.open(path) as image:
            self._client.log_image(self.run_id, image, key=key, step=step, synchronous=True)
        trim_memory()

    def trace(self, step: int, number: int, row: Mapping[str, Any], times: tuple[float, float, float]) -> None:
        """Record a rollout of a step as a trace; see traces.log_trace."""
        log_trace(self.store.uri, self.experiment_id, self.run_id, step, number, row, times)

    def dataset(self, name: str, digest: str, rows: Sequence[Mapping[str, Any]], count: int, context: str) -> None:
        """Record the prompts of a run as a dataset.

        Args:
            name: The dataset's name.
            digest: Over all prompts.
            rows: Some of the prompts, with their columns.
            count: All prompts.
            context: train or test.
        """
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
        """End the run with a status."""
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
            text = f"it does not hold MLflow run {self.run_id}, which this run is recorded in"
            raise UnknownRun(f"MLflow at {self.store.shown} ({self.store.origin}) cannot be used: {text}") from error
        if run.info.lifecycle_stage == "deleted":
            raise KrayError(f"MLflow run {self.run_id} at {self.store.shown} is deleted; restore it to resume into it")
        self.experiment_id = run.info.experiment_id
        self._client.update_run(self.run_id, status="RUNNING")
        return run

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        # Twice, because another run may create it in between.
        for _ in range(2):
            found = self._client.get_experiment_by_name(self.experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise KrayError(
                    f"track.experiment {self.experiment} is deleted at {self.store.shown}; use another name"
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


def newest_table(run_id: str, name: str) -> list[dict[str, Any]]:
    """Return the rows of a run's newest table <name>/step-<n>.json, from MLFLOW_TRACKING_URI.

    Raises:
        DataError: There is no such table.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    bound_waits()
    try:
        client = MlflowClient()
        paths = sorted(file.path for file in client.list_artifacts(run_id, name) if file.path.endswith(".json"))
        if not paths:
            raise DataError(f"mlflow:{run_id}: the run has no table of {name}")
        with tempfile.TemporaryDirectory() as folder:
            table = json.loads(Path(client.download_artifacts(run_id, paths[-1], folder)).read_text(encoding="utf-8"))
    except MlflowException as error:
        raise DataError(f"mlflow:{run_id}: {str(error).splitlines()[0]} (is MLFLOW_TRACKING_URI set?)") from error
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def end_run(store: Store, run_id: str, status: str) -> None:
    """Mark a run as ended whose process is gone; where the store does not take that, it is logged.

    Args:
        store: The store of the run.
        run_id: The run.
        status: FAILED or KILLED.
    """
    bound_waits()
    from mlflow import MlflowClient

    try:
        MlflowClient(tracking_uri=store.uri).set_terminated(run_id, status)
    except Exception as error:
        # Errors of MLflow, requests or SQLAlchemy.
        logger.warning("MLflow at %s has not recorded that run %s ended as %s: %s", store.shown, run_id, status, error)


def log_model(store: Store, run_id: str, folder: Path, name: str, step: int, register: bool) -> str:
    """Record a Hugging Face folder as a logged model of a run; blocks for as long as the upload takes.

    Args:
        store: The store of the run.
        run_id: The run.
        folder: The Hugging Face folder.
        name: The name of the model.
        step: The training step of the policy.
        register: Also make it a new version of the registered model `name`.

    Returns:
        Its address, for `mlflow artifacts download --artifact-uri` and mlflow.artifacts.download_artifacts.

    Raises:
        KrayError: It could not be recorded.
    """
    # MLflow would create a missing database.
    if store.uri.startswith("sqlite") and not Path(store.uri.partition("///")[2]).is_file():
        raise unreachable(store, "no such file; track.uri and MLFLOW_TRACKING_URI must be as they were in the run")
    before = os.environ.get(UPLOAD_TIMEOUT[0])
    # A server answers only when it has stored a file, which may have gigabytes.
    os.environ.update([UPLOAD_TIMEOUT])
    try:
        return _log_model(store, run_id, folder, name, step, register)
    except Exception as error:
        # Errors of MLflow, requests, SQLAlchemy or the artifact storage.
        raise unreachable(store, f"the model {name} in {folder} could not be recorded: {error}") from error
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
    """Return freed memory to the system, where the C library can (glibc).

    An image is decoded into arrays of megabytes, which leave holes between small allocations that glibc keeps: without this
    the driver grew by 0.4 MiB with every figure.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
