"""Evidence against an image: differences, their statistics and the discriminator's verdict."""

import numpy as np
import pytest
import torch

from gan.evidence import (
    LOGIT,
    Differences,
    anomaly_map,
    differences,
    evidence,
    strongest_window,
    term_names,
)
from gan.layers import downsample
from gan.model import Architecture
from gan.search_loss import SearchSettings

ARCHITECTURE = Architecture(
    resolution=16, channels=1, latent_dim=8, fmap_base=16, fmap_max=8, group_size=2
)
STAGE = 2


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
    features = ARCHITECTURE.discriminator().features
    # A blurred query keeps the bilinear enlargement of the feature distance close to its mean.
    images = torch.nn.functional.interpolate(downsample(downsample(torch.rand(3, 1, 16, 16))), 16)
    made = torch.rand(3, 1, 16, 16)
    settings = SearchSettings(steps=0, step_size=1.0, feature_weight=weight, feature_levels=(0,))
    maps = anomaly_map(differences(features, images, made, stage=STAGE), settings)
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
    found = Differences(
        residual=torch.rand(2, 8, 8), levels=[torch.rand(2, 8, 8)], coarsest=torch.zeros(2, 1, 4, 4)
    )
    for weight, expected in ((0.0, found.residual), (1.0, found.levels[0])):
        settings = SearchSettings(
            steps=0, step_size=1.0, feature_weight=weight, feature_levels=(0,)
        )
        torch.testing.assert_close(anomaly_map(found, settings), expected)


def test_terms_are_what_their_names_say() -> None:
    discriminator = ARCHITECTURE.discriminator().requires_grad_(False)
    image, made = torch.rand(4, 1, 16, 16) * 2 - 1, torch.rand(4, 1, 16, 16) * 2 - 1
    found = differences(discriminator.features, image, made, stage=STAGE)
    terms = evidence(discriminator, found, window=4)
    names = term_names(len(found.levels))
    assert terms.shape == (4, len(names))
    column = dict(zip(names, terms.T, strict=True))
    residual = (image - made).abs()[:, 0]
    torch.testing.assert_close(column["residual/mean"], residual.mean(dim=(1, 2)))
    torch.testing.assert_close(column["residual/window"], strongest_window(residual, 4))
    # Levels of 8 and 4 pixels: the window of 4 image pixels has 2 cells and 1.
    for level, cells in ((0, 2), (1, 1)):
        windows = strongest_window(found.levels[level], cells)
        torch.testing.assert_close(column[f"feature-{level}/window"], windows)
    copies = image.repeat_interleave(discriminator.group_size, dim=0)
    logits = discriminator(copies, STAGE)[:: discriminator.group_size]
    torch.testing.assert_close(column[LOGIT], -logits)


def test_evidence_of_an_image_does_not_depend_on_the_others() -> None:
    discriminator = ARCHITECTURE.discriminator().requires_grad_(False)
    image, made = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    together, others = (
        evidence(discriminator, differences(discriminator.features, x, made, stage=STAGE), window=3)
        for x in (image, torch.cat([image[:1], torch.rand(2, 1, 16, 16)]))
    )
    assert torch.equal(together[0], others[0])
    assert not torch.equal(together[1], others[1])
