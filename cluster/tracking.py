"""MLflow as a mirror of the run directory.

Everything worth tracking is in the run directory first: rows of metrics.jsonl, pictures.
Rank 0 sends them on from a thread while it trains. A row carries its own time, so sending it twice
changes nothing; whatever an outage kept back is therefore sent again, whole, by `finish_run` or by
the next command on the same run. No caller ever waits for MLflow while it works.
"""

import contextlib
import json
import logging
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# A server that is down must be noticed in seconds; MLflow's own defaults retry for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from cluster import __version__
from cluster.config import Config
from cluster.errors import UserError
from data.errors import DataError
from data.store import Store

RECORD = "tracking.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples/"
_BATCH = 500
_MAX_BACKOFF_S = 30.0

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)


@dataclass(frozen=True)
class RunRef:
    """A run in MLflow.

    Attributes:
        uri: Tracking URI.
        run_id: MLflow's id; None while the server could not be reached.
        complete: Whether MLflow holds all that the run directory does.
    """

    uri: str
    run_id: str | None
    complete: bool = False


def tracking_uri(config: Config) -> str:
    """tracking.uri, or an SQLite file in a local run directory.

    Raises:
        UserError: If the run directory is remote and no URI is given.
    """
    if config.tracking.uri:
        return config.tracking.uri
    store = Store(config.run.dir)
    if not store.is_local:
        raise UserError(
            f"tracking.uri is empty and run.dir={config.run.dir} is remote, where MLflow's "
            "database cannot be; give tracking.uri, such as http://mlflow:5000"
        )
    return f"sqlite:///{store.local_path('mlflow.db')}"


@contextlib.contextmanager
def tracked_run(config: Config, *, name: str, parent_run_id: str | None = None) -> Iterator[RunRef]:
    """Open the run for as long as the block lasts, then end it as FINISHED, FAILED or KILLED.

    Args:
        config: Configuration of the run.
        name: Name shown for a new run.
        parent_run_id: Run under which a new one is nested.

    Yields:
        The run.
    """
    status = "FAILED"
    try:
        yield open_run(config, name=name, parent_run_id=parent_run_id)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        finish_run(config, status, name=name, parent_run_id=parent_run_id)


def open_run(config: Config, *, name: str, parent_run_id: str | None = None) -> RunRef:
    """Open the MLflow run of a run directory, the same one each time.

    Args:
        config: Configuration of the run.
        name: Name shown for a new run.
        parent_run_id: Run under which a new one is nested.

    Returns:
        The run; without an id if MLflow did not answer, which stops nobody.
    """
    run, uri = Store(config.run.dir), tracking_uri(config)
    ref = load_run(config)
    if ref is None or ref.uri != uri:
        ref = RunRef(uri, None)
    try:
        client = _client(uri, run)
        run_id = ref.run_id or _create(client, config, name, parent_run_id)
        ref = RunRef(uri, run_id)
        client.update_run(run_id, status="RUNNING")
    except _OUTAGES as error:
        _warn(uri, error)
    ref = RunRef(uri, ref.run_id)
    _record(run, ref)
    return ref


def load_run(config: Config) -> RunRef | None:
    """The run recorded in the run directory, if one was opened."""
    run = Store(config.run.dir)
    return RunRef(**json.loads(run.read_bytes(RECORD))) if run.exists(RECORD) else None


def finish_run(config: Config, status: str, *, name: str, parent_run_id: str | None = None) -> None:
    """Send what is missing and end the run in MLflow.

    Args:
        config: Configuration of the run.
        status: FINISHED, FAILED or KILLED.
        name: Name shown, if the run could not be opened before.
        parent_run_id: Run under which it is nested, likewise.
    """
    run = Store(config.run.dir)
    ref = load_run(config)
    if ref is None or ref.run_id is None:
        ref = open_run(config, name=name, parent_run_id=parent_run_id)
    if ref.run_id is None:
        return
    try:
        client = _client(ref.uri, run)
        if not ref.complete:
            mirror(client, ref.run_id, run)
            _record(run, RunRef(ref.uri, ref.run_id, complete=True))
        client.set_terminated(ref.run_id, status)
    except _OUTAGES as error:
        _warn(ref.uri, error)


def mirror(client: MlflowClient, run_id: str, run: Store) -> None:
    """Send all rows and sample pictures of a run directory."""
    rows = run.read_bytes(METRICS).decode().splitlines() if run.exists(METRICS) else []
    _send_rows(client, run_id, [json.loads(row) for row in rows])
    for path in run.list(SAMPLES, ".png"):
        _send_file(client, run_id, path, run.read_bytes(path))


def log_results(
    config: Config, metrics: dict[str, float], files: dict[str, bytes] | None = None
) -> None:
    """Add the outcome of a job to its run in MLflow; does nothing where none was opened.

    Args:
        config: Configuration of the run.
        metrics: Values by name.
        files: Contents by path in the run's artifacts.
    """
    ref = load_run(config)
    if ref is None or ref.run_id is None:
        return
    try:
        client = _client(ref.uri, Store(config.run.dir))
        now_ms = int(time.time() * 1000)
        _send_rows(client, ref.run_id, [{"images_seen": 0, "time_ms": now_ms} | metrics])
        with tempfile.TemporaryDirectory() as folder:
            for path, payload in (files or {}).items():
                local = Path(folder) / path
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(payload)
            client.log_artifacts(ref.run_id, folder)
    except _OUTAGES as error:
        _warn(ref.uri, error)


class Tracker:
    """Sends rows and pictures from a thread; its methods return at once, whatever MLflow does.

    Args:
        ref: The run; one without an id is left to `finish_run`.
        run: Run directory.
    """

    def __init__(self, ref: RunRef, run: Store) -> None:
        self._ref, self._run = ref, run
        self._waiting: queue.SimpleQueue[dict[str, Any] | tuple[str, bytes] | None]
        self._waiting = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="tracking", daemon=True)
        self._thread.start()

    def row(self, row: dict[str, Any]) -> None:
        """Send a row of metrics.jsonl."""
        self._waiting.put(row)

    def picture(self, path: str, payload: bytes) -> None:
        """Send a PNG under samples/."""
        self._waiting.put((path, payload))

    def close(self, timeout_s: float) -> bool:
        """Stop, waiting at most `timeout_s` seconds; returns whether everything was sent."""
        self._waiting.put(None)
        self._thread.join(timeout_s)
        self._closing.set()
        complete = not self._thread.is_alive() and self._ref.run_id is not None
        _record(self._run, RunRef(self._ref.uri, self._ref.run_id, complete))
        return complete

    def _send_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            for backoff_s in _backoff():
                try:
                    self._send(item)
                    break
                except _OUTAGES:
                    if self._closing.wait(backoff_s):
                        return

    def _send(self, item: dict[str, Any] | tuple[str, bytes]) -> None:
        if self._ref.run_id is None:
            return
        client = _client(self._ref.uri, self._run)
        if isinstance(item, dict):
            _send_rows(client, self._ref.run_id, [item])
        else:
            _send_file(client, self._ref.run_id, *item)


# MLflow wraps what its server and its database say; files and sockets fail with OSError.
_OUTAGES = (MlflowException, OSError, DataError)


def _backoff() -> Iterator[float]:
    wait_s = 0.5
    while True:
        yield wait_s
        wait_s = min(wait_s * 2, _MAX_BACKOFF_S)


def _client(uri: str, run: Store) -> MlflowClient:
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def _create(client: MlflowClient, config: Config, name: str, parent_run_id: str | None) -> str:
    tags = {"mlflow.runName": name, "code_version": __version__, "data_uri": config.data.uri}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    experiment = _experiment(client, config)
    run_id: str = client.create_run(experiment, tags=tags).info.run_id
    params = [
        Param(f"{section}.{field}", str(value))
        for section, fields in config.model_dump(mode="json").items()
        for field, value in fields.items()
    ]
    client.log_batch(run_id, params=params)
    return run_id


def _experiment(client: MlflowClient, config: Config) -> str:
    name, uri = config.tracking.experiment, tracking_uri(config)
    location = None
    if uri.startswith("sqlite:///"):
        # Without a server MLflow would put artifacts into the current directory.
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts").as_uri()
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


def _send_rows(client: MlflowClient, run_id: str, rows: list[dict[str, Any]]) -> None:
    metrics = [
        Metric(name, value, row["time_ms"], row["images_seen"])
        for row in rows
        for name, value in row.items()
        if name not in ("images_seen", "time_ms")
    ]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def _send_file(client: MlflowClient, run_id: str, path: str, payload: bytes) -> None:
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / name
        local.write_bytes(payload)
        client.log_artifact(run_id, str(local), folder or None)


def _record(run: Store, ref: RunRef) -> None:
    run.write_bytes(RECORD, json.dumps(asdict(ref), indent=1).encode())


def _warn(uri: str, error: Exception) -> None:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    print(
        f"warning: MLflow at {uri} does not answer ({reason[:200]}); the run goes on",
        file=sys.stderr,
    )
