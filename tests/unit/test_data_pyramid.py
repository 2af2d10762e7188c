"""Pyramid and resizing."""

import numpy as np

from data.pyramid import mask_to_square, pyramid, to_square


def test_each_level_is_the_mean_of_the_full_image_rounded_half_up() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    levels = pyramid(image, 64)
    assert list(levels) == [4, 8, 16, 32, 64]
    assert np.array_equal(levels[64], image)
    for side, level in levels.items():
        step = 64 // side
        sums = image.reshape(side, step, side, step, 3).astype(int).sum(axis=(1, 3))
        # floor(sum / area + 1/2), in integers
        assert np.array_equal(level, (2 * sums + step**2) // (2 * step**2))


def test_rounding_errors_do_not_pile_up() -> None:
    # Alternating 0 and 1: every 2x2 mean is 0.5. Rounding again at each level would stay at 1.
    image = np.zeros((16, 16, 1), np.uint8)
    image[::2, ::4] = 1
    assert pyramid(image, 16)[4].max() == 0


def test_to_square_averages_areas_and_keeps_channels() -> None:
    image = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4, 1) * 10
    assert to_square(image, 2)[0, 0, 0] == round(image[:3, :2].mean())
    assert to_square(np.zeros((5, 7, 3), np.uint8), 8).shape == (8, 8, 3)


def test_one_defect_pixel_survives_any_shrinking() -> None:
    mask = np.zeros((1000, 1000), np.bool_)
    mask[337, 512] = True
    small = mask_to_square(mask, 4)
    assert small.sum() == 1
    assert small[1, 2]
