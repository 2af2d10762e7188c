"""The encoder of a finished model: trained from its files, and used only where it is."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError, WorkerCrashedError
from torch import Tensor

from cluster import train as train_module
from cluster.config import Config, load_config
from cluster.encoder_job import add_encoder, train_encoder
from cluster.engine import Engine
from cluster.errors import UserError
from cluster.inspection import inspect_split
from cluster.model_store import load_card, load_model, save_model
from cluster.tracking import RunRef
from cluster.train_loop import architecture_of
from data.dataset import load_index
from data.pack import pack
from data.preparation import Preparation
from data.sample import Sample, Split
from data.store import Store
from gan.encoder import EncoderTraining
from tests.jobs import TINY


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Noise of 16 pixels, to train on and to inspect."""
    source, samples = np.random.default_rng(0), []
    for number in range(48):
        image = source.integers(0, 255, (16, 16, 1), np.uint8)
        split: Split = "train-normal"
        if number < 26:
            split = "test" if number < 16 else "validation"
        name = f"n{number}"
        samples.append(Sample(name, image, "normal", "noise", name, "good", split))
    store = Store(str(tmp_path_factory.mktemp("noise")))
    pack(samples, store, resolution=16, name="noise", seed=0, shard_samples=16)
    return store


@pytest.fixture
def config(packed: Store, tmp_path: Path) -> Config:
    """A run directory with a model fresh from training."""
    chosen: dict[str, Any] = {
        "data.uri": packed.uri,
        "objective.alpha": 0.0,
        "run.dir": str(tmp_path),
        "encoder.kimg": 0.128,
        "encoder.batch": 16,
        "search.encoder": True,
        "search.steps": 0,
    }
    config = load_config(None, TINY | chosen)
    architecture = architecture_of(config, load_index(packed))
    torch.manual_seed(0)
    save_model(
        Store(config.run.dir),
        architecture,
        architecture.generator(),
        architecture.discriminator(),
        preparation=Preparation(resolution=16, channels=1),
        objective=config.objective,
        images_seen=1,
    )
    return config


def test_a_model_gets_its_encoder_whenever_training_is_begun_and_the_same_one(
    config: Config,
) -> None:
    run = Store(config.run.dir)
    before = load_card(run)
    train_encoder(config)
    model = load_model(run)
    assert model.encoder is not None
    assert model.card.encoder_sha256
    assert model.card.weights_sha256 == before.weights_sha256
    # As after a kill: the model is as it was, and training begins again.
    run.write_bytes("model/model.json", before.model_dump_json().encode())
    assert load_model(run).encoder is None
    train_encoder(config)
    assert load_card(run).encoder_sha256 == model.card.encoder_sha256


def test_training_adds_the_encoder_once_before_it_calibrates(config: Config) -> None:
    done: list[str] = []

    def add(config: Config) -> None:
        done.append("encoder")
        train_encoder(config)

    with (
        patch.object(train_module, "add_encoder", add),
        patch.object(train_module, "calibrate", lambda _: done.append("calibrate")),
    ):
        for _ in range(2):
            train_module.train_and_calibrate(config, RunRef("", None))
    assert done == ["encoder", "calibrate", "calibrate"]


def test_an_engine_starts_where_the_encoder_says(config: Config, packed: Store) -> None:
    train_encoder(config)
    engine = Engine(load_model(Store(config.run.dir)), config.search, seed=0)
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    encoder = load_model(Store(config.run.dir)).encoder
    assert encoder is not None
    starts = engine.starts(["a", "b", "c"], images)
    torch.testing.assert_close(starts[:, 0], encoder(images, 2))


def test_a_search_with_encoder_needs_one(config: Config) -> None:
    with pytest.raises(UserError, match=r"search.encoder=True, but .* has no encoder; run"):
        inspect_split(config, None)
    with pytest.raises(UserError, match=r"search.encoder=True needs encoder.kimg above 0"):
        load_config(None, {"search.encoder": True})


def test_a_damaged_encoder_is_told(config: Config) -> None:
    train_encoder(config)
    run = Store(config.run.dir)
    run.write_bytes("model/encoder.safetensors", b"")
    with pytest.raises(UserError, match=r"encoder\.safetensors does not match its sha256"):
        load_model(run)


def test_a_finished_run_may_be_given_an_encoder_but_no_second_one(config: Config) -> None:
    other = config.encoder.model_copy(update={"lr": 1e-4})
    changed = config.model_copy(update={"encoder": other})
    train_module.claim_run(config)
    # As after an encoder that diverged.
    train_module.claim_run(changed)
    train_encoder(changed)
    with pytest.raises(UserError, match=r"encoder\.lr=0\.0001, not "):
        train_module.claim_run(config)


def test_an_encoder_that_diverged_is_not_kept(config: Config) -> None:
    with (
        patch.object(EncoderTraining, "step", _spoil),
        pytest.raises(UserError, match=r"diverged with encoder\.lr="),
    ):
        train_encoder(config)
    assert load_card(Store(config.run.dir)).encoder_sha256 is None


def _spoil(training: EncoderTraining, real: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        next(training._encoder.parameters()).fill_(float("nan"))
    return {}


def test_a_process_killed_each_time_is_told(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: object) -> None:
        raise WorkerCrashedError

    monkeypatch.setattr("cluster.encoder_job.ray", SimpleNamespace(remote=_remote, get=lost))
    monkeypatch.setattr("cluster.encoder_job.remote_progress", _nobody_looks)
    with pytest.raises(UserError, match=r"killed each time .* lower encoder\.batch"):
        add_encoder(config)


def test_full_gpu_is_told_with_what_to_lower(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")
        raise RayTaskError("train_encoder", "", error)

    monkeypatch.setattr("cluster.encoder_job.ray", SimpleNamespace(remote=_remote, get=full))
    monkeypatch.setattr("cluster.encoder_job.remote_progress", _nobody_looks)
    with pytest.raises(UserError, match=r"GPU is full \(CUDA .* 9 GiB\); lower encoder\.batch "):
        add_encoder(config)


def _remote(**_: object) -> Any:
    return lambda function: SimpleNamespace(remote=lambda *words: function)


@contextlib.contextmanager
def _nobody_looks(*_: object, **__: object) -> Iterator[None]:
    yield
