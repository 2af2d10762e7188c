"""The decoders and PNG encoders that tests/bench/data/decode.py compares.

A decoder takes a file's bytes and gives uint8 [H, W] or RGB [H, W, 3]; an encoder is its
inverse. `load` leaves out what is not installed.
"""

import importlib
import io
import itertools
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from data.sample import encode_png
from tests.bench.data.common import Image8

Decoder = Callable[[bytes], Image8]
Encoder = Callable[[Image8], bytes]
Made = tuple[dict[str, Decoder], dict[str, Decoder], dict[str, Encoder]]
MAX_PIXELS = 2**26
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def load() -> tuple[dict[str, Decoder], dict[str, Decoder], dict[str, Encoder], dict[str, str]]:
    """Return PNG decoders, JPEG decoders, PNG encoders, and module -> version or why missing."""
    png: dict[str, Decoder] = {}
    jpeg: dict[str, Decoder] = {}
    encoders: dict[str, Encoder] = {}
    versions = {}
    for name, make in _MAKERS.items():
        try:
            module = importlib.import_module(name)
            made = make(module)
        except (ImportError, OSError, RuntimeError) as error:
            versions[name] = f"not installed ({error})"
            continue
        versions[name] = str(getattr(module, "__version__", "?"))
        png |= made[0]
        jpeg |= made[1]
        encoders |= made[2]
    return png, jpeg, encoders, versions


def is_grey(payload: bytes) -> bool:
    """Whether a PNG or JPEG is grey, from its header."""
    if payload.startswith(SIGNATURE):
        return payload[25] == 0
    position = 2
    while payload[position + 1] not in (0xC0, 0xC1, 0xC2):
        position += 2 + int.from_bytes(payload[position + 2 : position + 4], "big")
    return payload[position + 9] == 1


def flat(image: Image8) -> Image8:
    """[H, W, 1] as [H, W]."""
    return image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image


def _pillow(_: Any) -> Made:
    def decode(payload: bytes) -> Image8:
        return np.asarray(Image.open(io.BytesIO(payload)))

    def encoder(**options: int) -> Encoder:
        def encode(image: Image8) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="PNG", **options)
            return buffer.getvalue()

        return encode

    encoders = {"pillow": encoder()}
    encoders |= {f"pillow level {n}": encoder(compress_level=n) for n in (0, 1, 3, 9)}
    strategies = {"filtered": 1, "huffman": 2, "rle": 3, "fixed": 4}
    encoders |= {f"pillow {name}": encoder(compress_type=n) for name, n in strategies.items()}
    encoders["shards"] = lambda image: encode_png(np.atleast_3d(image))
    return {"pillow": decode}, {"pillow": decode}, encoders


def _opencv(cv2: Any) -> Made:
    cv2.setNumThreads(1)
    flags = cv2.IMREAD_IGNORE_ORIENTATION
    kinds = {True: cv2.IMREAD_GRAYSCALE | flags, False: cv2.IMREAD_COLOR_RGB | flags}

    def decode(payload: bytes) -> Image8:
        pixels: Image8 = cv2.imdecode(np.frombuffer(payload, np.uint8), kinds[is_grey(payload)])
        if pixels is None:
            raise ValueError("cv2.imdecode gave None")
        return pixels

    def unchanged(payload: bytes) -> Image8:
        pixels = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError("cv2.imdecode gave None")
        return np.asarray(pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))

    def encoder(*options: int) -> Encoder:
        def encode(image: Image8) -> bytes:
            pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            return bytes(cv2.imencode(".png", pixels, list(options))[1])

        return encode

    level, strategy, row_filter = (
        getattr(cv2, f"IMWRITE_PNG_{name}") for name in ("COMPRESSION", "STRATEGY", "FILTER")
    )
    filters = {
        name: (row_filter, getattr(cv2, f"IMWRITE_PNG_{constant}"))
        for name, constant in {
            "none": "FILTER_NONE",
            "sub": "FILTER_SUB",
            "up": "FILTER_UP",
            "all": "ALL_FILTERS",
        }.items()
    }
    encoders = {"opencv": encoder(), "opencv none level 0": encoder(level, 0, *filters["none"])}
    for name, words in filters.items():
        encoders[f"opencv {name} huffman"] = encoder(level, 1, strategy, 2, *words)
        encoders[f"opencv {name} rle"] = encoder(level, 1, strategy, 3, *words)
    return {"opencv": decode, "opencv unchanged": unchanged}, {"opencv": decode}, encoders


def _kornia(kornia_rs: Any) -> Made:
    modes = {True: "mono", False: "rgb"}

    def png(payload: bytes) -> Image8:
        width, height, bits, colour = struct.unpack_from(">IIBB", payload, 16)
        # It allocates before it reads the header, and gives a palette's numbers as grey.
        if width * height > MAX_PIXELS or bits != 8 or colour not in (0, 2):
            raise ValueError(f"{width}x{height} PNG of {bits} bits, colour type {colour}")
        mode = modes[colour == 0]
        return flat(np.asarray(kornia_rs.io.decode_image_png_u8(payload, (height, width), mode)))

    def jpeg(payload: bytes) -> Image8:
        mode = modes[is_grey(payload)]
        return flat(np.asarray(kornia_rs.io.decode_image_jpegturbo(payload, mode)))

    def jpeg_rust(payload: bytes) -> Image8:
        return flat(np.asarray(kornia_rs.io.decode_image_jpeg(payload)))

    return {"kornia-rs": png}, {"kornia-rs turbo": jpeg, "kornia-rs rust": jpeg_rust}, {}


def _imagecodecs(ic: Any) -> Made:
    encoders = {
        "imagecodecs spng": lambda image: bytes(ic.spng_encode(image)),
        "imagecodecs png 1": lambda image: bytes(ic.png_encode(image, level=1)),
    }
    decoders = {"imagecodecs png": ic.png_decode, "imagecodecs spng": ic.spng_decode}
    return decoders, {"imagecodecs": ic.jpeg8_decode}, encoders


def _pyspng(pyspng: Any) -> Made:
    return {"pyspng": pyspng.load}, {}, {}


def _simplejpeg(simplejpeg: Any) -> Made:
    spaces = {True: "GRAY", False: "RGB"}

    def decoder(**options: bool) -> Decoder:
        def decode(payload: bytes) -> Image8:
            return flat(simplejpeg.decode_jpeg(payload, spaces[is_grey(payload)], **options))

        return decode

    fast = decoder(fastdct=True, fastupsample=True)
    return {}, {"simplejpeg": decoder(), "simplejpeg fast DCT": fast}, {}


def _turbojpeg(turbojpeg: Any) -> Made:
    library = turbojpeg.TurboJPEG()
    formats = {True: turbojpeg.TJPF_GRAY, False: turbojpeg.TJPF_RGB}
    return {}, {"turbojpeg": lambda data: flat(library.decode(data, formats[is_grey(data)]))}, {}


def _pyvips(pyvips: Any) -> Made:
    def decode(payload: bytes) -> Image8:
        image = pyvips.Image.new_from_buffer(payload, "", access="sequential", fail_on="warning")
        pixels: Image8 = flat(image.numpy())
        return pixels

    return {"pyvips": decode}, {"pyvips": decode}, {}


def _fpng(fpng: Any) -> Made:
    def encode(image: Image8) -> bytes:
        if image.ndim == 2:
            raise ValueError("fpng has no grey")
        height, width = image.shape[:2]
        return bytes(fpng.fpng_encode_image_to_memory(image.tobytes(), width, height, 3))

    return {}, {}, {"fpng": encode}


def _inflating(name: str, filters: tuple[int, ...]) -> Callable[[Any], Made]:
    """Candidates of our own: numpy undoes the filter after a zlib-like module inflated."""

    def make(module: Any) -> Made:
        def decode(payload: bytes) -> Image8:
            return _unfiltered(payload, module)

        levels = {"stored": 0} if name == "zlib" else {"1": 1}
        encoders = {
            f"{name} {('none', 'sub', 'up')[kind]} {word}": _filtering(module, kind, level)
            for kind in filters
            for word, level in levels.items()
        }
        return {f"numpy + {name}": decode}, {}, encoders

    return make


def _filtering(module: Any, kind: int, level: int) -> Encoder:
    def encode(image: Image8) -> bytes:
        height, width = image.shape[:2]
        depth = image.size // (height * width)
        raw = image.reshape(height, -1)
        rows = np.concatenate([np.full((height, 1), kind, np.uint8), raw], axis=1)
        if kind == 1:
            rows[:, 1 + depth :] -= raw[:, :-depth]
        elif kind == 2:
            rows[1:, 1:] -= raw[:-1]
        colour = 0 if depth == 1 else 2
        head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
        body = module.compress(rows.tobytes(), level)
        chunks = ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
        return SIGNATURE + b"".join(_chunk(*chunk) for chunk in chunks)

    return encode


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _unfiltered(payload: bytes, module: Any) -> Image8:
    """Decode an 8-bit PNG whose rows all have the same filter: none, sub or up."""
    width, height, _, colour = struct.unpack_from(">IIBB", payload, 16)
    depth = 3 if colour == 2 else 1
    size = height * (1 + width * depth)
    inflated = module.decompress(png_body(payload, module.crc32), 15, size)
    rows = np.frombuffer(inflated, np.uint8).reshape(height, 1 + width * depth)
    kind = rows[0, 0]
    if kind > 2 or (rows[:, 0] != kind).any():
        raise NotImplementedError("rows with different filters")
    pixels = rows[:, 1:].reshape(height, width, depth)
    if kind == 1:
        pixels = np.add.accumulate(pixels, axis=1, dtype=np.uint8)
    elif kind == 2:
        pixels = pixels.copy()
        for above, row in itertools.pairwise(pixels):
            np.add(row, above, out=row)
    return flat(pixels)


def png_body(payload: bytes, crc32: Callable[[Any], int] = zlib.crc32) -> bytes:
    """Return the compressed pixels of a PNG.

    Raises:
        ValueError: if the file is cut or a checksum is wrong.
    """
    view, position, parts, kind = memoryview(payload), 8, [], b""
    while kind != b"IEND":
        if position + 12 > len(payload):
            raise ValueError("PNG is cut")
        length, kind = struct.unpack_from(">I4s", payload, position)
        stop = position + 8 + length
        if stop + 4 > len(payload) or crc32(view[position + 4 : stop]) != int.from_bytes(
            view[stop : stop + 4], "big"
        ):
            raise ValueError(f"PNG chunk {kind!r} is damaged")
        if kind == b"IDAT":
            parts.append(view[position + 8 : stop])
        position = stop + 4
    return b"".join(parts)


_MAKERS: dict[str, Callable[[Any], Made]] = {
    "PIL": _pillow,
    "cv2": _opencv,
    "kornia_rs": _kornia,
    "imagecodecs": _imagecodecs,
    "pyspng": _pyspng,
    "simplejpeg": _simplejpeg,
    "turbojpeg": _turbojpeg,
    "pyvips": _pyvips,
    "fpng_py": _fpng,
    "isal.isal_zlib": _inflating("isal", (0, 1, 2)),
    "zlib": _inflating("zlib", (0,)),
}
