"""Adaptive augmentation: what each transform does, how often, and how D steers it."""

import copy

import pytest
import torch
from torch import Tensor

from gan.augment import LARGEST_PROBABILITY, AdaptiveAugment, AugmentSettings, Transform
from gan.model import Architecture
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.step import Objective

TRANSFORMS: tuple[Transform, ...] = ("translate", "zoom", "rotate", "brightness", "contrast")


def _augment(*transforms: Transform, start: float = LARGEST_PROBABILITY) -> AdaptiveAugment:
    settings = AugmentSettings(transforms=transforms, start=start, target=0.5, adapt_kimg=1.0)
    return AdaptiveAugment(settings, torch.Generator().manual_seed(0))


def _images(number: int = 64) -> Tensor:
    return torch.rand(number, 1, 16, 16) * 2 - 1


def test_without_transforms_or_chance_nothing_changes() -> None:
    image = _images()
    assert torch.equal(_augment()(image), image)
    torch.testing.assert_close(_augment(*TRANSFORMS, start=0.0)(image), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_each_transform_changes_its_share_of_the_images(transform: Transform) -> None:
    image = _images(512)
    changed = (_augment(transform, start=0.5)(image) - image).abs().amax(dim=(1, 2, 3)) > 1e-3
    # A translation may come out as no pixel at all: one chance in 25.
    assert 0.4 < changed.float().mean() < 0.6


def test_translation_moves_whole_pixels_and_mirrors_the_rim() -> None:
    image = _images()
    moved = _augment("translate")(image)
    padded = torch.cat([image.flip(3), image, image.flip(3)], dim=3)
    padded = torch.cat([padded.flip(2), padded, padded.flip(2)], dim=2)
    shifts = set()
    for before, after in zip(padded[:, 0], moved[:, 0], strict=True):
        fits = [
            (y, x)
            for y in range(-2, 3)
            for x in range(-2, 3)
            if torch.allclose(before[16 + y : 32 + y, 16 + x : 32 + x], after, atol=1e-4)
        ]
        assert len(fits) == 1
        shifts.update(fits)
    assert len(shifts) > 15


def test_brightness_adds_and_contrast_multiplies() -> None:
    image = _images()
    added = _augment("brightness")(image) - image
    factor = _augment("contrast")(image) / image
    for constant in (added, factor):
        torch.testing.assert_close(
            constant, constant[:, :, :1, :1].expand_as(image), atol=1e-4, rtol=1e-3
        )


def test_zoom_and_rotation_keep_the_centre() -> None:
    image = torch.zeros(64, 1, 17, 17)
    image[:, :, 7:10, 7:10] = 1.0
    changed = _augment("zoom", "rotate")(image)
    assert (changed[:, 0, 8, 8] > 0.9).all()
    sizes = changed.sum(dim=(1, 2, 3))
    assert sizes.min() < 8 < 10 < sizes.max()


def test_gradients_reach_the_image() -> None:
    image = _images().requires_grad_()
    _augment(*TRANSFORMS)(image).sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_the_same_source_gives_the_same_changes() -> None:
    image = _images()
    assert torch.equal(_augment(*TRANSFORMS)(image), _augment(*TRANSFORMS)(image))


def test_probability_follows_the_sign_of_d() -> None:
    augment = _augment("translate", start=0.1)
    augment.adapt(torch.tensor(0.9), images=200)
    assert augment.probability == pytest.approx(0.3)
    augment.adapt(torch.tensor(0.1), images=100)
    assert augment.probability == pytest.approx(0.2)
    for _ in range(5):
        augment.adapt(torch.tensor(-1.0), images=200)
    assert augment.probability == 0.0
    for _ in range(9):
        augment.adapt(torch.tensor(1.0), images=200)
    assert augment.probability == LARGEST_PROBABILITY


def _state() -> TrainingState:
    sizes = {"latent_dim": 4, "fmap_base": 8, "fmap_max": 4, "group_size": 2}
    return TrainingState(
        Architecture(resolution=8, channels=1, **sizes),
        Rates(generator_lr=0.01, discriminator_lr=0.01, ema_half_life_kimg=1.0),
        seed=0,
        rank=0,
        device=torch.device("cpu"),
        augment=AugmentSettings(transforms=TRANSFORMS, start=0.5, target=0.0, adapt_kimg=1.0),
    )


def _train(state: TrainingState, num_steps: int) -> None:
    phase = Phase(1, False, 0, 1000)
    state.enter(phase, lambda network: network)
    objective = Objective(gamma=0.7, alpha=0.3, r1_weight=1.0, r1_interval=2)
    for _ in range(num_steps):
        source = torch.Generator().manual_seed(state.num_steps)
        real, abnormal = torch.rand(2, 4, 1, 8, 8, generator=source)
        state.step(phase, real, abnormal, objective, images=8)


def test_training_goes_on_with_the_same_changes_after_a_resume() -> None:
    straight, resumed = _state(), _state()
    _train(straight, 3)
    # A copy, as a file is: optimisers keep the tensors they load.
    saved, latents = copy.deepcopy(straight.state_dict()), straight.latent_state()
    assert saved["augment_probability"] != 0.5
    resumed.load_state_dict(saved)
    resumed.load_latent_state(latents)
    _train(straight, 3)
    _train(resumed, 3)
    assert resumed.augment.probability == straight.augment.probability
    pairs = zip(resumed.generator.parameters(), straight.generator.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_learning_rates_follow_the_stage() -> None:
    state = _state()
    state.enter(Phase(1, False, 0, 1000), lambda network: network, lr_factor=1.5)
    rates = [o.param_groups[0]["lr"] for o in (state.optimizer_g, state.optimizer_d)]
    assert rates == pytest.approx([0.015, 0.015])
