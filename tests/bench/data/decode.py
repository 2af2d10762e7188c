"""Which decoder is fastest for the training stream, and which PNG encoding suits shards.

`PYTHONPATH=. python tests/bench/data/decode.py` prints tables and writes
tests/bench/results/decode.json. $BLEMISH_IMAGES adds real images. `--quick` takes only 256 pixels.

The candidates are for this benchmark only and stay out of the environment of the project:

    pip install --no-deps --target build/decoders opencv-python-headless==5.0.0.93 \
        kornia-rs==0.2.0 imagecodecs==2026.3.6 simplejpeg==1.9.0 'PyTurboJPEG<2' pyspng==0.1.4 \
        pyvips==3.2.0 pyvips-binary==8.18.7 fpng-py==0.0.3 isal==1.9.1
    PYTHONPATH=.:build/decoders python tests/bench/data/decode.py

(PyTurboJPEG also needs `apt-get install libturbojpeg0`.) What is missing is reported as such.
Times are CPU seconds on one core.
"""

import io
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from tests.bench.data.codecs import Decoder, Encoder, load, png_body
from tests.bench.data.common import (
    Image8,
    one_core,
    real_images,
    seconds_per_call,
    synthetic_images,
    write_results,
)

SIDES = {"png": (32, 64, 128, 256, 512, 1024), "jpeg": (256, 512, 1024)}
PNG_ENCODING_SIDES = (64, 256)
JPEG_QUALITY = 90
JPEG_TOLERANCE = 2
"""Grey levels by which a JPEG decoder may differ from Pillow; what differs more is not timed."""

LEFT_OUT = ("pyvips", "opencv unchanged", "imagecodecs png", "imagecodecs spng")
"""Not worth their time for every encoding: like `opencv` or like `pyspng`, or slow."""

Row = dict[str, Any]


def corpora(side: int, channels: int) -> dict[str, list[Image8]]:
    """Images by where they come from."""
    count = 8 if side <= 128 else 3
    both = {
        "synthetic": synthetic_images(side, channels, count),
        "real": real_images(side, channels, count),
    }
    return {name: images for name, images in both.items() if images}


def jpeg_bytes(image: Image8) -> bytes:
    """Encode as Pillow does at JPEG_QUALITY."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def worst_difference(decoder: Decoder, payload: bytes, expected: Image8) -> int | str:
    """Largest difference in grey levels, or what went wrong."""
    try:
        pixels = decoder(payload)
    except Exception as error:
        return type(error).__name__
    if pixels.shape != expected.shape:
        return f"shape {list(pixels.shape)}"
    return int(np.abs(pixels.astype(np.int16) - expected).max())


def compare(
    payloads: list[bytes],
    expected: list[Image8],
    decoders: dict[str, Decoder],
    tolerance: int = 0,
) -> Row:
    """Images per second of each decoder, and how far its pixels are from the expected ones."""
    differences: dict[str, int | str] = {}
    for name, decoder in decoders.items():
        found = [worst_difference(decoder, *pair) for pair in zip(payloads, expected, strict=True)]
        words = [word for word in found if isinstance(word, str)]
        differences[name] = words[0] if words else max(n for n in found if isinstance(n, int))
    able = {n: d for n, d in decoders.items() if _is_near(differences[n], tolerance)}
    seconds = seconds_per_call(able, payloads)
    return {
        "bytes": round(sum(map(len, payloads)) / len(payloads)),
        "images_per_s": {name: round(1 / s, 1) for name, s in seconds.items()},
        "ratio": {name: round(seconds["pillow"] / s, 2) for name, s in seconds.items()},
        "difference": differences,
    }


def _is_near(difference: int | str, tolerance: int) -> bool:
    return not isinstance(difference, str) and difference <= tolerance


def decode_rows(kind: str, sides: tuple[int, ...], decoders: dict[str, Decoder]) -> list[Row]:
    """Compare decoders on files as Pillow writes them."""
    rows = []
    encode = _pillow_png if kind == "png" else jpeg_bytes
    for side in sides:
        for channels in (1, 3):
            for corpus, images in corpora(side, channels).items():
                payloads = [encode(image) for image in images]
                expected = images if kind == "png" else [decoders["pillow"](p) for p in payloads]
                tolerance = 0 if kind == "png" else JPEG_TOLERANCE
                row = compare(payloads, expected, decoders, tolerance)
                rows.append({"side": side, "channels": channels, "images": corpus, **row})
    return rows


def _pillow_png(image: Image8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def encoding_rows(
    sides: tuple[int, ...], encoders: dict[str, Encoder], decoders: dict[str, Decoder]
) -> list[Row]:
    """Compare PNG encodings: bytes, time to encode, and decoding by each decoder."""
    rows = []
    for side in sides:
        for channels in (1, 3):
            for corpus, images in corpora(side, channels).items():
                for name, encoder in encoders.items():
                    if channels == 1 and name == "fpng":
                        continue
                    seconds = seconds_per_call({name: encoder}, images, repeats=3)[name]
                    row = compare([encoder(image) for image in images], images, decoders)
                    head = {"side": side, "channels": channels, "images": corpus}
                    rows.append(head | {"encoding": name, "encode_ms": seconds * 1000} | row)
    return rows


def damage(decoder: Decoder, payload: bytes, tries: int = 200) -> dict[str, dict[str, int]]:
    """How a decoder takes cut files and files with one wrong byte.

    "raised" is what we want, "same pixels" harmless; "other pixels" were returned without a word.
    """
    rng = random.Random(0)
    whole = decoder(payload)
    results: dict[str, Counter[str]] = {"cut": Counter(), "flipped": Counter()}
    for _ in range(tries):
        place, bits = rng.randrange(1, len(payload) - 1), rng.randrange(1, 256)
        flipped = payload[:place] + bytes([payload[place] ^ bits]) + payload[place + 1 :]
        for name, bad in (("cut", payload[:place]), ("flipped", flipped)):
            try:
                same = np.array_equal(decoder(bad), whole)
            except Exception:
                results[name]["raised"] += 1
            else:
                results[name]["same pixels" if same else "other pixels"] += 1
    return {name: dict(counts) for name, counts in results.items()}


def checked(decoder: Decoder) -> Decoder:
    """A PNG decoder that first checks every checksum itself."""

    def decode(payload: bytes) -> Image8:
        png_body(payload)
        return decoder(payload)

    return decode


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what C libraries write to the standard error about damaged files."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(null)


def damage_rows(png: dict[str, Decoder], jpeg: dict[str, Decoder]) -> list[Row]:
    """Damage of a 64-pixel PNG and JPEG, in colour; only decoders that can read the whole file."""
    image = synthetic_images(64, 3, 1)[0]
    more = {
        f"{name}, checked": checked(png[name]) for name in ("opencv", "kornia-rs") if name in png
    }
    cases = (("png", _pillow_png(image), png | more), ("jpeg", jpeg_bytes(image), jpeg))
    rows: list[Row] = []
    for kind, payload, decoders in cases:
        for name, decoder in decoders.items():
            if isinstance(worst_difference(decoder, payload, image), int):
                with quiet():
                    rows.append({"kind": kind, "decoder": name, **damage(decoder, payload)})
    return rows


def held_share(decoder: Decoder, payload: bytes, repeats: int = 9) -> float:
    """Longest stretch in which a decode lets no other thread run Python, as a share of it, 0..1.

    Near 1: the GIL is kept for the whole decode, and a second thread gains nothing. The least of
    the repeats is taken, so that a busy machine does not look like a kept GIL.
    """
    shares = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(repeats):
            started = pool.submit(_timed, decoder, payload)
            ticks = [time.perf_counter()]
            while not started.done():
                ticks.append(time.perf_counter())
            start, stop = started.result()
            inside = [start, *(tick for tick in ticks if start < tick < stop), stop]
            longest = max(b - a for a, b in itertools.pairwise(inside))
            shares.append(longest / (stop - start))
    return round(min(shares), 2)


def _timed(decoder: Decoder, payload: bytes) -> tuple[float, float]:
    start = time.perf_counter()
    decoder(payload)
    return start, time.perf_counter()


def thread_rows(png: dict[str, Decoder], jpeg: dict[str, Decoder]) -> list[Row]:
    """How far each decoder keeps the GIL, on one large image in colour."""
    image = np.tile(synthetic_images(512, 3, 1)[0], (8, 8, 1))
    cases = (("png", _pillow_png(image), png), ("jpeg", jpeg_bytes(image), jpeg))
    return [
        {"kind": kind, "decoder": name, "gil_held": held_share(decoder, payload)}
        for kind, payload, decoders in cases
        for name, decoder in decoders.items()
        if isinstance(worst_difference(decoder, payload, image), int)
    ]


def show(title: str, rows: list[Row], extra: tuple[str, ...] = ()) -> None:
    """Print images/s of Pillow and, for the others, how many times that."""
    names = sorted({name for row in rows for name in row["ratio"]} - {"pillow"})
    table = Table("side", "ch", "images", *extra, "bytes", "pillow/s", *names, title=title)
    for row in rows:
        words = [str(row["side"]), str(row["channels"]), row["images"]]
        words += [f"{v:.2f}" if isinstance(v, float) else str(v) for v in map(row.get, extra)]
        ratios = (f"×{row['ratio'][n]}" if n in row["ratio"] else "-" for n in names)
        table.add_row(*words, str(row["bytes"]), str(row["images_per_s"]["pillow"]), *ratios)
    _CONSOLE.print(table)


def show_plain(title: str, rows: list[Row]) -> None:
    """Print rows of one shape."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    _CONSOLE.print(table)


_CONSOLE = Console(width=None if sys.stdout.isatty() else 200)


def main() -> None:
    """Measure, print, write."""
    png, jpeg, encoders, versions = load()
    for name, version in versions.items():
        _CONSOLE.print(f"{name}: {version}")
    is_quick = "--quick" in sys.argv[1:]
    sides = dict.fromkeys(SIDES, (256,)) if is_quick else SIDES
    with one_core():
        rows = {
            kind: decode_rows(kind, sides[kind], d) for kind, d in (("png", png), ("jpeg", jpeg))
        }
        fast = {name: decoder for name, decoder in png.items() if name not in LEFT_OUT}
        encodings = encoding_rows((256,) if is_quick else PNG_ENCODING_SIDES, encoders, fast)
    show("PNG as Pillow writes it", rows["png"])
    show(f"JPEG, quality {JPEG_QUALITY}", rows["jpeg"])
    show("PNG encodings", encodings, ("encoding", "encode_ms"))
    damaged, threads = damage_rows(png, jpeg), thread_rows(png, jpeg)
    show_plain("200 damaged files", damaged)
    show_plain("Share of a decode for which the GIL is held", threads)
    record = {"versions": versions, **rows, "encodings": encodings}
    write_results("decode", {**record, "damage": damaged, "threads": threads})


if __name__ == "__main__":
    main()
