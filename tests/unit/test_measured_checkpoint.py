"""A run that dies while its model is measured: nothing trained is lost, and nothing measured."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.assessment import Assessor
from cluster.checkpoint_store import CheckpointStore, last_metrics
from cluster.config import load_config
from cluster.train_loop import train_worker
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.store import Store
from tests.jobs import TINY
from tests.one_rank import Board, without_ray

SETTINGS = TINY | {
    "networks.resolution": 8,
    "networks.fmap_base": 8,
    "networks.fmap_max": 4,
    "schedule.batch": 8,
    "schedule.abnormal_batch": 4,
    # The last step of the first phase begins in it and ends in the next.
    "schedule.fade_kimg": 0.036,
    "schedule.steady_kimg": 0.036,
    "schedule.final_kimg": 0.048,
    "search.steps": 2,
    "cluster.num_workers": 1,
    "cluster.checkpoint_kimg": 0.04,
    "tracking.log_kimg": 0.008,
    "tracking.sample_kimg": 100,
    "tracking.validation_images": 8,
    "tracking.keep_best": True,
}
"""Fifteen steps of eight images; a checkpoint every five steps, the first where a phase ends."""


class KilledError(Exception):
    """Stands for a worker that dies."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    counts = {"num_train_normal": 24, "num_train_abnormal": 8, "num_validation": 8, "num_test": 2}
    folder = str(tmp_path_factory.mktemp("data"))
    samples = synthetic_surfaces(resolution=8, seed=1, **counts)
    pack(samples, Store(folder), resolution=8, name="metal", seed=0, shard_samples=8)
    return folder


@pytest.fixture(scope="module")
def straight(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    run = tmp_path_factory.mktemp("run")
    with without_ray():
        _train(dataset, run)
    return run


@pytest.fixture(autouse=True)
def _without_ray() -> Iterator[None]:
    with without_ray():
        yield


def _train(dataset: str, run: Path) -> None:
    config = load_config(None, SETTINGS | {"data.uri": dataset, "run.dir": str(run)})
    tracking = {"uri": "http://127.0.0.1:9", "run_id": None}
    train_worker({"config": config.model_dump(), "tracking": tracking, "board": Board()})


def _rows(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time_ms", "train/images_per_s", "train/memory_gib", "data/wait_")
    return [{name: row[name] for name in row if not name.startswith(clock)} for row in rows]


def _kill(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int, dataset: str, run: Path
) -> None:
    """Train until a method is called for the so-manieth time."""
    calls, real = iter(range(100)), getattr(owner, method)

    def kill(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KilledError
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, kill)
        with pytest.raises(KilledError):
            _train(dataset, run)


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize(
    ("owner", "method"),
    [(Assessor, "measure"), (CheckpointStore, "add_metrics")],
    ids=["while it is measured", "before that is noted"],
)
def test_run_killed_while_it_is_measured_ends_like_one_that_was_not(
    owner: type,
    method: str,
    call: int,
    dataset: str,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _kill(monkeypatch, owner, method, call, dataset, tmp_path)
    _train(dataset, tmp_path)
    assert _rows(tmp_path) == _rows(straight)
    assert last_metrics(Store(str(tmp_path))) == last_metrics(Store(str(straight)))
    assert "validation_auroc" in last_metrics(Store(str(straight)))
    weights = "model/weights.safetensors"
    assert (tmp_path / weights).read_bytes() == (straight / weights).read_bytes()


def test_what_was_trained_is_saved_before_it_is_measured(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _kill(monkeypatch, Assessor, "measure", 0, dataset, tmp_path)
    (manifest,) = tmp_path.glob("checkpoints/*/checkpoint.json")
    said = json.loads(manifest.read_text())
    assert (said["images_seen"], said["metrics"], said["pending"]) == (40, {"images_seen": 40}, 0)
