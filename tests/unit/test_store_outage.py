"""A store that fails once at each object, as in a short outage, ends no training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import tracking
from cluster.checkpoint_store import last_metrics
from cluster.config import Config, load_config
from cluster.encoder_job import train_encoder
from cluster.model_store import load_card
from cluster.train_loop import train_worker
from cluster.training_data import run_store
from data.errors import StoreUnavailableError
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.store import Store
from tests.jobs import TINY
from tests.one_rank import Board, without_ray

OPERATIONS = ("read_chunks", "write_bytes", "exists", "list", "delete", "delete_folder")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    counts = {"num_train_normal": 24, "num_train_abnormal": 8, "num_validation": 16, "num_test": 2}
    samples = synthetic_surfaces(resolution=16, seed=1, **counts)
    pack(samples, Store(str(tmp_path / "data")), resolution=16, name="metal", seed=0)
    places = {"data.uri": str(tmp_path / "data"), "run.dir": str(tmp_path / "run")}
    chosen: dict[str, Any] = {
        "cluster.num_workers": 1,
        "cluster.checkpoint_kimg": 0.3,
        "encoder.kimg": 0.032,
        "tracking.validation_images": 16,
        "tracking.keep_best": True,
        "schedule.final_kimg": 0.64,
    }
    return load_config(None, TINY | places | chosen)


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch, config: Config) -> set[tuple[str, str, str]]:
    """What has failed: each operation does, the first time an object is asked for."""
    assert config, "its data set is packed before"
    monkeypatch.setattr("data.patience.time.sleep", lambda _: None)
    failed: set[tuple[str, str, str]] = set()

    def once(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(self: Store, *args: Any) -> Any:
            key = (name, self.uri, str(args[:1]))
            if key not in failed:
                failed.add(key)
                raise StoreUnavailableError(f"{name} {args[:1]} failed: away")
            return real(self, *args)

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(Store, name, once(name, getattr(Store, name)))
    return failed


def test_no_operation_of_a_training_run_ends_it(
    config: Config, failed: set[tuple[str, str, str]]
) -> None:
    record = {"uri": "http://127.0.0.1:9", "run_id": None}
    job = {"config": config.model_dump(), "tracking": record, "board": Board()}
    with without_ray():
        train_worker(job)
    run = run_store(config)
    assert last_metrics(run)["validation_auroc"] >= 0
    failed.clear()
    train_encoder(config)
    assert load_card(run).encoder_sha256
    assert tracking.load_run(config)


def test_run_ends_as_it_did_where_its_directory_cannot_be_read(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise StoreUnavailableError("reading tracking.json failed: away")

    monkeypatch.setattr(tracking, "load_run", refuse)
    tracking.finish_run(config, "FINISHED", name="one")
    assert "tracking.json failed: away; the run goes on" in capsys.readouterr().err
