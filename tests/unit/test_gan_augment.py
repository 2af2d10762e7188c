"""Adaptive augmentation: what each transform does, how often, and how D steers it."""

import copy

import pytest
import torch
from torch import Tensor

from gan.augment import (
    LARGEST_PROBABILITY,
    MOVING,
    AdaptiveAugment,
    AugmentSettings,
    Transform,
)
from gan.model import Architecture, Features
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.step import Execution, Objective, StepInput, training_step

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


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_mask_goes_where_its_image_goes(transform: Transform) -> None:
    # The image is its mask, softened by half where it was moved by parts of a pixel.
    mask = torch.zeros(64, 1, 16, 16, dtype=torch.bool)
    mask[:, :, 4:9, 6:12] = True
    augment, plain = _augment(transform), _augment(transform)
    image, moved = augment.marked(mask.float(), mask)
    assert moved.dtype == torch.bool
    torch.testing.assert_close(image, plain(mask.float()))
    if transform in MOVING:
        assert moved[image > 0.01].all()
        assert not moved[image == 0].any()
        assert (moved != mask).any()
    else:
        assert torch.equal(moved, mask)


def test_in_lower_precision_pixels_are_still_sampled_where_they_lie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grids, sample = [], torch.nn.functional.grid_sample

    def watched(image: Tensor, grid: Tensor, **settings: object) -> Tensor:
        grids.append(grid.dtype)
        return sample(image, grid, **settings)

    monkeypatch.setattr(torch.nn.functional, "grid_sample", watched)
    sizes = {"resolution": 8, "channels": 1, "latent_dim": 4, "fmap_base": 8, "fmap_max": 4}
    architecture = Architecture(**sizes, group_size=2)
    generator, discriminator = architecture.generator(), architecture.discriminator()
    training_step(
        generator,
        discriminator,
        *(torch.optim.SGD(each.parameters(), lr=0.1) for each in (generator, discriminator)),
        StepInput(
            real=torch.rand(4, 1, 8, 8),
            abnormal=None,
            latent=torch.randn(4, 4),
            stage=1,
            fade=1.0,
            index=1,
        ),
        Objective(gamma=1.0, alpha=0.0, r1_weight=0.0, r1_interval=1),
        augment=_augment("rotate"),
        execution=Execution(dtype=torch.bfloat16),
    )
    # Training images, generated ones in D's update, generated ones in G's.
    assert grids == [torch.float32] * 3


@pytest.mark.parametrize("transform", MOVING)
def test_an_image_that_is_not_moved_keeps_its_mask(transform: Transform) -> None:
    place = torch.randint(64 * 64, (64, 1), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(64, 64 * 64, dtype=torch.bool).scatter(1, place, True).view(64, 1, 64, 64)
    still = AdaptiveAugment(AugmentSettings(transforms=(transform,)), torch.Generator())
    assert torch.equal(still.marked(mask.float(), mask)[1], mask)


def test_a_moved_mask_takes_no_more_chances_than_a_moved_image() -> None:
    image, mask = _images(), torch.ones(64, 1, 16, 16, dtype=torch.bool)
    augment, plain = _augment(*TRANSFORMS), _augment(*TRANSFORMS)
    torch.testing.assert_close(augment.marked(image, mask)[0], plain(image))
    torch.testing.assert_close(augment(image), plain(image))


def test_no_defect_is_moved_out_of_its_image() -> None:
    image, mask = _images(), torch.zeros(64, 1, 16, 16, dtype=torch.bool)
    mask[:, :, 0, 0] = True
    gone, stays = _augment("translate").marked(image, mask), _augment("translate")(image)
    assert gone[1].any(dim=3).any(dim=2).all()
    # Only an image that would have lost its defect stays as it was.
    unmoved = (gone[0] == image).flatten(1).all(dim=1)
    assert 0.2 < unmoved.float().mean() < 0.9
    assert torch.equal(gone[1][unmoved], mask[unmoved])
    torch.testing.assert_close(gone[0][~unmoved], stays[~unmoved])


def test_an_image_without_a_mark_is_moved_like_any() -> None:
    image, mask = _images(), torch.zeros(64, 1, 16, 16, dtype=torch.bool)
    moved, marks = _augment("translate").marked(image, mask)
    torch.testing.assert_close(moved, _augment("translate")(image))
    assert not marks.any()


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


def _state(features: Features = "own", discriminator_half_life_kimg: float = 0) -> TrainingState:
    sizes = {"latent_dim": 4, "fmap_base": 8, "fmap_max": 4, "group_size": 2}
    architecture = Architecture(resolution=8, channels=1, **sizes, features=features, enlarge=4)
    return TrainingState(
        architecture,
        Rates(
            generator_lr=0.01,
            discriminator_lr=0.01,
            ema_half_life_kimg=1.0,
            discriminator_half_life_kimg=discriminator_half_life_kimg,
        ),
        seed=0,
        rank=0,
        device=torch.device("cpu"),
        augment=AugmentSettings(transforms=TRANSFORMS, start=0.5, target=0.0, adapt_kimg=1.0),
    )


def _train(state: TrainingState, num_steps: int, *, masks: bool = False) -> None:
    phase = Phase(1, False, 0, 1000)
    state.enter(phase, lambda network: network)
    objective = Objective(gamma=0.7, alpha=0.3, r1_weight=1.0, r1_interval=2)
    for _ in range(num_steps):
        source = torch.Generator().manual_seed(state.num_steps)
        real, abnormal = torch.rand(2, 4, 1, 8, 8, generator=source)
        mask = torch.rand(4, 1, 8, 8, generator=source) < 0.1 if masks else None
        state.step(phase, real, abnormal, objective, images=8, abnormal_mask=mask)


@pytest.mark.parametrize(
    ("features", "half_life_kimg"), [("own", 0.0), ("own", 0.01), ("efficientnet-lite0", 0.01)]
)
def test_training_goes_on_with_the_same_changes_after_a_resume(
    features: Features, half_life_kimg: float
) -> None:
    masks = features != "own"
    straight, resumed = (_state(features, half_life_kimg) for _ in range(2))
    _train(straight, 3, masks=masks)
    # A copy, as a file is: optimisers keep the tensors they load.
    saved, latents = copy.deepcopy(straight.state_dict()), straight.latent_state()
    assert saved["augment_probability"] != 0.5
    resumed.load_state_dict(saved)
    resumed.load_latent_state(latents)
    _train(straight, 3, masks=masks)
    _train(resumed, 3, masks=masks)
    assert resumed.augment.probability == straight.augment.probability
    for name in ("generator", "average", "discriminator", "judge"):
        found, wanted = (getattr(state, name).state_dict() for state in (resumed, straight))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), name
    assert (straight.judge is straight.discriminator) == (half_life_kimg == 0)


def test_an_average_of_d_may_begin_with_a_resume() -> None:
    before, after = _state(), _state(discriminator_half_life_kimg=1.0)
    _train(before, 1)
    after.load_state_dict(before.state_dict())
    wanted, found = before.discriminator.state_dict(), after.judge.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_learning_rates_follow_the_stage() -> None:
    state = _state()
    state.enter(Phase(1, False, 0, 1000), lambda network: network, lr_factor=1.5)
    rates = [o.param_groups[0]["lr"] for o in (state.optimizer_g, state.optimizer_d)]
    assert rates == pytest.approx([0.015, 0.015])
