"""Which validation images judge a model in training, and what tells one measure from another."""

from typing import Any

import numpy as np
import pytest
import torch

from cluster.config import load_config
from cluster.train_loop import architecture_of
from cluster.validation import Validator
from data.dataset import load_index
from data.pack import pack
from data.sample import Sample
from data.shards import read_shard
from data.store import Store
from tests.jobs import TINY

CALLED = ("normal", "abnormal", "unlabelled")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Noise in five validation shards, a third of it unlabelled."""
    source, samples = np.random.default_rng(0), []
    for number in range(40):
        image, label = source.integers(0, 255, (16, 16, 1), np.uint8), CALLED[number % 3]
        name, kind = f"n{number}", "good" if label == "normal" else "bad"
        samples.append(Sample(name, image, label, "noise", name, kind, "validation"))
    store = Store(str(tmp_path_factory.mktemp("noise")))
    pack(samples, store, resolution=16, name="noise", seed=0, shard_samples=8)
    return store


def _validator(packed: Store, **chosen: Any) -> Validator:
    fields = {name.replace("__", "."): value for name, value in chosen.items()}
    config = load_config(None, TINY | {"data.uri": packed.uri, "data.retry_s": 0} | fields)
    index = load_index(packed)
    return Validator(config, index, architecture_of(config, index), torch.device("cpu"))


@pytest.mark.parametrize("wanted", [6, 11, 100])
def test_the_first_labelled_images_judge_and_no_more_is_read(
    packed: Store, monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    shards = load_index(packed).shards_of("validation")
    assert len(shards) == 5
    samples = [s for shard in shards for s in read_shard(packed.read_bytes(shard.path)).samples]
    expected = [s.key for s in samples if s.label != "unlabelled"][:wanted]
    needed = 1 + [s.key for s in samples].index(expected[-1]) // 8
    read: list[str] = []
    real = Store.read_chunks
    monkeypatch.setattr(
        Store, "read_chunks", lambda self, path, *more: (read.append(path), real(self, path))[1]
    )
    assert _validator(packed, tracking__validation_images=wanted)._keys == expected
    assert len([path for path in read if path.endswith(".tar")]) == needed


def test_other_images_or_another_search_are_another_measure(packed: Store) -> None:
    """Settings that a run may be resumed with."""
    same = _validator(packed, tracking__validation_images=11).measure
    assert _validator(packed, tracking__validation_images=11).measure == same
    assert _validator(packed, tracking__validation_images=11, search__batch=4).measure == same
    others = [
        _validator(packed, tracking__validation_images=12).measure,
        _validator(packed, tracking__validation_images=11, search__steps=6).measure,
        _validator(packed, tracking__validation_images=11, search__statistic="mean").measure,
    ]
    assert len({same, *others}) == 4
