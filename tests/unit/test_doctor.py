"""The doctor finds what would stop a job."""

from pathlib import Path

import pytest

from cluster.config import Config, load_config
from cluster.doctor import check_data, check_mlflow, check_run_dir, check_versions
from cluster.errors import UserError
from data.errors import DataError
from data.pack import pack
from data.store import Store
from data.synthetic import synthetic_surfaces


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
    shard = Path(config.data.uri) / "test/8/00000.tar"
    content = bytearray(shard.read_bytes())
    if fault == "is missing":
        shard.unlink()
    elif fault == "bytes instead of":
        shard.write_bytes(content[:-512])
    else:
        content[1000] ^= 1
        shard.write_bytes(bytes(content))
    with pytest.raises(UserError, match=rf"1 of \d+ shards.*test/8/00000.tar.*{fault}"):
        list(check_data(config))


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


def test_tracking_server_that_is_away(config: Config) -> None:
    away = config.tracking.model_copy(update={"uri": "http://127.0.0.1:9"})
    with pytest.raises(UserError, match="does not answer"):
        list(check_mlflow(config.model_copy(update={"tracking": away})))


def test_installed_versions_are_the_pinned_ones(config: Config) -> None:
    assert "pinned packages" in next(check_versions(config))


def test_other_versions_are_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    with pytest.raises(UserError, match=r"torch is 0\.0\.1, pinned is 2\.13\.0"):
        list(check_versions(config))
