"""Image files that are damaged, or made to do harm."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.errors import DataError
from data.formats import read_picture
from data.item import ImportOptions
from data.picture_header import MAX_PIXELS, read_header
from tests.image_files import GREY, LOSSLESS, RGB, RGB16, exif, png16, png_chunk, saved, tiff

PLAIN = ImportOptions()

BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png16_header(60000, 60000),
    "bmp": lambda: patched("BMP", 18, struct.pack("<ii", 60000, -60000)),
    "tiff": lambda: tiff(GREY, tag256=2**31, tag257=2**31),
    "webp": lambda: patched("WEBP", 24, b"\xff\xff\xff" * 2, exif=exif(1)),
    "jpeg": lambda: patched_jpeg(65535, 65535),
}


def png16_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(10**6)))
    return b"\x89PNG\r\n\x1a\n" + parts + png_chunk(b"IEND", b"")


def patched(kind: str, place: int, content: bytes, **options: object) -> bytes:
    payload = bytearray(saved(Image.fromarray(RGB), kind, **options))
    payload[place : place + len(content)] = content
    return bytes(payload)


def patched_jpeg(width: int, height: int) -> bytes:
    payload = bytearray(saved(Image.fromarray(RGB), "JPEG"))
    start = payload.index(b"\xff\xc0") + 5
    payload[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(payload)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_decoding(name: str) -> None:
    payload = BOMBS[name]()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"pixels, allowed are {MAX_PIXELS}"):
            read_picture(payload, PLAIN)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(payload) + 2**20
    finally:
        tracemalloc.stop()


def test_tags_larger_than_the_file_are_refused() -> None:
    # Each of the tags claims all of the file: a parser that copies them needs gigabytes.
    size, count = 200_000, 10_000
    entry = b"".join(struct.pack("<HHII", tag, 1, size, 0) for tag in range(300, 300 + count))
    directory = struct.pack("<H", count) + entry + bytes(4)
    blob = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(size, b"\0")
    with pytest.raises(DataError, match="tags overlap"):
        read_picture(blob, PLAIN)
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part
        for part in (blob[i : i + 60000] for i in range(0, size, 60000))
    )
    jpeg = saved(Image.fromarray(RGB), "JPEG")
    with pytest.raises(DataError, match="tags overlap"):
        read_picture(jpeg[:2] + segments + jpeg[2:], PLAIN)
    with pytest.raises(DataError, match="tags overlap"):
        read_picture(png16(RGB16, 2, png_chunk(b"eXIf", blob)), PLAIN)


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    jpeg = saved(Image.fromarray(GREY), "JPEG", progressive=True)
    start = jpeg.rindex(b"\xff\xda")
    scans = jpeg[:start] + jpeg[start:-2] * 1000 + jpeg[-2:]
    with pytest.raises(DataError, match="more than 100 scans"):
        read_picture(scans, PLAIN)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b"rubbish", "not a PNG, JPEG"),
        (b"GIF89a" + bytes(100), "not a PNG, JPEG"),
        (b"\x89PNG\r\n\x1a\n", "cut off"),
        (b"\xff\xd8\xff", "cut off"),
        (b"II*\0", "cut off"),
        (tiff(GREY, tag256=0), "damaged"),
        (tiff(GREY, tag322=2**31, tag323=2**31), "large tiles"),
    ],
)
def test_rubbish_is_told_what_it_is(payload: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_picture(payload, PLAIN)


def second_width(pixels: np.ndarray) -> bytes:
    """A TIFF whose last tag is another, smaller width."""
    payload = bytearray(tiff(pixels, tag285=1))
    place = payload.rindex(struct.pack("<HHII", 285, 4, 1, 1))
    payload[place : place + 2] = struct.pack("<H", 256)
    return bytes(payload)


@pytest.mark.parametrize("pixels", [GREY, GREY.astype(np.uint16) * 257])
def test_of_a_size_given_twice_the_first_counts(pixels: np.ndarray) -> None:
    payload = second_width(pixels)
    assert (read_header(payload).height, read_header(payload).width) == GREY.shape
    assert read_picture(payload, PLAIN).shape[:2] == GREY.shape


def test_a_png_with_one_wrong_bit_is_refused() -> None:
    for name in ("png rgb", "png rgb 16"):
        payload = bytearray(LOSSLESS[name][0])
        payload[payload.index(b"IDAT") + 20] ^= 1
        with pytest.raises(DataError, match="wrong checksum"):
            read_picture(bytes(payload), PLAIN)


VALID = [payload for payload, _ in LOSSLESS.values()] + [
    saved(Image.fromarray(RGB), "JPEG", exif=exif(6)),
    saved(Image.fromarray(RGB), "JPEG", progressive=True),
    saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    saved(Image.fromarray(RGB), "WEBP", exif=exif(6)),
    saved(Image.fromarray(RGB), "TIFF", compression="jpeg"),
    saved(Image.fromarray(RGB), "TIFF", compression="tiff_adobe_deflate"),
]


@pytest.mark.parametrize("number", range(len(VALID)))
def test_half_a_file_is_refused(number: int) -> None:
    payload = VALID[number]
    with pytest.raises(DataError):
        read_picture(payload[: len(payload) // 2], PLAIN)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A valid file with some bytes changed, cut, doubled or filled in."""
    payload = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(payload) - 1, 0)))
        action = draw(st.sampled_from(["set", "word", "cut", "drop", "insert", "zero"]))
        if action == "set" and payload:
            payload[place] = draw(st.integers(0, 255))
        elif action == "word":
            payload[place : place + 4] = draw(st.binary(min_size=4, max_size=4))
        elif action == "cut":
            del payload[place:]
        elif action == "drop":
            del payload[place : place + draw(st.integers(1, 64))]
        elif action == "insert":
            payload[place:place] = draw(st.binary(max_size=64))
        elif action == "zero":
            payload[place : place + 16] = bytes(16)
    return bytes(payload)


def repaired(payload: bytes) -> bytes:
    """The checksums of a PNG's chunks made right, so that mutations get past them."""
    if not payload.startswith(b"\x89PNG\r\n\x1a\n"):
        return payload
    offset, parts = 8, [payload[:8]]
    while offset + 12 <= len(payload):
        size, kind = struct.unpack_from(">I4s", payload, offset)
        parts.append(png_chunk(kind, payload[offset + 8 : offset + 8 + size]))
        offset += 12 + size
    return b"".join(parts)


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(mutations(), st.booleans())
def test_mutated_files_decode_or_are_refused(payload: bytes, repair: bool) -> None:
    payload = repaired(payload) if repair else payload
    try:
        image = read_picture(payload, PLAIN)
    except DataError:
        return
    header = read_header(payload)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] in (1, 3)
    assert sorted(image.shape[:2]) == sorted((header.height, header.width))


@settings(max_examples=200)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0+", b"BM"]),
    st.binary(max_size=300),
)
def test_garbage_is_refused(magic: bytes, rest: bytes) -> None:
    with pytest.raises(DataError):
        read_picture(magic + rest, PLAIN)
