"""Whatever a person gives, a mistake is one clear message and an exit status that is not 0."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.pack import pack
from data.sample import Sample, encode_png
from data.store import Store
from tests.jobs import TINY, flags, run_cli, start_cli


def _expect(words: list[str], told: str, *, env: dict[str, str] | None = None) -> None:
    """Expect one message; with `env`, in a process of its own, whose libraries' logs count too."""
    if env is None:
        status, output = run_cli(words)
    else:
        process = start_cli(words, env=env)
        output, _ = process.communicate(timeout=240)
        status = process.returncode
    assert status == 2, output
    assert told in output
    assert "Traceback" not in output


def _train(dataset: object, run_dir: Path, **more: object) -> list[str]:
    return ["train", *flags(TINY | {"data.uri": dataset, "run.dir": run_dir} | more)]


def test_unknown_key(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("objective: {gama: 1}\n")
    _expect(["train", "--config", str(config)], "objective.gama: unknown key; objective has gamma")


def test_gamma_zero() -> None:
    _expect(
        ["train", "--objective.gamma", "0"], "objective.gamma=0: input should be greater than 0"
    )


def test_no_data_set(tmp_path: Path) -> None:
    _expect(_train(tmp_path / "none", tmp_path / "run"), "dataset.json does not exist")


def test_missing_shard_is_refused_before_anything_starts(dataset: Path, tmp_path: Path) -> None:
    copy, run_dir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(dataset, copy)
    (copy / "train-normal/4/00001-000.tar").unlink()
    told = (
        f"shards are missing in {copy}, such as train-normal/4/00001-000.tar; pack the data again"
    )
    _expect(_train(copy, run_dir), told)
    assert not run_dir.exists()


@pytest.mark.slow
def test_empty_shard(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    (copy / "train-normal/4/00001-000.tar").write_bytes(b"")
    # The first stage sees more images than there are, so that no shard is left out. No retries: the
    # worker that meets the shard would meet it again.
    more = {"schedule.steady_kimg": 2, "cluster.max_failures": 0}
    _expect(_train(copy, tmp_path / "run", **more), "train-normal/4/00001-000.tar", env={})


def test_empty_source(tmp_path: Path) -> None:
    (tmp_path / "source/normal").mkdir(parents=True)
    words = ["pack", str(tmp_path / "source"), str(tmp_path / "out"), *flags(TINY)]
    _expect(words, "is of no known format (found nothing)")
    assert not (tmp_path / "out/dataset.json").exists()


def test_mixed_channels(tmp_path: Path) -> None:
    folder = tmp_path / "source/normal"
    folder.mkdir(parents=True)
    for number in range(12):
        channels = 3 if number == 7 else 1
        image = np.full((16, 16, channels), number, np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(image))
    words = ["pack", str(tmp_path / "source"), str(tmp_path / "out"), *flags(TINY)]
    _expect(words, "mixed channels: ")
    assert not (tmp_path / "out/dataset.json").exists()


def test_split_without_images(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 1), np.uint8)
    samples = [
        Sample(f"n{i}", image, "normal", "test", f"g{i}", "good", "train-normal") for i in range(20)
    ]
    pack(samples, Store(str(tmp_path / "data")), resolution=16, name="x", seed=0)
    told = "has none in train-abnormal; set objective.alpha=0 or add some"
    _expect(_train(tmp_path / "data", tmp_path / "run"), told)


def test_unreachable_store(tmp_path: Path) -> None:
    env = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    told = "check that the server is up and AWS_ENDPOINT_URL, now http://127.0.0.1:9"
    _expect(_train("s3://bucket/data", tmp_path / "run"), told, env=env)


def test_inspecting_without_a_model(dataset: Path, tmp_path: Path) -> None:
    words = ["inspect", *flags(TINY | {"data.uri": dataset, "run.dir": tmp_path})]
    _expect(words, "holds no trained model; run `python -m cluster train`")


def test_damaged_model(dataset: Path, run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir / "model", copy / "model")
    weights = copy / "model/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    words = flags(TINY | {"data.uri": dataset, "run.dir": copy, "inspect.dir": tmp_path / "out"})
    _expect(["inspect", *words], "does not match its sha256 in model.json")


def test_model_of_a_future_version(dataset: Path, run_dir: Path, tmp_path: Path) -> None:
    card = json.loads((run_dir / "model/model.json").read_text()) | {"schema_version": 99}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.json").write_text(json.dumps(card))
    words = flags(TINY | {"data.uri": dataset, "run.dir": tmp_path})
    _expect(["inspect", *words], "has schema_version=99, this version reads 1")


def test_ray_cluster_that_does_not_answer(dataset: Path, tmp_path: Path) -> None:
    words = _train(dataset, tmp_path / "run")
    _expect(words, "RAY_ADDRESS=127.0.0.1:9", env={"RAY_ADDRESS": "127.0.0.1:9"})
