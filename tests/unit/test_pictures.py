import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cluster.pictures import encode_map, grid, overlay


@pytest.mark.parametrize("channels", [1, 3])
def test_overlay_goes_from_grey_image_to_full_colour(channels: int) -> None:
    image = np.full((4, 5, channels), 80, dtype=np.uint8)
    level = np.zeros((4, 5), dtype=np.float32)
    level[1, 2], level[3, 4], level[0, 0] = 1.0, 7.0, -1.0
    shown = overlay(image, level)
    hottest = np.array(matplotlib.colormaps["inferno"](1.0)[:3]) * 255
    assert shown.shape == (4, 5, 3)
    assert shown.dtype == np.uint8
    assert (shown[level <= 0] == 80).all()
    np.testing.assert_allclose(shown[1, 2], hottest, atol=1)
    np.testing.assert_array_equal(shown[3, 4], shown[1, 2])


def test_overlay_colour_grows_with_the_level() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None]
    shown = overlay(np.full((1, 64, 1), 128, dtype=np.uint8), ramp).astype(float)
    colourfulness = shown.max(axis=2) - shown.min(axis=2)
    assert (np.diff(colourfulness[0, :40]) >= -1).all()
    assert colourfulness[0, 40] > 80


def test_overlay_of_colour_is_grey_without_heat() -> None:
    image = np.array([[[255, 0, 0], [0, 255, 0]]], dtype=np.uint8)
    shown = overlay(image, np.zeros((1, 2)))
    assert shown[0].tolist() == [[76] * 3, [150] * 3]


def test_map_survives_encoding_to_16_bits() -> None:
    values = np.random.default_rng(0).random((7, 9)) * 2.5
    values[0, 0] = 99.0
    picture = Image.open(io.BytesIO(encode_map(values, 2.5)))
    assert picture.mode == "I;16"
    decoded = np.asarray(picture) / 65535 * 2.5
    assert decoded[0, 0] == 2.5
    np.testing.assert_allclose(decoded.flat[1:], values.flat[1:], atol=2.5 / 65535)


def test_grid_places_images_row_by_row() -> None:
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 3, 4, 1), np.uint8)
    picture = grid(images, 2)
    assert picture.shape == (3 * 3 + 2 * 2, 2 * 4 + 2, 1)
    for i in range(5):
        top, left = i // 2 * 5, i % 2 * 6
        assert (picture[top : top + 3, left : left + 4] == i + 1).all()
    assert (picture[10:, 6:] == 128).all(), "an empty place stays grey"
    assert (picture[3:5] == 128).all(), "rows are apart"


def test_grid_is_no_wider_than_its_images() -> None:
    assert grid(np.zeros((3, 8, 8, 3), np.uint8), 10).shape == (8, 3 * 8 + 2 * 2, 3)
