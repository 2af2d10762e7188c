"""A run whose discriminator judges patches, on masks, from training to maps, without Ray."""

import io
import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cluster.config import load_config
from cluster.feature_weights import load_feature_weights
from cluster.inspection import calibrate, inspect_dataset
from cluster.inspection_files import inspection_store, picture_path, read_scores
from cluster.model_store import load_card, load_model
from cluster.train import claim_run
from cluster.train_loop import train_worker
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.store import Store
from gan.augment import AdaptiveAugment
from gan.efficientnet import EfficientNetFeatures
from gan.evidence import map_names, term_names
from gan.patches import PatchDiscriminator
from tests.inspecting import inspect_here
from tests.jobs import PATCHES
from tests.one_rank import Board, without_ray

_marked = AdaptiveAugment.marked


def _checked(augment: AdaptiveAugment, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Every known abnormal image of the data set has a mask, at each stage."""
    assert mask.shape == (4, 1, *image.shape[2:])
    assert mask.any(dim=(2, 3)).all()
    assert not mask.all()
    return _marked(augment, image, mask)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained, calibrated and inspected in this process."""
    data, run = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run") / "patches"
    counts = {"num_train_normal": 64, "num_train_abnormal": 16}
    samples = synthetic_surfaces(resolution=32, seed=1, num_validation=32, num_test=32, **counts)
    pack(samples, Store(str(data)), resolution=32, name="metal", seed=0, shard_samples=32)
    config = load_config(None, PATCHES | {"data.uri": str(data), "run.dir": str(run)})
    claim_run(config)
    tracking = {"uri": "http://127.0.0.1:9", "run_id": None}
    moved = patch.object(AdaptiveAugment, "marked", autospec=True, side_effect=_checked)
    with without_ray(), moved as steps:
        train_worker({"config": config.model_dump(), "tracking": tracking, "board": Board()})
    assert steps.call_count > 7
    with patch("cluster.inspection.run_units", inspect_here):
        calibrate(config)
        inspect_dataset(config)
    return run


def test_training_notes_what_d_says_of_known_defects(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss_d" in row]
    assert steps[-1]["train/resolution"] == 32
    assert all(np.isfinite(row["train/logit_abnormal"]) for row in steps)
    assert any("train/r1" in row for row in steps)
    assert any("train/validation_auroc" in row for row in rows)


def test_the_model_has_the_features_it_was_trained_on(run: Path) -> None:
    model = load_model(Store(str(run)))
    weights = load_feature_weights(str(PATCHES["networks.feature_weights"]))
    assert model.architecture.features_sha256 == weights.sha256
    assert isinstance(model.discriminator, PatchDiscriminator)
    stem = EfficientNetFeatures(resolution=32, enlarge=1)
    stem.load_pretrained(weights.tensors)
    assert torch.equal(model.discriminator.features.stem.conv.weight, stem.stem.conv.weight)


def test_the_calibration_fuses_the_logits_of_all_heads(run: Path) -> None:
    calibration = load_card(Store(str(run))).calibration
    assert calibration is not None
    assert calibration.fusion is not None
    assert calibration.fusion.names == term_names(map_names(4, 4))
    assert any(name.startswith("logit-0/") for name in calibration.fusion.names)
    assert calibration.map_scale > 0


def test_images_have_scores_and_maps(run: Path) -> None:
    config = load_config(str(run / "config.yaml"))
    calibration = load_card(Store(str(run))).calibration
    assert calibration is not None
    assert calibration.fusion is not None
    out = inspection_store(config)
    table = read_scores(out)
    assert len(table) == 32
    assert set(table["steps"]) == {0}
    terms = np.array([tiles[0].tolist() for tiles in table["terms"]])
    np.testing.assert_allclose(table["score"], calibration.fusion.scores(terms))
    heads = [calibration.fusion.names.index(f"logit-{head}/mean") for head in range(4)]
    np.testing.assert_allclose(-table["logit"], terms[:, heads].mean(axis=1), rtol=1e-4, atol=1e-6)
    drawn = table[table["pictures"]]
    assert len(drawn)
    for row in drawn.to_dict("records"):
        picture = out.read_bytes(picture_path(row["unit"], row["key"], "map"))
        assert Image.open(io.BytesIO(picture)).size == (32, 32)
        assert row["peak"] > 0
