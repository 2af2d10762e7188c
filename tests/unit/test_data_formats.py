"""Image files of users, every format."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.errors import DataError
from data.formats import read_mask, read_picture
from data.item import ImportOptions
from tests.image_files import (
    GREY,
    GREY16,
    LOSSLESS,
    PALETTE,
    RGB,
    RGB16,
    exif,
    png16,
    png_chunk,
    same,
    saved,
    tiff,
    to8,
)

PLAIN = ImportOptions()


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_keep_every_pixel(name: str) -> None:
    payload, wanted = LOSSLESS[name]
    assert same(read_picture(payload, PLAIN), wanted)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("RGB", "WEBP")],
)
def test_other_files_follow_pillow(mode: str, kind: str) -> None:
    payload = saved(Image.fromarray(RGB).convert(mode), kind)
    wanted = Image.open(io.BytesIO(payload)).convert("L" if mode == "L" else "RGB")
    assert same(read_picture(payload, PLAIN), np.asarray(wanted))


def test_alpha_is_dropped_and_never_blended() -> None:
    half = np.full((5, 7), 1, np.uint8)
    rgba, grey_alpha = np.dstack([RGB, half]), np.dstack([GREY, half])
    for kind in ("PNG", "TIFF"):
        assert same(read_picture(saved(Image.fromarray(rgba), kind), PLAIN), RGB)
        assert same(read_picture(saved(Image.fromarray(grey_alpha), kind), PLAIN), GREY)
    transparent = PALETTE.copy()
    payload = saved(transparent, "PNG", transparency=0)
    assert same(read_picture(payload, PLAIN), np.asarray(PALETTE.convert("RGB")))


def test_levels_map_16_bits() -> None:
    options = ImportOptions(levels=(1000, 5095))
    ramp = np.array([[0, 1000, 3047, 5095, 5096, 65535]], np.uint16)
    payload = saved(Image.fromarray(ramp), "PNG")
    assert read_picture(payload, options)[0, :, 0].tolist() == [0, 0, 127, 255, 255, 255]
    assert same(read_picture(tiff(RGB16), options), to8(RGB16, 1000, 5095))
    with pytest.raises(DataError, match=r"levels=\(9, 9\)"):
        read_picture(payload, ImportOptions(levels=(9, 9)))


@pytest.mark.parametrize("name", LOSSLESS)
def test_channels_convert(name: str) -> None:
    payload, wanted = LOSSLESS[name]
    wanted = wanted.astype(np.uint8)
    grey = wanted if wanted.ndim == 2 else np.asarray(Image.fromarray(wanted).convert("L"))
    assert same(read_picture(payload, ImportOptions(channels=1)), grey)
    colour = np.dstack([wanted] * 3) if wanted.ndim == 2 else wanted
    assert same(read_picture(payload, ImportOptions(channels=3)), colour)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    tagged = Image.fromarray(RGB)
    tagged.getexif()[274] = orientation
    upright = ImageOps.exif_transpose(tagged)
    wanted = np.asarray(upright)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100})):
        payload = saved(Image.fromarray(RGB), kind, exif=exif(orientation), **options)
        image = read_picture(payload, PLAIN)
        assert image.shape == wanted.shape
        far = np.abs(image.astype(int) - wanted).mean()
        assert far == 0 if kind != "JPEG" else far < 60
    payload = saved(Image.fromarray(RGB), "TIFF", tiffinfo={274: orientation})
    assert same(read_picture(payload, PLAIN), wanted)


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param(struct.pack("<HHHII", 60_000, 274, 3, 1, 3), id="more tags than there are"),
        pytest.param(struct.pack("<HHHII", 1, 34665, 7, 2**30, 0), id="a tag larger than the file"),
    ],
)
def test_nonsense_in_exif_turns_nothing(tags: bytes) -> None:
    damaged = b"Exif\0\0" + struct.pack("<2sHI", b"II", 42, 8) + tags + bytes(4)
    payload = saved(Image.fromarray(RGB), "JPEG", exif=damaged)
    assert read_picture(payload, PLAIN).shape == RGB.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_16_bits(orientation: int) -> None:
    tagged = Image.fromarray(to8(RGB16).astype(np.uint8))
    tagged.getexif()[274] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(tagged))
    chunk = png_chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    assert same(read_picture(png16(RGB16, 2, chunk), PLAIN), wanted)
    assert same(read_picture(tiff(RGB16, tag274=orientation), PLAIN), wanted)


def test_pages_frames_and_floats_are_refused() -> None:
    page = Image.fromarray(GREY)
    other = Image.fromarray(255 - GREY)
    more = {"save_all": True, "append_images": [other]}
    with pytest.raises(DataError, match="more than one page"):
        read_picture(saved(page, "TIFF", **more), PLAIN)
    with pytest.raises(DataError, match="PNG is animated"):
        read_picture(saved(page, "PNG", **more), PLAIN)
    with pytest.raises(DataError, match="WebP is animated"):
        read_picture(saved(page, "WEBP", **more), PLAIN)
    with pytest.raises(DataError, match="float or signed"):
        read_picture(saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), PLAIN)
    with pytest.raises(DataError, match="float or signed"):
        read_picture(tiff(GREY16, tag339=2), PLAIN)
    with pytest.raises(DataError, match="each channel apart"):
        read_picture(tiff(RGB16, tag284=2), PLAIN)
    with pytest.raises(DataError, match="bits a sample"):
        read_picture(tiff(GREY16, tag258=32), PLAIN)


def test_masks_are_any_colour_but_black() -> None:
    marks = np.zeros((5, 7), np.uint8)
    marks[1, 2], marks[3, 4] = 1, 255
    wanted = marks > 0
    blue = np.dstack([np.zeros_like(marks)] * 2 + [marks])
    for payload in (
        saved(Image.fromarray(marks), "PNG"),
        saved(Image.fromarray(wanted), "PNG"),
        saved(Image.fromarray(blue), "PNG"),
        saved(Image.fromarray(blue), "BMP"),
        saved(Image.fromarray(marks.astype(np.uint16)), "PNG"),
        tiff(np.dstack([marks.astype(np.uint16)] * 3)),
    ):
        mask = read_mask(payload, (5, 7))
        assert mask.dtype == np.bool_
        assert (mask == wanted).all()
    with pytest.raises(DataError, match=r"mask is \[5, 7\], its image \[7, 5\]"):
        read_mask(saved(Image.fromarray(marks), "PNG"), (7, 5))
    with pytest.raises(DataError, match="JPEG cannot be a mask"):
        read_mask(saved(Image.fromarray(marks), "JPEG"), (5, 7))


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(MemoryError):
        read_picture(saved(PALETTE, "PNG"), PLAIN)
