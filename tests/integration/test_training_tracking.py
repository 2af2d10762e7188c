"""A training run whose MLflow server is away, for a while or all the time, is not slowed by it."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import gan.state
from cluster.config import Config, load_config
from cluster.tracking import METRICS, Tracker, finish_run, load_run, open_run
from cluster.train_loop import train_worker
from tests.jobs import TINY
from tests.mlflow_server import mlflow_server
from tests.one_rank import Board, without_ray
from tests.ports import free_port

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

BAR = 0.02
SETTINGS = TINY | {
    "cluster.num_workers": 1,
    "schedule.final_kimg": 6,
    "tracking.log_kimg": 0.2,
    "tracking.sample_kimg": 1,
    "tracking.swd_images": 0,
    "cluster.checkpoint_kimg": 2,
}


@dataclass
class Cost:
    """What tracking took of a run, in seconds.

    Attributes:
        calls_s: Time for which steps waited.
        thread_s: CPU time of its own thread, which steps may have lacked.
        close_s: Time for which the finished run waited once, for the last rows.
        run_s: The run without that.
    """

    calls_s: float = 0.0
    thread_s: float = 0.0
    close_s: float = 0.0
    run_s: float = 0.0

    @property
    def share(self) -> float:
        return (self.calls_s + self.thread_s) / self.run_s


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Filled while a worker runs."""
    found = Cost()

    def timed(method: Callable[..., Any], field: str, clock: Callable[[], float]) -> Any:
        def call(*args: Any, **how: Any) -> Any:
            started_s = clock()
            try:
                return method(*args, **how)
            finally:
                setattr(found, field, getattr(found, field) + clock() - started_s)

        return call

    for name in ("row", "picture"):
        method = timed(getattr(Tracker, name), "calls_s", time.perf_counter)
        monkeypatch.setattr(Tracker, name, method)
    monkeypatch.setattr(Tracker, "close", timed(Tracker.close, "close_s", time.perf_counter))
    monkeypatch.setattr(Tracker, "_send", timed(Tracker._send, "thread_s", time.thread_time))
    return found


@contextlib.contextmanager
def _silent(port: int) -> Iterator[None]:
    """A server that takes connections and never says a word, as behind a broken proxy."""
    with socket.create_server(("127.0.0.1", port)):
        yield


def _train(config: Config, cost: Cost) -> None:
    ref = open_run(config, name="one")
    job = {"config": config.model_dump(), "board": Board()}
    with without_ray():
        started_s = time.perf_counter()
        train_worker(job | {"tracking": {"uri": ref.uri, "run_id": ref.run_id}})
        cost.run_s += time.perf_counter() - started_s - cost.close_s
    print(f"{cost}: {cost.share:.4%}")


def _rows(config: Config) -> list[tuple[int, float]]:
    lines = (Path(config.run.dir) / METRICS).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss_d" in row]
    return [(row["images_seen"], row["train/loss_d"]) for row in rows]


def _tracked(config: Config) -> list[tuple[int, float]]:
    ref = load_run(config)
    assert ref is not None
    assert ref.run_id is not None
    history = MlflowClient(ref.uri).get_metric_history(ref.run_id, "train/loss_d")
    return sorted((metric.step, metric.value) for metric in history)


@pytest.mark.parametrize("away", ["closed", "silent"])
def test_server_away_for_the_whole_run(
    dataset: Path, tmp_path: Path, cost: Cost, away: str
) -> None:
    port = free_port()
    config = _config(dataset, tmp_path, port)
    with _silent(port) if away == "silent" else contextlib.nullcontext():
        _train(config, cost)
        finish_run(config, "FINISHED", name="one")
    assert cost.share < BAR
    assert cost.close_s < 15
    with mlflow_server(tmp_path, port):
        finish_run(config, "FINISHED", name="one")
        assert len(_rows(config)) >= 30
        assert _tracked(config) == _rows(config)


@pytest.mark.parametrize("away", ["closed", "silent"])
def test_server_lost_in_mid_run(
    dataset: Path, tmp_path: Path, cost: Cost, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    port = free_port()
    config = _config(dataset, tmp_path, port)
    real_step, calls = gan.state.training_step, iter(range(10_000))
    with contextlib.ExitStack() as server, contextlib.ExitStack() as stand_in:
        server.enter_context(mlflow_server(tmp_path, port))

        def step(*args: Any, **how: Any) -> Any:
            if next(calls) == 150:
                began_s = time.perf_counter()
                server.close()
                cost.run_s -= time.perf_counter() - began_s
                if away == "silent":
                    stand_in.enter_context(_silent(port))
                cost.thread_s = 0.0
            return real_step(*args, **how)

        monkeypatch.setattr(gan.state, "training_step", step)
        _train(config, cost)
    assert cost.share < BAR
    assert cost.close_s < 15
    with mlflow_server(tmp_path, port):
        assert 0 < len(_tracked(config)) < len(_rows(config))
        finish_run(config, "FINISHED", name="one")
        assert _tracked(config) == _rows(config)


def _config(dataset: Path, folder: Path, port: int) -> Config:
    places = {
        "data.uri": str(dataset),
        "run.dir": str(folder / "run"),
        "tracking.uri": f"http://127.0.0.1:{port}",
    }
    return load_config(None, SETTINGS | places)
