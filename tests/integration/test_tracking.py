"""MLflow as a mirror: with SQLite, a real server, and a server that is away for a while."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.config import Config, load_config
from cluster.tracking import METRICS, Tracker, finish_run, load_run, log_results, open_run
from data.store import Store
from tests.mlflow_server import mlflow_server
from tests.ports import free_port

PNG = b"\x89PNG\r\n\x1a\n"


def _config(run_dir: Path, uri: str = "") -> Config:
    return load_config(None, {"run.dir": str(run_dir), "tracking.uri": uri})


def _row(number: int) -> dict[str, float]:
    return {"images_seen": number * 100, "time_ms": 1_000_000 + number, "train/loss_d": number / 2}


def _write_rows(run_dir: Path, count: int) -> None:
    lines = "".join(f"{json.dumps(_row(n))}\n" for n in range(count))
    (run_dir / METRICS).write_text(lines)


NOTES: list[str] = []
"""What trackers say to people; what they say is looked at elsewhere."""


def _history(uri: str, run_id: str) -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(run_id, "train/loss_d")
    return sorted((metric.step, metric.value) for metric in history)


def _expected(count: int) -> list[tuple[int, float]]:
    return [(n * 100, n / 2) for n in range(count)]


def test_sqlite_in_the_run_directory_holds_the_whole_run(tmp_path: Path) -> None:
    config = _config(tmp_path)
    ref = open_run(config, name="one")
    tracker = Tracker(ref, Store(config.run.dir), NOTES.append)
    for number in range(5):
        tracker.row(_row(number))
    Store(config.run.dir).write_bytes("samples/a.png", PNG)
    tracker.picture("samples/a.png")
    assert tracker.close(timeout_s=60)
    log_results(config, {"test/auroc": 0.9}, {"inspection/test/report.html": b"<p>"})
    finish_run(config, "FINISHED", name="one")

    assert ref.run_id is not None
    client = MlflowClient(ref.uri)
    run = client.get_run(ref.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one")
    assert run.data.params["objective.gamma"] == "0.7"
    assert run.data.metrics["test/auroc"] == 0.9
    assert _history(ref.uri, ref.run_id) == _expected(5)
    assert [f.path for f in client.list_artifacts(ref.run_id, "samples")] == ["samples/a.png"]
    assert client.list_artifacts(ref.run_id, "inspection/test")[0].path.endswith("report.html")


def test_same_run_directory_means_the_same_run(tmp_path: Path) -> None:
    config = _config(tmp_path)
    first = open_run(config, name="one")
    finish_run(config, "FAILED", name="one")
    again = open_run(config, name="one")
    assert again.run_id == first.run_id is not None
    assert MlflowClient(again.uri).get_run(again.run_id).info.status == "RUNNING"


def test_nested_run_names_its_parent(tmp_path: Path) -> None:
    parent = open_run(_config(tmp_path / "parent"), name="parent")
    child = open_run(
        _config(tmp_path / "child", parent.uri), name="child", parent_run_id=parent.run_id
    )
    tags = MlflowClient(parent.uri).get_run(child.run_id).data.tags
    assert tags["mlflow.parentRunId"] == parent.run_id


@pytest.mark.timeout(280)
def test_server_away_for_a_while_stops_nobody_and_misses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, run_dir = free_port(), tmp_path / "run"
    config = _config(run_dir, f"http://127.0.0.1:{port}")
    with mlflow_server(tmp_path, port):
        ref = open_run(config, name="one")
        assert ref.run_id is not None
        tracker = Tracker(ref, Store(config.run.dir), NOTES.append)
        for number in range(3):
            tracker.row(_row(number))
        _wait_for(lambda: len(_history(ref.uri, ref.run_id or "")) == 3)
    started_s = time.perf_counter()
    for number in range(3, 103):
        tracker.row(_row(number))
    assert time.perf_counter() - started_s < 2, "calls waited for the dead server"
    assert not tracker.close(timeout_s=1)
    _write_rows(run_dir, 103)
    finish_run(config, "FINISHED", name="one")
    assert "the run goes on" in capsys.readouterr().err

    with mlflow_server(tmp_path, port):
        finish_run(config, "FINISHED", name="one")
        assert _history(ref.uri, ref.run_id) == _expected(103)
        assert MlflowClient(ref.uri).get_run(ref.run_id).info.status == "FINISHED"


@pytest.mark.timeout(280)
def test_server_down_from_the_start_gets_everything_at_the_end(tmp_path: Path) -> None:
    port, run_dir = free_port(), tmp_path / "run"
    config = _config(run_dir, f"http://127.0.0.1:{port}")
    ref = open_run(config, name="one")
    assert ref.run_id is None
    tracker = Tracker(ref, Store(config.run.dir), NOTES.append)
    for number in range(3):
        tracker.row(_row(number))
    assert not tracker.close(timeout_s=5)
    _write_rows(run_dir, 3)
    (run_dir / "samples").mkdir()
    (run_dir / "samples/a.png").write_bytes(PNG)
    with mlflow_server(tmp_path, port):
        finish_run(config, "FINISHED", name="one")
        late = load_run(config)
        assert late is not None
        assert late.run_id is not None
        assert _history(late.uri, late.run_id) == _expected(3)
        assert MlflowClient(late.uri).list_artifacts(late.run_id, "samples")


def _wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert condition()
