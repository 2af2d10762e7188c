"""The calls to MLflow that tracking makes; each may raise whatever lies beneath MLflow."""

import contextlib
import json
import logging
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# A server that is down must be noticed in seconds; MLflow's own defaults retry for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
# Nothing about a factory's jobs goes to anyone but its own server.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from cluster import __version__
from cluster.config import Config
from data.errors import DataError
from data.store import Store

UNSENT = "unsent/"
SQLITE = "sqlite:///"
_BATCH = 500

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)


def connect(uri: str, *, make: bool = False) -> MlflowClient:
    """A client; the file of an SQLite address is made at the first call.

    Args:
        uri: Tracking URI.
        make: Whether its folder may be made as well; one that is gone was moved.

    Raises:
        FileNotFoundError: If it may not, and there is none.
    """
    if uri.startswith(SQLITE) and not (folder := _sqlite_folder(uri)).is_dir():
        if not make:
            raise FileNotFoundError(f"{folder} is gone; say in tracking.uri where mlflow.db is now")
        folder.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def follow_artifacts(old: str, new: str) -> None:
    """Let an SQLite file that was moved or copied name the artifacts that lie beside it now.

    MLflow keeps whole addresses, and has no call to change them.
    """
    if old == new or not (old.startswith(SQLITE) and new.startswith(SQLITE)):
        return
    places = [_artifacts(uri) for uri in (old, new)]
    with contextlib.closing(sqlite3.connect(new.removeprefix(SQLITE))) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", places)


def create_run(
    client: MlflowClient, uri: str, config: Config, name: str, parent_run_id: str | None
) -> str:
    """Create a run and, if need be, its experiment; returns the run's id."""
    tags = {"mlflow.runName": name, "code_version": __version__, "data_uri": config.data.uri}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    experiment = _experiment(client, config.tracking.experiment, uri)
    return str(client.create_run(experiment, tags=tags).info.run_id)


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Whether MLflow still has the run: people delete runs, and databases are made anew."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def params_of(config: Config) -> list[Param]:
    """All settings but tracking.uri, which may hold a password."""
    return [
        Param(f"{section}.{field}", str(value))
        for section, fields in config.model_dump(mode="json").items()
        for field, value in fields.items()
        if (section, field) != ("tracking", "uri")
    ]


def _sqlite_folder(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE)).parent


def _artifacts(uri: str) -> str:
    return (_sqlite_folder(uri) / "mlflow-artifacts").as_uri()


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    location = None
    if uri.startswith(SQLITE):
        # Without a server MLflow would put artifacts into the current directory.
        location = _artifacts(uri)
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another job made it between the two calls.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def send_rows(client: MlflowClient, run_id: str, rows: list[dict[str, Any]]) -> None:
    """Send rows of metrics; a row sent before, with the same time, changes nothing."""
    metrics = [
        Metric(name, value, row["time_ms"], row["images_seen"])
        for row in rows
        for name, value in row.items()
        if name not in ("images_seen", "time_ms")
    ]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def send_unsent(client: MlflowClient, run_id: str, run: Store) -> None:
    """Send what waits under `unsent/` in the run directory, deleting each object once sent."""
    files = f"{UNSENT}files/"
    for path in run.list(UNSENT):
        payload = run.read_bytes(path)
        if path.startswith(files):
            send_file(client, run_id, path.removeprefix(files), payload)
        else:
            send_rows(client, run_id, [json.loads(payload)])
        run.delete(path)


def send_file(client: MlflowClient, run_id: str, path: str, payload: bytes) -> None:
    """Send one artifact."""
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / name
        local.write_bytes(payload)
        client.log_artifact(run_id, str(local), folder or None)


def readable(files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Paths and contents, read one after the other; what cannot be read is told and left out."""
    for path in files:
        try:
            payload = files[path]
        except DataError as error:
            print(f"warning: MLflow goes without {path}: {error}", file=sys.stderr)
        else:
            yield path, payload


def send_files(client: MlflowClient, run_id: str, files: Mapping[str, bytes]) -> None:
    """Send artifacts by their paths, all at once."""
    with tempfile.TemporaryDirectory() as folder:
        for path, payload in readable(files):
            local = Path(folder) / path
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(payload)
        client.log_artifacts(run_id, folder)
