"""Small image files of every kind, and the pixels they hold."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
RGB16 = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png16(pixels: np.ndarray, colour: int, *extra: bytes) -> bytes:
    """A 16-bit PNG of [H, W, samples]: Pillow writes none with colour."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, *, order: str = "<", big: bool = False, **changes: int) -> bytes:
    """An uncompressed TIFF of [H, W] or [H, W, samples], tags changed or added by number."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    tags = {
        256: width, 257: height, 258: pixels.dtype.itemsize * 8, 259: 1, 262: 1 + (samples > 1),
        273: 16 if big else 8, 277: samples, 278: height, 279: len(content), 284: 1,
    }  # fmt: skip
    tags |= {int(name.removeprefix("tag")): value for name, value in changes.items()}
    tags |= {338: 2} if samples == 4 else {}
    word, count = ("Q", "Q") if big else ("I", "H")
    magic = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}H", 43 if big else 42)
    head = magic + struct.pack(order + ("HHQ" if big else "I"), *((8, 0) if big else ()),
                               (16 if big else 8) + len(content))  # fmt: skip
    entries = b"".join(
        struct.pack(f"{order}HH{word}{word}", tag, 16 if big else 4, 1, value)
        for tag, value in sorted(tags.items())
    )
    if samples > 1:
        # BitsPerSample needs one value a channel; they fit nowhere but behind the directory.
        place = len(head) + len(content) + struct.calcsize(order + count)
        place += len(entries) + struct.calcsize(order + word)
        old = struct.pack(f"{order}HH{word}{word}", 258, 16 if big else 4, 1, tags[258])
        depths = struct.pack(f"{order}{samples}H", *[tags[258]] * samples)
        inline = depths.ljust(8, b"\0") if big else struct.pack(order + word, place)
        new = struct.pack(f"{order}HH{word}", 258, 3, samples) + inline
        entries = entries.replace(old, new)
        entries += struct.pack(order + word, 0) + depths + b"\0" * 8
        return head + content + struct.pack(order + count, len(tags)) + entries
    return head + content + struct.pack(order + count, len(tags)) + entries + b"\0" * 8


def to8(values: np.ndarray, low: int = 0, high: int = 65535) -> np.ndarray:
    """The mapping of levels, written out in float."""
    return np.clip(np.round((values.astype(np.float64) - low) * 255 / (high - low)), 0, 255)


def same(image: np.ndarray, wanted: np.ndarray) -> bool:
    wanted = wanted[:, :, None] if wanted.ndim == 2 else wanted
    return image.dtype == np.uint8 and image.shape == wanted.shape and bool((image == wanted).all())


PALETTE = Image.fromarray(RGB).quantize(8)
LOSSLESS: dict[str, tuple[bytes, np.ndarray]] = {
    "png grey": (saved(Image.fromarray(GREY), "PNG"), GREY),
    "png rgb": (saved(Image.fromarray(RGB), "PNG"), RGB),
    "png palette": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "png 1 bit": (saved(Image.fromarray(GREY > 99), "PNG"), (GREY > 99) * np.uint8(255)),
    "png grey 16": (saved(Image.fromarray(GREY16), "PNG"), to8(GREY16)),
    "png rgb 16": (png16(RGB16, 2), to8(RGB16)),
    "png rgba 16": (png16(np.dstack([RGB16, GREY16]), 6), to8(RGB16)),
    "png grey alpha 16": (png16(np.dstack([GREY16, RGB16[..., 0]]), 4), to8(GREY16)),
    "png colour key 16": (
        png16(RGB16, 2, png_chunk(b"tRNS", RGB16[0, 0].astype(">u2").tobytes())), to8(RGB16)
    ),
    "bmp grey": (saved(Image.fromarray(GREY), "BMP"), GREY),
    "bmp rgb": (saved(Image.fromarray(RGB), "BMP"), RGB),
    "webp rgb": (saved(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
    "tiff grey": (saved(Image.fromarray(GREY), "TIFF"), GREY),
    "tiff rgb lzw": (saved(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), RGB),
    "tiff 1 bit": (saved(Image.fromarray(GREY > 99), "TIFF"), (GREY > 99) * np.uint8(255)),
    "tiff white is 0": (tiff(GREY, tag262=0), 255 - GREY),
    "tiff grey 16": (tiff(GREY16), to8(GREY16)),
    "tiff grey 16 motorola": (tiff(GREY16, order=">"), to8(GREY16)),
    "tiff grey 16 big": (tiff(GREY16, big=True), to8(GREY16)),
    "tiff grey 16 white is 0": (tiff(GREY16, tag262=0), to8(65535 - GREY16)),
    "tiff rgb 16": (tiff(RGB16), to8(RGB16)),
    "tiff rgb 16 motorola big": (tiff(RGB16, order=">", big=True), to8(RGB16)),
    "tiff rgba 16": (tiff(np.dstack([RGB16, GREY16])), to8(RGB16)),
    "tiff rgb 16 lzw": (cv2.imencode(".tiff", RGB16[..., ::-1])[1].tobytes(), to8(RGB16)),
}  # fmt: skip


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags
