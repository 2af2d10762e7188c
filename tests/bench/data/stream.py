"""Streaming: stages, undecoded bytes, end to end beside other libraries, memory.

`PYTHONPATH=. python tests/bench/data/stream.py [--quick] [SECTION ...]` prints tables and writes
tests/bench/results/stream_SECTION.json; sections are stages, local, s3, loaders, memory. Within a
section everything takes turns, so that a busy machine slows all alike; the bars are ratios, medians
over the turns. s3 needs the programs that tests/system-packages.sh installs.

The other libraries are for this benchmark only and stay out of the environment of the project:

    pip install --no-deps --target build/loaders mosaicml-streaming==0.13.0 litdata==0.2.76 \
        lightning-utilities==0.15.3 tifffile==2026.3.3 obstore Brotli==1.2.1 zstd==1.5.7.2 \
        xxhash==4.1.0 python-snappy==0.7.3 cramjam==2.14.0 catalogue==2.0.10 tqdm==4.70.1

What is missing is reported as such.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data.dataset import load_index
from data.pyramid import pyramid
from data.reader import Encoded, SplitReader
from data.sample import Image8, decode_png
from data.shard_cache import ShardCache
from data.store import Store
from data.stream import BatchStream
from tests.bench.data.common import ROOT, write_results
from tests.bench.data.loaders import Batches, open_all
from tests.bench.data.stream_bytes import local, s3
from tests.bench.data.stream_sets import SPLIT, pack_surfaces, reader_of, write_noise
from tests.bench.data.turns import Row, against_bar, in_turns, rate, ratio

BATCH = 32
STAGES = (4, 8, 16, 32, 64)
STAGE_SOURCE = 1024
SIDE = 256
WARM_BATCHES = 12
"""More than any of the loaders holds ready, so that none starts with a lead."""
SETTLE_S = 1.0


class Shrinking(SplitReader):
    """Reads a stage the slow way: decodes full size, then takes the box average."""

    def __init__(self, store: Store, side: int) -> None:
        """See the class."""
        index = load_index(store)
        super().__init__(ShardCache(store), index, SPLIT, STAGE_SOURCE, lanes=BATCH, seed=0)
        self._side = side
        self.shape = (index.channels, side, side)

    def decode(self, number: int, payload: Encoded) -> Image8:
        """Return the image, [side, side, C]."""
        image = decode_png(payload.image, (STAGE_SOURCE, STAGE_SOURCE, self.shape[0]))
        return pyramid(image, STAGE_SOURCE)[self._side]


def _batches(reader: SplitReader) -> Batches:
    stream = BatchStream(reader, None, batch=BATCH)
    try:
        while True:
            yield stream.next_batch().normal
    finally:
        stream.close()


def seconds_per_image(batches: Batches, num_images: int, warm: int = WARM_BATCHES) -> float:
    """Steady state: some batches are read first, and the same number is ready at the end."""
    # Whoever had the turn before still reads ahead on the same cores.
    time.sleep(SETTLE_S)
    for _ in range(warm):
        next(batches)
    done, started_s = 0, time.perf_counter()
    while done < num_images:
        done += len(next(batches))
    return (time.perf_counter() - started_s) / done


def stages(root: Path, *, quick: bool) -> list[Row]:
    """Our stream at the small stages against decoding full size and shrinking."""
    store = pack_surfaces(root / "stages", STAGE_SOURCE, 1, 64)
    rows = []
    for side in STAGES[-1:] if quick else STAGES:
        ours, full = _batches(reader_of(store, side, BATCH)), _batches(Shrinking(store, side))
        taken = in_turns(
            {
                "pyramid": functools.partial(seconds_per_image, ours, 4096),
                "full": functools.partial(seconds_per_image, full, 256, warm=4),
            },
            1 if quick else 5,
        )
        row = {f"{name}_images_per_s": rate(seconds) for name, seconds in taken.items()}
        rows.append({"side": side, **row, **against_bar(ratio(taken, "pyramid", "full"), 20)})
    return rows


def loaders(root: Path, *, quick: bool) -> list[Row]:
    """Decoded, flipped batches: ours against webdataset, mosaicml-streaming and litdata."""
    rows: list[Row] = []
    num_images = 256 if quick else 1024
    for channels in (1, 3):
        folder = root / f"end-{channels}"
        pack_surfaces(folder, SIDE, channels, num_images)
        found, missing = open_all(folder, SIDE, root / f"others-{channels}")
        taken = in_turns(
            {
                name: functools.partial(seconds_per_image, batches, num_images)
                for name, batches in found.items()
            },
            1 if quick else 7,
        )
        found.clear()
        for name, seconds in taken.items():
            compared = {} if name == "ours" else against_bar(ratio(taken, "ours", name), 1.0)
            rows.append({"channels": channels, "loader": name, "images_per_s": rate(seconds)})
            rows[-1] |= compared
        rows += [{"channels": channels, "loader": f"{n}: {why}"} for n, why in missing.items()]
    return rows


def memory(root: Path, *, quick: bool) -> list[Row]:
    """Peak with shards of 512 MB, and resident memory after each of 10 passes."""
    big, small = root / "big", root / "small"
    big.mkdir()
    write_noise(big, 1024, 2**26 if quick else 2**29, 3)
    pack_surfaces(small, SIDE, 3, 128 if quick else 512)
    rows = []
    for kind in ("local", "remote"):
        peak = watched(big, 1024, 16, 1, 0.5, kind)
        used_mib = peak["peak_mib"] - peak["before_mib"]
        row = {"from": kind, "case": "large shards, MiB over baseline", "value": round(used_mib)}
        rows.append({**row, "bar": 1024, "met": used_mib < 1024, **peak})
        flat = watched(small, SIDE, BATCH, 10, 0, kind)
        slope = float(np.polyfit(range(9), flat["after_mib"][1:], 1)[0])
        row = {"from": kind, "case": "10 passes, MiB more each pass", "value": round(slope, 3)}
        rows.append({**row, "bar": 1, "met": slope < 1, **flat})
    return rows


def watched(
    folder: Path, resolution: int, batch: int, passes: int, pause_s: float, kind: str
) -> Row:
    """Stream in a process of its own; see stream_memory.py."""
    script = str(ROOT / "tests/bench/data/stream_memory.py")
    words = [str(word) for word in (folder, resolution, batch, passes, pause_s, kind)]
    done = subprocess.run(
        [sys.executable, script, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    told: Row = json.loads(done.stdout)
    return told


def show(title: str, rows: list[Row]) -> None:
    """Print rows; lists are for the JSON file."""
    columns = dict.fromkeys(
        name for row in rows for name, value in row.items() if not isinstance(value, list)
    )
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


SECTIONS = {"stages": stages, "local": local, "s3": s3, "loaders": loaders, "memory": memory}


def main() -> None:
    """Measure, print, write."""
    quick = "--quick" in sys.argv[1:]
    wanted = [word for word in sys.argv[1:] if word != "--quick"] or list(SECTIONS)
    for name in wanted:
        section = SECTIONS[name]
        with tempfile.TemporaryDirectory() as folder:
            rows = section(Path(folder), quick=quick)
        show(f"{name}: {section.__doc__}", rows)
        record = {"torch": torch.__version__, "quick": quick, "load_average": os.getloadavg()}
        write_results(f"stream_{name}", record | {"rows": rows})


if __name__ == "__main__":
    main()
