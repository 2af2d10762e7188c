"""Packing at a factory's size: memory with 8-megapixel images, near-duplicates among 300,000.

`PYTHONPATH=. python tests/bench/data/pack_limits.py` makes 24 RGB images of 3264x2448, packs them
whole and in tiles, each in a fresh process, then compares 300,000 fingerprints. Prints a table and
writes tests/bench/results/data_pack_limits.json.
"""

import multiprocessing
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from data.duplicates import Fingerprint, near_duplicates
from data.importers import import_items
from data.item import ImportOptions
from data.pack import pack_unit
from data.plan import PackSettings, assign_splits, make_plan
from data.preparation import Mode
from data.sample import SPLITS, encode_png
from data.store import Store
from tests.bench.data.common import write_results
from tests.bench.data.stream_memory import memory_mib

HEIGHT, WIDTH, NUM_IMAGES = 2448, 3264, 24
CASES: tuple[tuple[Mode, int], ...] = (("whole", 1024), ("tiles", 256), ("tiles", 1024))
NUM_PRINTS = 300_000


def write_source(folder: Path) -> None:
    """Write noisy RGB images of 8 megapixels."""
    (folder / "good").mkdir(parents=True)
    source = np.random.default_rng(0)
    coarse = source.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3)).repeat(16, 0).repeat(16, 1)
    for number in range(NUM_IMAGES):
        noise = source.integers(-6, 7, (HEIGHT, WIDTH, 1))
        image = np.roll(coarse, (37 * number, 91 * number), (0, 1)) + noise
        payload = encode_png(image.clip(0, 255).astype(np.uint8))
        (folder / f"good/{number:03d}.png").write_bytes(payload)


def pack(root: Path, mode: Mode, resolution: int) -> dict[str, float]:
    """Pack all images in this process: its memory before, at the peak, and CPU time an image."""
    found = import_items(str(root / "source"), "folders", ImportOptions())
    overlap = resolution // 4 if mode == "tiles" else 0
    settings = PackSettings(
        name="bench", resolution=resolution, seed=0, mode=mode, tile_overlap=overlap
    )
    plan = make_plan(assign_splits(found, 0, (0.6, 0.12, 0.28)), settings)
    before_mib, started_s = memory_mib("VmRSS"), time.process_time()
    for unit in plan.units:
        pack_unit(unit, Store(f"{root}/{mode}{resolution}"), settings, plan.digest)
    cpu_s = (time.process_time() - started_s) / NUM_IMAGES
    return {"before_mib": before_mib, "peak_mib": memory_mib("VmHWM"), "cpu_s_per_image": cpu_s}


def compare(*, alike: bool) -> dict[str, float]:
    """Seconds to compare fingerprints that are all unlike, or all near one another."""
    source = random.Random(0)
    prints = []
    for number in range(NUM_PRINTS):
        bits = 0 if alike else source.getrandbits(64)
        for _ in range(source.randrange(12) if alike else 0):
            bits ^= 1 << source.randrange(64)
        split = SPLITS[number % len(SPLITS)]
        prints.append(Fingerprint(str(number), split, group=str(number), bits=bits))
    before_mib, started_s = memory_mib("VmRSS"), time.perf_counter()
    num_pairs = len(near_duplicates(prints))
    wall_s = time.perf_counter() - started_s
    peak_mib = memory_mib("VmHWM")
    return {
        "pairs": num_pairs,
        "wall_s": wall_s,
        "before_mib": before_mib,
        "peak_mib": peak_mib,
    }


def main() -> None:
    """Run, print, write."""
    record: dict[str, Any] = {"pack": {}, "near_duplicates": {}}
    # A process for each: a peak is that of the whole life.
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_source(root / "source")
        for mode, side in CASES:
            with fresh.Pool(1) as pool:
                record["pack"][f"{mode} {side}"] = pool.apply(pack, (root, mode, side))
    for name, alike in (("all unlike", False), ("all alike", True)):
        with fresh.Pool(1) as pool:
            record["near_duplicates"][name] = pool.apply(compare, (), {"alike": alike})
    write_results("data_pack_limits", record)
    for title, rows in record.items():
        table = Table("case", *next(iter(rows.values())), title=title)
        for name, row in rows.items():
            table.add_row(name, *(f"{value:,.2f}" for value in row.values()))
        Console().print(table)


if __name__ == "__main__":
    main()
