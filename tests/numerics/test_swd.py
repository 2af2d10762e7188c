"""Sliced Wasserstein distance: against a slow reference, and what must and must not move it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import convolve, gaussian_filter
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.nn.functional import interpolate

from gan.swd import NUM_DIRECTIONS, NUM_PATCHES, SlicedWasserstein, laplacian_pyramid

SEED = 3
Image = NDArray[np.float64]


def _textures(seed: int, *, count: int = 48, side: int = 64, channels: int = 1) -> Tensor:
    """Images with structure at every scale, within [-1, 1]."""
    source = np.random.default_rng(seed)
    image = np.zeros((count, channels, side, side))
    for cell in [c for c in (1, 2, 4, 8) if c <= side]:
        grains = source.standard_normal((count, channels, side // cell, side // cell))
        image += 0.15 * grains.repeat(cell, axis=2).repeat(cell, axis=3)
    return torch.from_numpy(image.clip(-1, 1)).float()


def _distances(a: Tensor, b: Tensor, seed: int = SEED) -> dict[int, float]:
    return SlicedWasserstein([a], seed=seed).distances([b])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [4, 16, 64])
def test_distances_are_those_of_a_slow_reference(side: int, channels: int) -> None:
    a, b = (_textures(n, count=6, side=side, channels=channels) for n in range(2))
    b = 0.5 * b + 0.5 * b.roll(1, dims=3)
    found = _distances(a, b)
    assert list(found) == [r for r in (64, 32, 16, 8, 4) if r <= side and (r >= 16 or r == side)]
    for resolution, distance in found.items():
        assert distance == pytest.approx(_slow_distance(a, b, resolution), rel=1e-4)


def _slow_distance(a: Tensor, b: Tensor, resolution: int) -> float:
    clouds = [_slow_patches(images.double().numpy(), resolution) for images in (a, b)]
    size = clouds[0].shape[1]
    source = torch.Generator().manual_seed(SEED + resolution + 1)
    directions = torch.randn(NUM_DIRECTIONS, size, generator=source).double().numpy()
    total = 0.0
    for direction in directions:
        unit = direction / np.sqrt((direction**2).sum())
        total += wasserstein_distance(*(cloud @ unit for cloud in clouds))
    return 1000 * total / NUM_DIRECTIONS


def _slow_patches(images: Image, resolution: int) -> Image:
    """One patch a row, normalised."""
    side = min(7, resolution)
    places = resolution - side + 1
    source = torch.Generator().manual_seed(SEED + resolution)
    drawn = torch.randint(places**2, (len(images), NUM_PATCHES), generator=source)
    patches = []
    for image, numbers in zip(images, drawn.tolist(), strict=True):
        level = _slow_level(image, resolution)
        for y, x in (divmod(number, places) for number in numbers):
            patches.append(level[:, y : y + side, x : x + side])
    cloud = np.array(patches)
    for c in range(cloud.shape[1]):
        cloud[:, c] = (cloud[:, c] - cloud[:, c].mean()) / cloud[:, c].std()
    return cloud.reshape(len(cloud), -1)


def _slow_level(image: Image, resolution: int) -> Image:
    while image.shape[-1] > resolution:
        image = _slow_blur(image)[:, ::2, ::2]
    if resolution <= 16:
        return image
    spread = np.zeros_like(image)
    spread[:, ::2, ::2] = _slow_blur(image)[:, ::2, ::2]
    return image - 4 * _slow_blur(spread)


def _slow_blur(image: Image) -> Image:
    row = np.array([1, 4, 6, 4, 1]) / 16
    return np.array([convolve(channel, np.outer(row, row), mode="mirror") for channel in image])


def test_pyramid_of_a_smooth_image_has_nothing_but_its_lowest_level() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    fine, middle, lowest = laplacian_pyramid(ramp)
    # Away from the rim, where the mirror folds the ramp back.
    assert fine[..., 8:-8, 8:-8].abs().max() < 1e-6
    assert middle[..., 8:-8, 8:-8].abs().max() < 1e-6
    assert lowest.std() > 0.5


def test_equal_sets_are_at_distance_zero_and_others_are_not() -> None:
    images = _textures(0)
    assert set(_distances(images, images.clone()).values()) == {0.0}
    assert min(_distances(images, _textures(1)).values()) > 1.0


def test_more_images_bring_two_draws_of_one_thing_closer() -> None:
    few, many = (_distances(_textures(0, count=n), _textures(1, count=n)) for n in (8, 128))
    assert all(many[resolution] < 0.6 * few[resolution] for resolution in few)


def test_distance_grows_with_noise_at_the_finest_level_most() -> None:
    images = _textures(0)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    less, more = (_distances(images, images + s * noise) for s in (0.1, 0.3))
    assert 0 < less[64] < more[64]
    for distances in (less, more):
        assert distances[64] > 1.2 * distances[32] > 1.4 * distances[16]


def test_distance_grows_with_coarse_structure_at_the_lowest_level_most() -> None:
    images = _textures(0)
    grains = torch.randn(len(images), 1, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = interpolate(grains, scale_factor=16, mode="bicubic")
    less, more = (_distances(images, images + s * smooth) for s in (0.2, 0.6))
    assert less[16] < more[16]
    for distances in (less, more):
        assert distances[16] > 2.5 * distances[32] > 5 * distances[64]


def test_distance_grows_with_blur_at_the_finest_level_most() -> None:
    images = _textures(0)
    blurred = [
        torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, s, s))) for s in (0.4, 0.6, 0.8)
    ]
    near, middle, far = (_distances(images, b) for b in blurred)
    assert 0 < near[64] < middle[64] < far[64]
    assert far[64] > 2 * far[32] > 2 * far[16]


def test_neither_order_nor_blocks_nor_brightness_nor_contrast_count() -> None:
    a, b = _textures(0, channels=3), _textures(1, channels=3)
    distances = _distances(a, b)
    assert _distances(b, a) == pytest.approx(distances, rel=1e-5)
    in_blocks = SlicedWasserstein(a.split(10), seed=SEED).distances(b.split(7))
    assert in_blocks == pytest.approx(distances, rel=1e-5)
    brighter = b * torch.tensor([0.5, 2.0, 1.0]).view(3, 1, 1) + 0.25
    assert _distances(a, brighter) == pytest.approx(distances, rel=1e-3)


def test_order_of_images_that_are_one_patch_does_not_count() -> None:
    a, b = (_textures(n, side=4) for n in range(2))
    assert _distances(a, b.flip(0)) == pytest.approx(_distances(a, b), rel=1e-5)


def test_a_generator_that_collapsed_is_far_away_but_finite() -> None:
    images = _textures(0)
    grey = torch.full_like(images, 0.3)
    distances = [*_distances(images, grey).values()]
    assert min(distances) > 500
    assert np.isfinite(distances).all()


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    _distances(_textures(0, count=4), _textures(1, count=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_sets_of_another_number_or_size_are_refused() -> None:
    swd = SlicedWasserstein([_textures(0, count=4)], seed=0)
    for other in (_textures(0, count=5), _textures(0, count=4, side=32)):
        with pytest.raises(ValueError, match="give as many images of the same size"):
            swd.distances([other])
