"""Maps, window scores and conformal p-values against slow references and simulation."""

import numpy as np
import pytest
import torch

from gan.layers import downsample
from gan.model import Architecture
from gan.scores import (
    anomaly_map,
    conformal_p_values,
    conformal_threshold,
    strongest_window,
)
from gan.search import SearchSettings, initial_latents, latent_search

ARCHITECTURE = Architecture(
    resolution=16, channels=1, latent_dim=8, fmap_base=16, fmap_max=8, group_size=2
)


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
    generator, discriminator = ARCHITECTURE.generator(), ARCHITECTURE.discriminator()
    # A blurred query keeps the bilinear enlargement of the feature distance close to its mean.
    images = torch.nn.functional.interpolate(downsample(downsample(torch.rand(3, 1, 16, 16))), 16)
    settings = SearchSettings(
        steps=3, step_size=0.05, feature_weight=weight, feature_levels=(0,), block=4
    )
    latents = initial_latents(["a", "b", "c"], 8, seed=0)
    found = latent_search(generator, discriminator.features, images, latents, settings, stage=2)
    maps = anomaly_map(discriminator.features, images, found, settings, stage=2)
    assert maps.shape == (3, 16, 16)
    assert bool((maps >= 0).all())
    tolerance = 1e-5 if weight == 0 else 0.1
    torch.testing.assert_close(maps.mean(dim=(1, 2)), found.score, rtol=tolerance, atol=0)


def test_p_value_is_its_definition() -> None:
    normal = [1.0, 2.0, 2.0, 3.0]
    expected = [(1 + sum(n >= s for n in normal)) / 5 for s in (0.0, 2.0, 2.5, 3.0, 9.0)]
    np.testing.assert_allclose(conformal_p_values([0.0, 2.0, 2.5, 3.0, 9.0], normal), expected)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_guarantee_holds_in_simulation(rate: float) -> None:
    """P(p <= q) <= q for exchangeable normals, over the draw of validation and test images."""
    rng = np.random.default_rng(0)
    false_alarms = [
        conformal_p_values(draws[:1], draws[1:])[0] <= rate
        for draws in rng.gamma(2.0, size=(20000, 40))
    ]
    # Three standard errors; below, p-values in steps of 1/40 cost at most one step.
    margin = 3 * np.sqrt(rate / 20000)
    assert rate - 1 / 40 - margin <= np.mean(false_alarms) <= rate + margin


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_threshold_and_p_value_say_the_same(rate: float) -> None:
    rng = np.random.default_rng(1)
    normal, scores = rng.normal(size=39).round(1), rng.normal(size=500).round(1)
    above = scores > conformal_threshold(normal.tolist(), rate)
    np.testing.assert_array_equal(above, conformal_p_values(scores, normal) <= rate)


@pytest.mark.parametrize(("num_normal", "rate"), [(18, 0.05), (0, 0.5)])
def test_too_few_normals_are_refused(num_normal: int, rate: float) -> None:
    with pytest.raises(ValueError, match="needs at least"):
        conformal_threshold([0.0] * num_normal, rate)
