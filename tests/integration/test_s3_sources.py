"""What is read from a bucket or written to one beside data sets and runs: images, weights, exports.

No Ray is started: the images are few.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import safetensors.torch
import torch

from cluster.cli import main
from cluster.errors import UserError
from cluster.feature_weights import load_feature_weights
from data.dataset import load_index
from data.plain import plain_units, read_plain
from data.preparation import Preparation
from data.shards import read_shard
from data.store import Store
from tests.jobs import flags
from tests.s3_server import BUCKET, moto_s3
from tests.tiny_model import SETTINGS, SIDE, calibrated_model, image_file, model_config


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with moto_s3() as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield Store(f"s3://{BUCKET}/factory")


def _copy(source: Store, target: Store) -> None:
    for name in source.list():
        target.write_bytes(name, source.read_bytes(name))


def _samples(dataset: Store, source: Store) -> list[tuple[object, ...]]:
    """What all shards hold, sources from the folder packed on."""
    contents = [read_shard(dataset.read_bytes(name)) for name in dataset.list("", ".tar")]
    return [
        (s.key, s.label, s.split, s.source.removeprefix(source.uri), s.image.tobytes())
        for shard in contents
        for s in shard.samples
    ]


def test_images_of_a_bucket_make_the_samples_that_local_ones_make(
    bucket: Store, tmp_path: Path
) -> None:
    raw = Store(str(tmp_path / "raw"))
    for number in range(20):
        raw.write_bytes(f"{'good' if number % 2 else 'scratch'}/{number}.png", image_file(number))
    _copy(raw, bucket.child("raw"))
    words = flags({"networks.resolution": SIDE, "pack.shard_samples": 8})
    assert main(["pack", raw.uri, str(tmp_path / "packed"), *words]) == 0
    assert main(["pack", bucket.url("raw"), bucket.url("packed"), *words]) == 0
    expected = _samples(Store(str(tmp_path / "packed")), raw)
    assert {image[3] for image in expected} == {f"/{name}" for name in raw.list()}
    assert _samples(bucket.child("packed"), bucket.child("raw")) == expected


def test_a_key_that_cannot_be_read_is_one_bad_image(bucket: Store) -> None:
    for number in range(8):
        bucket.write_bytes(f"raw/{'good' if number % 2 else 'dent'}/{number}.png", image_file(0))
    client = boto3.client("s3")
    for key in ("factory/raw//x.png", "factory/raw/good/../y.png"):
        client.put_object(Bucket=BUCKET, Key=key, Body=image_file(1))
    words = flags({"networks.resolution": SIDE, "data.max_bad_fraction": 0.2})
    assert main(["pack", bucket.url("raw"), bucket.url("packed"), *words]) == 0
    (row,) = map(json.loads, bucket.read_bytes("packed/quarantine.jsonl").splitlines())
    assert row["source"] == f"{bucket.uri}/raw//x.png"
    assert "leaves the store" in row["reason"]
    assert load_index(bucket.child("packed")).num_quarantined == 1
    whole = Preparation(resolution=SIDE, channels=1)
    (unit,), others = plain_units(bucket.child("raw"), whole, unit_images=20)
    assert others == ["good/../y.png"]
    contents = read_plain(unit, whole)
    assert len(contents.samples) == 8
    assert [damage.source for damage in contents.damage] == [f"{bucket.uri}/raw//x.png"]


def test_a_bucket_without_images_is_told(bucket: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", bucket.url("none"), bucket.url("packed")]) == 2
    assert bucket.url("none") in capsys.readouterr().err
    assert bucket.list() == []


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_weights_of_a_bucket_are_those_of_the_file(
    bucket: Store, tmp_path: Path, name: str
) -> None:
    weights, path = {"one": torch.arange(6.0)}, tmp_path / name
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    bucket.write_bytes(name, path.read_bytes())
    found = load_feature_weights(bucket.url(name))
    assert torch.equal(found.tensors["one"], weights["one"])
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=rf"{bucket.url('none.pth')} cannot be used: .* no such"):
        load_feature_weights(bucket.url("none.pth"))


def test_a_run_of_a_bucket_is_exported_into_it(
    bucket: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"local": str(tmp_path / "run"), "bucket": bucket.url("run")}
    calibrated_model(model_config(words["local"]))
    _copy(Store(words["local"]), Store(words["bucket"]))
    exported = {}
    for place, run_dir in words.items():
        command = ["export", f"{run_dir}/mlflow-model", *flags(SETTINGS | {"run.dir": run_dir})]
        assert main(command) == 0
        target = Store(f"{run_dir}/mlflow-model")
        exported[place] = {
            name: target.read_bytes(name)
            for name in target.list()
            if name.startswith(("artifacts/", "code/")) or name == "requirements.txt"
        }
        assert "flavors" in target.read_bytes("MLmodel").decode()
        assert main(command) == 2
        assert f"{target.uri} holds files already" in capsys.readouterr().err
    assert exported["bucket"] == exported["local"]
    assert {"artifacts/model/model.json", "requirements.txt"} <= exported["local"].keys()
