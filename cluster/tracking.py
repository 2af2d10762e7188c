"""MLflow as a mirror of the run directory.

Everything worth tracking is in the run directory first: rows of metrics.jsonl, pictures.
Rank 0 sends them on from a thread while it trains. A row carries its own time, so sending it twice
changes nothing (a stretch trained again after a kill makes rows of its own). Whatever an outage
kept back is sent again, whole, by `finish_run` or, once the run has ended, by `log_results`. One
that was killed has not ended: somebody may train it, and `finish_run` then sends what is missing.
No caller ever waits for MLflow while it works.

Errors come from MLflow, but as well from the database's driver or the artifact store's client
beneath it. None of them may end a job, so every contact with MLflow catches all.
"""

import contextlib
import json
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from cluster.config import Config
from cluster.errors import UserError
from cluster.mlflow_client import (
    SQLITE,
    UNSENT,
    connect,
    create_run,
    follow_artifacts,
    is_active,
    params_of,
    readable,
    send_file,
    send_files,
    send_rows,
    send_unsent,
)
from cluster.training_data import run_store
from data.store import Store

RECORD = "tracking.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples/"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_SECRETS = "user|uid|password|passwd|pwd|passfile|token|odbc_connect"
_MAX_BACKOFF_S = 30.0


@dataclass(frozen=True)
class RunRef:
    """A run in MLflow.

    Attributes:
        uri: Tracking URI.
        run_id: MLflow's id; None while the server could not be reached.
        complete: Whether MLflow holds all that the run directory does.
        ended: How it ended: FINISHED, FAILED or KILLED; None while somebody may train it.
        ended_ms: When, in milliseconds since 1970.
    """

    uri: str
    run_id: str | None
    complete: bool = False
    ended: str | None = None
    ended_ms: int | None = None


def tracking_uri(config: Config) -> str:
    """tracking.uri, or an SQLite file in a local run directory.

    A relative SQLite path is made absolute, because workers have other working directories.

    Raises:
        UserError: If MLflow knows no such URI, or none is given and the run directory is remote.
    """
    if uri := config.tracking.uri:
        scheme = re.split(r"[:+]", uri)[0]
        path = uri.removeprefix(SQLITE)
        if scheme not in _SCHEMES or (scheme == "sqlite" and path in ("", uri)):
            raise UserError(
                f"tracking.uri={public_uri(uri)} is no place for MLflow; use http://host:5000 or "
                "sqlite:///folder/mlflow.db"
            )
        return f"{SQLITE}{Path(path).absolute()}" if scheme == "sqlite" else uri
    store = Store(config.run.dir)
    if not store.is_local:
        raise UserError(
            f"tracking.uri is empty and run.dir={config.run.dir} is remote, where MLflow's "
            "database cannot be; give tracking.uri, such as http://mlflow:5000"
        )
    return f"{SQLITE}{store.local_path('mlflow.db')}"


def public_uri(text: str) -> str:
    """A URI, or a text with some, as it may be shown: without user and password."""
    # Up to the last @, because a password may hold slashes and more of these; a path may, too.
    text = re.sub(r"(sqlite:\S*)|//\S*@", lambda found: found[1] or "//***@", text)
    return re.sub(rf"(?i)({_SECRETS})=[^&\s'\"]*", r"\1=***", text)


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
    """Open the MLflow run of a run directory: the same one each time, unless it was deleted.

    Args:
        config: Configuration of the run.
        name: Name shown for a new run.
        parent_run_id: Run under which a new one is nested.

    Returns:
        The run; without an id if MLflow did not answer, which stops nobody.
    """
    run, uri = run_store(config), tracking_uri(config)
    old = load_run(config) or RunRef(uri, None)
    run_id = old.run_id if old.uri == uri else None
    try:
        client = connect(uri, make=True)
        # Elsewhere, too: a database may have been moved or copied together with its run.
        if old.run_id and is_active(client, old.run_id):
            run_id = old.run_id
            follow_artifacts(old.uri, uri)
        else:
            run_id = create_run(client, uri, config, name, parent_run_id)
        if not client.get_run(run_id).data.params:
            client.log_batch(run_id, params=params_of(config))
        client.update_run(run_id, status="RUNNING")
    except Exception as error:
        _warn(uri, error)
    ref = RunRef(uri, run_id)
    _record(run, ref)
    return ref


def load_run(config: Config) -> RunRef | None:
    """The run recorded in the run directory, if one was opened."""
    run = run_store(config)
    return RunRef(**json.loads(run.read_bytes(RECORD))) if run.exists(RECORD) else None


def finish_run(config: Config, status: str, *, name: str, parent_run_id: str | None = None) -> bool:
    """End the run in MLflow and send what is missing; one that has ended so keeps its end's time.

    Args:
        config: Configuration of the run.
        status: FINISHED, FAILED or KILLED.
        name: Name shown, if the run could not be opened before.
        parent_run_id: Run under which it is nested, likewise.

    Returns:
        Whether MLflow took it all.
    """
    run, uri = run_store(config), config.tracking.uri
    try:
        uri = tracking_uri(config)
        ref = load_run(config) or RunRef(uri, None)
        ended_ms = ref.ended_ms if ref.ended == status else None
        ref = replace(ref, ended=status, ended_ms=ended_ms or int(time.time() * 1000))
        # Until MLflow has been told of the end.
        _record(run, replace(ref, complete=False))
        ref = _reach(config, ref, name=name, parent_run_id=parent_run_id)
        if ref.run_id is None:
            return False
        _finish(run, ref)
        send_unsent(connect(uri), ref.run_id, run)
    except Exception as error:
        _warn(uri, error)
        return False
    return True


def _reach(config: Config, ref: RunRef, *, name: str, parent_run_id: str | None = None) -> RunRef:
    """A run that has ended, opened anew if it was deleted, or moved to another MLflow."""
    uri = tracking_uri(config)
    if ref.run_id and ref.uri == uri and is_active(connect(uri), ref.run_id):
        return ref
    opened = open_run(config, name=name, parent_run_id=parent_run_id)
    ref = replace(opened, ended=ref.ended, ended_ms=ref.ended_ms)
    _record(run_store(config), ref)
    return ref


def _finish(run: Store, ref: RunRef) -> None:
    """Tell MLflow how a run ended, and all that it lacks."""
    client = connect(ref.uri)
    # First, so that the end shows even where only artifacts cannot be sent.
    client.set_terminated(str(ref.run_id), ref.ended, ref.ended_ms)
    if not ref.complete:
        mirror(client, str(ref.run_id), run)
    _record(run, replace(ref, complete=True))


def mirror(client: MlflowClient, run_id: str, run: Store) -> None:
    """Send all rows and sample pictures of a run directory."""
    rows = run.read_bytes(METRICS).decode().splitlines() if run.exists(METRICS) else []
    send_rows(client, run_id, [json.loads(row) for row in rows])
    for path in run.list(SAMPLES, ".png"):
        send_file(client, run_id, path, run.read_bytes(path))


def log_results(
    config: Config, metrics: dict[str, float], files: Mapping[str, bytes] | None = None
) -> None:
    """Add the outcome of a job to its run in MLflow; does nothing where none was opened.

    If the run has ended, what MLflow lacks of it is sent, too; all of it, where the run was deleted
    or its directory is at another place now. What an outage keeps back waits in
    the run directory, under `unsent/`, for the next call of this or of `finish_run`.

    Args:
        config: Configuration of the run.
        metrics: Values by name.
        files: Contents by path in the run's artifacts; read one after the other.
    """
    ref = load_run(config)
    if ref is None:
        return
    run, now_ms = Store(config.run.dir), int(time.time() * 1000)
    row = {"images_seen": 0, "time_ms": now_ms} | metrics
    try:
        if ref.ended:
            ref = _reach(config, ref, name=run.uri.rpartition("/")[2])
        if ref.run_id is None or ref.uri != tracking_uri(config):
            raise ConnectionError("the run could not be opened yet")
        client = connect(ref.uri)
        # Before what waits, of which pictures may find no store: sent twice is sent once.
        send_rows(client, ref.run_id, [row])
        if ref.ended and not ref.complete:
            _finish(run, ref)
        send_unsent(client, ref.run_id, run)
        send_files(client, ref.run_id, files or {})
    except Exception as error:
        _warn(ref.uri, error)
        for path, payload in readable(files or {}):
            run.write_bytes(f"{UNSENT}files/{path}", payload)
        run.write_bytes(f"{UNSENT}{now_ms}.json", json.dumps(row).encode())


class Tracker:
    """Sends rows and pictures from a thread; its methods return at once, whatever MLflow does.

    Args:
        ref: The run; one without an id is left to `finish_run`.
        run: Run directory.
        note: Called with a line for people, once, when MLflow does not take something.
    """

    def __init__(self, ref: RunRef, run: Store, note: Callable[[str], None]) -> None:
        self._ref, self._run, self._note = ref, run, note
        self._waiting: queue.SimpleQueue[dict[str, Any] | str | None]
        self._waiting = queue.SimpleQueue()
        self._closing = threading.Event()
        # A run that is resumed may have rows that were never sent.
        self._whole, self._complete = not run.exists(METRICS), False
        self._thread = threading.Thread(target=self._send_all, name="tracking", daemon=True)
        self._thread.start()

    def row(self, row: dict[str, Any]) -> None:
        """Send a row of metrics.jsonl."""
        self._waiting.put(row)

    def picture(self, path: str) -> None:
        """Send a picture of the run directory."""
        self._waiting.put(path)

    def close(self, timeout_s: float) -> bool:
        """Stop, waiting at most `timeout_s` seconds; returns whether everything was sent."""
        self._waiting.put(None)
        self._thread.join(timeout_s)
        self._closing.set()
        complete = self._complete
        _record(self._run, RunRef(self._ref.uri, self._ref.run_id, complete))
        return complete

    def _send_all(self) -> None:
        told = False
        while (item := self._waiting.get()) is not None:
            for backoff_s in _backoff():
                try:
                    self._send(item)
                    break
                except Exception as error:
                    if not told:
                        self._note(_failed(self._ref.uri, error))
                        told = True
                    # The store of artifacts may be away alone: curves must go on without it.
                    if isinstance(item, str):
                        self._whole = False
                        break
                    if self._closing.wait(backoff_s):
                        return
        self._complete = self._whole and self._ref.run_id is not None

    def _send(self, item: dict[str, Any] | str) -> None:
        if self._ref.run_id is None:
            return
        client = connect(self._ref.uri)
        if isinstance(item, dict):
            send_rows(client, self._ref.run_id, [item])
        else:
            # Not with the run's patience: rows wait behind it.
            send_file(client, self._ref.run_id, item, Store(self._run.uri).read_bytes(item))


def _backoff() -> Iterator[float]:
    wait_s = 0.5
    while True:
        yield wait_s
        wait_s = min(wait_s * 2, _MAX_BACKOFF_S)


def _record(run: Store, ref: RunRef) -> None:
    run.write_bytes(RECORD, json.dumps(asdict(ref), indent=1).encode())


def _warn(uri: str, error: Exception) -> None:
    print(f"warning: {_failed(uri, error)}", file=sys.stderr)


def _failed(uri: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"MLflow at {public_uri(uri)} failed: {public_uri(reason)[:200]}; the run goes on"
