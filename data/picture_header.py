"""What an image file says about itself, read and judged before anything is decoded.

Only a few fields are read, each with a bound, so that a hostile file costs no memory: decoders
and EXIF parsers allocate what a header asks for.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from data.errors import DataError

Format = Literal["PNG", "JPEG", "TIFF", "BMP", "WebP"]

MAX_PIXELS = 2**28
"""Most pixels of an image: 16384 x 16384. Decoding takes 10 to 18 bytes a pixel."""

_MAX_JPEG_SCANS = 100
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TIFF_MAGIC = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
# Tags may share a few bytes, such as two equal resolutions, but never the bulk of the file.
_SHARED_TAG_BYTES = 4096


class _CutOffError(DataError):
    """The file ends within its tags."""


@dataclass(frozen=True)
class Header:
    """The facts of one image file.

    Attributes:
        format: of the file.
        height: pixels, as stored; orientation may swap it with the width.
        width: pixels.
        bits: per sample, 1..16.
        grey: whether a 16-bit image has one colour channel.
        inverted: whether 0 is white (TIFF only).
        orientation: EXIF's 1..8 that is still to be applied; TIFF decoders apply their own.
    """

    format: Format
    height: int
    width: int
    bits: int = 8
    grey: bool = False
    inverted: bool = False
    orientation: int = 1


def read_header(payload: bytes) -> Header:
    """Read and judge the header of an image file.

    Raises:
        DataError: if this is no image of a known format, is damaged, has several pages or
            frames, or is larger than `MAX_PIXELS`.
    """
    try:
        header = _parse(payload)
    except (struct.error, IndexError, OverflowError) as error:
        raise DataError("the file ends within its header: it is cut off") from error
    if header.height < 1 or header.width < 1:
        raise DataError(f"its header says {header.width}x{header.height} pixels: damaged")
    if header.height * header.width > MAX_PIXELS:
        raise DataError(
            f"its header says {header.width}x{header.height} pixels, allowed are {MAX_PIXELS}; "
            "cut it into parts"
        )
    return header


def _parse(payload: bytes) -> Header:
    if not payload:
        raise DataError("the file is empty")
    if payload.startswith(_PNG_MAGIC):
        return _png(payload)
    if payload.startswith(b"\xff\xd8\xff"):
        return _jpeg(payload)
    if payload[:4] in _TIFF_MAGIC:
        return _tiff(payload)
    if payload.startswith(b"BM"):
        return _bmp(payload)
    if payload.startswith(b"RIFF") and payload[8:12] == b"WEBP":
        return _webp(payload)
    raise DataError("not a PNG, JPEG, TIFF, BMP or WebP file; convert it")


def _png(payload: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", payload, 16)
    kinds, orientation = set(), 1
    for kind, content in _png_chunks(payload):
        kinds.add(kind)
        if kind == b"eXIf":
            orientation = _exif_orientation(bytes(content))
    if b"acTL" in kinds:
        raise DataError("this PNG is animated; save one frame")
    if not {b"IHDR", b"IDAT", b"IEND"} <= kinds:
        raise DataError("this PNG is cut off")
    return Header("PNG", height, width, bits, colour in (0, 4), orientation=orientation)


def _png_chunks(payload: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield each chunk; a wrong checksum of one that carries the image is an error."""
    view, offset = memoryview(payload), len(_PNG_MAGIC)
    kind = b""
    while kind != b"IEND" and offset + 12 <= len(payload):
        size, kind = struct.unpack_from(">I4s", payload, offset)
        end = offset + 12 + size
        if end > len(payload):
            raise DataError("this PNG is cut off")
        (checksum,) = struct.unpack_from(">I", payload, end - 4)
        # Decoders draw what a damaged chunk happens to inflate to; a capital means critical.
        if kind[:1].isupper() and zlib.crc32(view[offset + 4 : end - 4]) != checksum:
            raise DataError(f"this PNG is damaged: wrong checksum at byte {offset}")
        yield kind, view[offset + 8 : end - 4]
        offset = end


def _jpeg(payload: bytes) -> Header:
    exif, offset = [], 2
    while True:
        while payload[offset] != 0xFF:
            offset += 1
        marker = payload[offset + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            offset += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):
            raise DataError("this JPEG has no frame header: damaged")
        (size,) = struct.unpack_from(">H", payload, offset + 2)
        body = payload[offset + 4 : offset + 2 + size]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            break
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif.append(body[6:])
        offset += 2 + max(size, 2)
    bits, height, width = struct.unpack_from(">BHH", body)
    if bits != 8:
        raise DataError(f"this JPEG has {bits} bits a sample, allowed is 8; save it as PNG")
    # Each scan walks over the whole image, however few bytes it has.
    if payload.count(b"\xff\xda", offset) > _MAX_JPEG_SCANS:
        raise DataError(f"this JPEG has more than {_MAX_JPEG_SCANS} scans; save it anew")
    return Header("JPEG", height, width, orientation=_exif_orientation(b"".join(exif)))


def _bmp(payload: bytes) -> Header:
    (size,) = struct.unpack_from("<I", payload, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", payload, 18)
    return Header("BMP", abs(height), width)


def _webp(payload: bytes) -> Header:
    kind = payload[12:16]
    orientation = 1
    if kind == b"VP8X":
        flags = payload[20]
        if flags & 0x02:
            raise DataError("this WebP is animated; save one frame")
        width = int.from_bytes(payload[24:27], "little") + 1
        height = int.from_bytes(payload[27:30], "little") + 1
        orientation = _exif_orientation(_webp_exif(payload))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", payload, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", payload, 26))
    return Header("WebP", height, width, orientation=orientation)


def _webp_exif(payload: bytes) -> bytes:
    offset = 12
    while offset + 8 <= len(payload):
        kind, size = struct.unpack_from("<4sI", payload, offset)
        if kind == b"EXIF":
            return payload[offset + 8 : offset + 8 + size].removeprefix(b"Exif\0\0")
        offset += 8 + size + size % 2
    return b""


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block; 1 where it says none or nonsense."""
    if exif[:4] not in _TIFF_MAGIC:
        return 1
    try:
        tags, _ = _tiff_tags(exif)
    except (_CutOffError, struct.error, IndexError, OverflowError):
        return 1
    orientation = tags.get(274, (1,))[0]
    return orientation if 1 <= orientation <= 8 else 1


def _tiff(payload: bytes) -> Header:
    tags, more = _tiff_tags(payload)
    if more:
        raise DataError("this TIFF has more than one page; save each page as its own file")
    if not {256, 257} <= tags.keys():
        raise DataError("this TIFF does not say its size: damaged")
    if set(tags.get(339, (1,))) != {1}:
        raise DataError("this TIFF has float or signed samples; save unsigned 8 or 16 bits")
    depths, photometric = set(tags.get(258, (1,))), tags.get(262, (1,))[0]
    if len(depths) != 1 or not depths <= {1, 2, 4, 8, 16}:
        raise DataError(f"this TIFF has {sorted(depths)} bits a sample, allowed are 1 to 8 and 16")
    (bits,) = depths
    samples = tags.get(277, (1,))[0]
    if samples > 5 or tags.get(322, (1,))[0] * tags.get(323, (1,))[0] > MAX_PIXELS:
        raise DataError(f"this TIFF has {samples} channels or absurdly large tiles")
    if bits == 16 and (photometric, samples) not in {(0, 1), (1, 1), (2, 3), (2, 4)}:
        raise DataError(
            f"this 16-bit TIFF has {samples} channels and photometric {photometric}; "
            "save grey, RGB or RGBA"
        )
    if bits == 16 and samples > 1 and tags.get(284, (1,))[0] != 1:
        raise DataError("this 16-bit TIFF keeps each channel apart; save them interleaved")
    inverted = bits == 16 and photometric == 0
    return Header("TIFF", tags[257][0], tags[256][0], bits, samples == 1, inverted)


def _tiff_tags(payload: bytes) -> tuple[dict[int, tuple[int, ...]], bool]:
    """Return the short integer tags of the first directory, and whether another follows."""
    order, is_big = _TIFF_MAGIC[payload[:4]], payload[2:4] in (b"+\0", b"\0+")
    word, count, value_bytes = ("Q", "Q", 8) if is_big else ("I", "H", 4)
    (start,) = struct.unpack_from(order + word, payload, 8 if is_big else 4)
    (num_tags,) = struct.unpack_from(order + count, payload, start)
    start += struct.calcsize(count)
    entry = struct.Struct(f"{order}HH{word}")
    step = entry.size + value_bytes
    if num_tags * step > len(payload):
        raise _CutOffError("the file ends within its tags: it is cut off")
    tags: dict[int, tuple[int, ...]] = {}
    total = 0
    for offset in range(start, start + num_tags * step, step):
        tag, kind, number = entry.unpack_from(payload, offset)
        size = number * _TYPE_BYTES.get(kind, 1)
        # No parser copies more of one tag than there is.
        total += min(size, len(payload))
        place = offset + entry.size
        if size > value_bytes:
            (place,) = struct.unpack_from(order + word, payload, place)
        if kind in _INTEGERS and 0 < number <= 8:
            values = struct.unpack_from(f"{order}{number}{_INTEGERS[kind]}", payload, place)
            # Of a tag given twice the first counts, as for the decoders.
            tags.setdefault(tag, values)
    if total > len(payload) + _SHARED_TAG_BYTES:
        raise DataError("its tags overlap and are larger than the file: damaged")
    (following,) = struct.unpack_from(order + word, payload, start + num_tags * step)
    return tags, following != 0
