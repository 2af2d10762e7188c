"""Evidence against an image: differences, their statistics and the discriminator's verdict."""

import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from gan.evidence import (
    LOCAL_CONTRAST,
    LOGIT,
    Evidence,
    anomaly_map,
    fused_map,
    gather_evidence,
    local_contrast,
    map_names,
    statistics,
    strongest_window,
    term_names,
)
from gan.layers import downsample
from gan.model import Architecture, Features
from gan.search_loss import SearchSettings

ARCHITECTURE = Architecture(
    resolution=16, channels=1, latent_dim=8, fmap_base=16, fmap_max=8, group_size=2
)
STAGE = 2
FEATURES = get_args(Features)


def test_strongest_window_is_the_largest_mean_of_all_windows() -> None:
    maps = torch.rand(3, 7, 9)
    expected = [
        max(float(m[i : i + 3, j : j + 3].mean()) for i in range(5) for j in range(7)) for m in maps
    ]
    np.testing.assert_allclose(strongest_window(maps, 3), expected, rtol=1e-6)


def test_window_larger_than_the_map_is_the_whole_map() -> None:
    maps = torch.rand(2, 4, 4)
    torch.testing.assert_close(strongest_window(maps, 9), maps.mean(dim=(1, 2)))


def test_window_finds_what_the_mean_hides() -> None:
    maps = torch.full((2, 64, 64), 0.5)
    maps[1] -= 0.01
    maps[1, 10:13, 20:23] = 1.0
    assert maps[1].mean() < maps[0].mean()
    assert strongest_window(maps, 3)[1] > strongest_window(maps, 3)[0]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_map_averages_to_the_loss_of_the_search(weight: float) -> None:
    discriminator = ARCHITECTURE.discriminator()
    features = discriminator.features
    # A blurred query keeps the bilinear enlargement of the feature distance close to its mean.
    images = torch.nn.functional.interpolate(downsample(downsample(torch.rand(3, 1, 16, 16))), 16)
    made = torch.rand(3, 1, 16, 16)
    settings = SearchSettings(steps=0, step_size=1.0, feature_weight=weight, feature_levels=(0,))
    maps = anomaly_map(gather_evidence(discriminator, images, made, stage=STAGE), settings)
    assert maps.shape == (3, 16, 16)
    assert bool((maps >= 0).all())
    with torch.no_grad():
        a, b = features(images, STAGE)[0], features(made, STAGE)[0]
    residual = (images - made).abs().mean(dim=(1, 2, 3))
    feature = (a - b).abs().mean(dim=(1, 2, 3))
    expected = (1 - weight) * residual + weight * feature
    tolerance = 1e-5 if weight == 0 else 0.1
    torch.testing.assert_close(maps.mean(dim=(1, 2)), expected, rtol=tolerance, atol=0)


def test_a_map_is_the_term_it_is_a_map_of() -> None:
    """Weight 1 and one level at image size: the level itself; weight 0: the residual."""
    found = Evidence(residual=torch.rand(2, 8, 8), levels=[torch.rand(2, 8, 8)], logits=[])
    for weight, expected in ((0.0, found.residual), (1.0, found.levels[0])):
        settings = SearchSettings(
            steps=0, step_size=1.0, feature_weight=weight, feature_levels=(0,)
        )
        torch.testing.assert_close(anomaly_map(found, settings), expected)


@pytest.mark.parametrize("features", FEATURES)
def test_terms_are_what_their_names_say(features: Features) -> None:
    architecture = replace(ARCHITECTURE, features=features)
    discriminator = architecture.discriminator().requires_grad_(False)
    image, made = torch.rand(4, 1, 16, 16) * 2 - 1, torch.rand(4, 1, 16, 16) * 2 - 1
    found = gather_evidence(discriminator, image, made, stage=STAGE)
    terms = statistics(found, window=4)
    names = term_names(map_names(architecture.num_levels(), architecture.num_heads))
    assert terms.shape == (4, len(names))
    column = dict(zip(names, terms.T, strict=True))
    residual = (image - made).abs()[:, 0]
    torch.testing.assert_close(column["residual/mean"], residual.mean(dim=(1, 2)))
    torch.testing.assert_close(column["residual/window"], strongest_window(residual, 4))
    torch.testing.assert_close(column["residual/peak"], residual.amax(dim=(1, 2)))
    # Levels of 8 and 4 cells to 16 pixels: the window of 4 pixels has 2 cells and 1.
    for level, cells in ((0, 2), (1, 1)):
        windows = strongest_window(found.levels[level], cells)
        torch.testing.assert_close(column[f"feature-{level}/window"], windows)


def test_local_contrast_is_the_deviation_from_the_surroundings() -> None:
    image = torch.rand(2, 3, 9, 9) * 2 - 1
    found = local_contrast(image, 3)
    deviation = torch.zeros(9, 9)
    for y, x in itertools.product(range(9), repeat=2):
        near = image[1, :, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        deviation[y, x] = (image[1, :, y, x] - near.mean(dim=(1, 2))).abs().mean()
    torch.testing.assert_close(found[1, 4, 4], deviation[3:6, 3:6].mean())
    torch.testing.assert_close(found[1, 0, 8], deviation[:2, 7:].mean())


def test_local_contrast_sees_a_line_and_not_a_slope() -> None:
    slope = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    lined = slope.clone()
    lined[..., 8, :] += 0.1
    assert local_contrast(slope, 5)[0, :, 4:12].amax() < 1e-6
    assert local_contrast(lined, 5)[0, 8, 4:12].amin() > 0.02


def test_local_contrast_is_the_last_map_where_it_is_asked_for() -> None:
    discriminator = ARCHITECTURE.discriminator().requires_grad_(False)
    image = torch.rand(4, 1, 16, 16)
    found = gather_evidence(discriminator, image, image, stage=STAGE, contrast_side=3)
    heads = ARCHITECTURE.num_levels(), ARCHITECTURE.num_heads
    assert tuple(found.maps()) == map_names(*heads, with_contrast=True)
    assert torch.equal(found.maps()[LOCAL_CONTRAST], local_contrast(image, 3))
    assert LOCAL_CONTRAST not in gather_evidence(discriminator, image, image, stage=STAGE).maps()


def test_an_image_has_the_verdict_of_its_copies() -> None:
    discriminator = ARCHITECTURE.discriminator().requires_grad_(False)
    image = torch.rand(4, 1, 16, 16)
    found = gather_evidence(discriminator, image, image, stage=STAGE)
    copies = image.repeat_interleave(2, dim=0)
    torch.testing.assert_close(found.verdict(), -discriminator(copies, STAGE)[::2])
    assert list(found.maps())[-1] == LOGIT


def test_the_verdict_on_patches_is_the_mean_logit_that_training_sees() -> None:
    discriminator = replace(ARCHITECTURE, features="efficientnet-lite0").discriminator()
    image = torch.rand(4, 1, 16, 16)
    found = gather_evidence(discriminator, image, image, stage=STAGE)
    with torch.no_grad():
        logits = discriminator(image, STAGE)
    torch.testing.assert_close(found.verdict(), -logits.mean(dim=(1, 2, 3)))


def test_the_fused_map_is_the_weighted_sum_of_the_maps_named() -> None:
    found = Evidence(
        residual=torch.rand(2, 8, 8),
        levels=[torch.rand(2, 8, 8)],
        logits=[torch.randn(2, 8, 8), torch.randn(2, 2, 2)],
    )
    made = fused_map(found, {"residual": 2.0, "logit-0": 0.5})
    expected = 2 * found.residual + 0.5 * torch.log1p(found.logits[0].exp())
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("features", FEATURES)
def test_evidence_of_an_image_does_not_depend_on_the_others(features: Features) -> None:
    discriminator = replace(ARCHITECTURE, features=features).discriminator().requires_grad_(False)
    image, made = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    together, others = (
        statistics(gather_evidence(discriminator, x, made, stage=STAGE), window=3)
        for x in (image, torch.cat([image[:1], torch.rand(2, 1, 16, 16)]))
    )
    assert torch.equal(together[0], others[0])
    assert not torch.equal(together[1], others[1])
