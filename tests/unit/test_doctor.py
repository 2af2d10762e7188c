"""The doctor finds what would stop a job."""

import importlib.metadata
import time
from pathlib import Path

import pytest
import torch

from cluster.config import Config, load_config
from cluster.doctor import (
    check_compute,
    check_data,
    check_mlflow,
    check_ray,
    check_run_dir,
    check_versions,
    doctor,
)
from cluster.errors import UserError
from data.errors import DataError
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.store import Store


@pytest.fixture
def config(tmp_path: Path) -> Config:
    samples = synthetic_surfaces(
        resolution=8, seed=0, num_train_normal=8, num_train_abnormal=4, num_validation=4, num_test=4
    )
    pack(samples, Store(str(tmp_path / "data")), resolution=8, name="x", seed=0)
    return load_config(None, {"data.uri": str(tmp_path / "data"), "run.dir": str(tmp_path / "run")})


def test_whole_data_set_is_described(config: Config) -> None:
    lines = list(check_data(config))
    assert "shards whole" in lines[0]
    assert any(line.startswith("train-abnormal: 4 abnormal") for line in lines)


@pytest.mark.parametrize("fault", ["is missing", "bytes instead of", "another sha256"])
def test_damaged_shard_is_named(config: Config, fault: str) -> None:
    shard = Path(config.data.uri) / "test/8/00000-000.tar"
    content = bytearray(shard.read_bytes())
    if fault == "is missing":
        shard.unlink()
    elif fault == "bytes instead of":
        shard.write_bytes(content[:-512])
    else:
        content[1000] ^= 1
        shard.write_bytes(bytes(content))
    with pytest.raises(UserError, match=rf"1 of \d+ shards.*test/8/00000-000.tar.*{fault}"):
        list(check_data(config))


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA here")
def test_gpus_need_a_torch_that_can_use_them(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu = config.cluster.model_copy(update={"gpus_per_worker": 1.0})
    asking = config.model_copy(update={"cluster": with_gpu})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        UserError, match=r"torch is installed here without CUDA; run .*TORCH_INDEX="
    ):
        list(check_compute(asking))
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere")
    list(check_compute(asking))


def test_missing_data_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pack a data set there first"):
        list(check_data(load_config(None, {"data.uri": str(tmp_path)})))


def test_run_directory_is_left_as_it_was(config: Config) -> None:
    assert "can be written" in next(check_run_dir(config))
    assert Store(config.run.dir).list() == []


def test_run_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(DataError, match="check the path"):
        list(check_run_dir(load_config(None, {"run.dir": str(tmp_path / "run")})))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql://u:secret@127.0.0.1:9/db"])
def test_tracking_server_that_is_away(config: Config, uri: str) -> None:
    away = config.tracking.model_copy(update={"uri": uri})
    with pytest.raises(UserError, match="does not answer") as caught:
        list(check_mlflow(config.model_copy(update={"tracking": away})))
    assert "secret" not in str(caught.value)


def test_database_that_cannot_be_made(config: Config) -> None:
    nowhere = config.tracking.model_copy(update={"uri": "sqlite:////proc/nowhere/mlflow.db"})
    with pytest.raises(DataError, match="writing /proc/nowhere/doctor-probe failed"):
        list(check_mlflow(config.model_copy(update={"tracking": nowhere})))


def test_looking_for_mlflow_makes_nothing(config: Config) -> None:
    assert "will be made" in next(check_mlflow(config))
    assert Store(config.run.dir).list() == []


def test_dead_ray_cluster_is_found_within_seconds(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    started_s = time.monotonic()
    with pytest.raises(UserError, match=r"RAY_ADDRESS=127\.0\.0\.1:9 does not"):
        list(check_ray(config))
    assert time.monotonic() - started_s < 10


def test_unreachable_store_is_found_and_the_other_checks_go_on(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    data = config.data.model_copy(update={"uri": "s3://nowhere/data"})
    started_s = time.monotonic()
    assert doctor(config.model_copy(update={"data": data})) == 1
    assert time.monotonic() - started_s < 30
    text = capsys.readouterr().out
    assert "FAIL  data: " in text
    assert "AWS_ENDPOINT_URL" in text
    assert "ok    run.dir: " in text


def test_installed_versions_are_the_pinned_ones(config: Config) -> None:
    assert "pinned packages" in next(check_versions(config))


def test_other_versions_are_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    with pytest.raises(UserError, match=r"torch is 0\.0\.1, pinned is 2\.13\.0"):
        list(check_versions(config))


def test_missing_package_is_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(UserError, match="torch is not installed"):
        list(check_versions(config))
