"""Where MLflow records runs: which store a configuration means, and whether it can be reached."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kray.config.redaction import redact
from kray.errors import InfrastructureError, KrayError
from kray.tracking.refusals import refusal

# Seconds for a server to accept a connection.
REACH_TIMEOUT_S = 5.0
DATABASES = ("postgresql", "mysql", "mssql")
# MLflow's own defaults block for minutes.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Store:
    """Where MLflow records runs.

    Attributes:
        uri: MLflow's tracking URI.
        artifacts: The URI of the artifact folder of a new experiment; None: the server decides.
        origin: Which setting it comes from, for errors.
    """

    uri: str
    artifacts: str | None
    origin: str

    @property
    def remote(self) -> bool:
        """Whether it is a tracking server."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The URI without secrets."""
        return redact(self.uri)


def locate(uri: str, run_folder: Path) -> Store:
    """Return the store of track.uri, else of MLFLOW_TRACKING_URI, else a SQLite database in the run folder.

    Args:
        uri: The value of track.uri.
        run_folder: The run folder.

    Raises:
        KrayError: No run can be recorded there.
    """
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
    # A database keeps no files, and MLflow's ./mlruns is lost with the job.
    if scheme.partition("+")[0] in DATABASES:
        return Store(uri, (run_folder.absolute().parent / "mlruns-artifacts").as_uri(), origin)
    return Store(uri, None, origin)


def bound_waits() -> None:
    """Set time limits for MLflow's requests; call it before the first one of a process."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def reach(store: Store) -> None:
    """Check that a server accepts connections; other stores are checked when they are opened.

    Raises:
        KrayError: It does not.
    """
    if not store.remote:
        return
    parts = urlsplit(store.uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        raise unreachable(store, error) from None


def unreachable(store: Store, error: object) -> KrayError:
    """Return what to raise: an InfrastructureError, or a KrayError where the store has answered that it refuses."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    kind = KrayError if isinstance(error, Exception) and refusal(error) else InfrastructureError
    return kind(f"MLflow at {store.shown} ({store.origin}) cannot be used: {redact(reason)}")
