"""Packing: how much of the time is decoding and encoding, and what a second worker brings.

`PYTHONPATH=. python tests/bench/data/pack.py [IMAGES]` makes IMAGES (600) PNGs of 1024x1024,
prints a table and writes tests/bench/results/data_pack.json. The share is of CPU time, in this
process. Wall times with 1 and 2 Ray workers are taken in turns, and beside them what two processes
that only encode gain over one: as much as this machine had to give at that time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from cluster.pack import pack_on_ray
from data.formats import read_picture
from data.importers import import_items
from data.item import ImportOptions, Item
from data.pack import pack_unit
from data.pack_finish import finish
from data.pack_records import open_plan
from data.plan import PackSettings, Plan, assign_splits, make_plan
from data.preparation import Mode
from data.sample import encode_png
from data.store import Store
from data.synthetic import machined_surface
from tests.bench.data.common import write_results

SIDE = 1024
ROUNDS = 2
CASES: tuple[tuple[Mode, int], ...] = (("whole", 1024), ("whole", 256), ("tiles", 256))


def write_source(folder: Path, num_images: int) -> list[Item]:
    """Write PNGs of shifted surfaces and find them again, as `pack` does."""
    (folder / "good").mkdir(parents=True)
    surfaces = [machined_surface(key, SIDE, SIDE, defect=False)[0] for key in range(12)]
    for number in range(num_images):
        shift = (37 * number % SIDE, 91 * number % SIDE)
        image = np.roll(surfaces[number % len(surfaces)], shift, (0, 1))
        (folder / f"good/{number:04d}.png").write_bytes(encode_png(image))
    found = import_items(str(folder), "folders", ImportOptions())
    return assign_splits(found, 0, (0.6, 0.12, 0.28))


def plan_of(items: list[Item], mode: Mode, resolution: int) -> Plan:
    """The plan of one case, in units of 16 images."""
    overlap = resolution // 4 if mode == "tiles" else 0
    settings = PackSettings(
        name="bench",
        resolution=resolution,
        seed=0,
        mode=mode,
        tile_overlap=overlap,
        shard_samples=16,
    )
    return make_plan(items, settings)


def shares(plan: Plan, store: Store, num_units: int) -> dict[str, float]:
    """CPU seconds an image of a few units, and the share of decoding and encoding in them."""
    spent = {"decode": 0.0, "encode": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started_s = time.process_time()
            try:
                return function(*args)
            finally:
                spent[name] += time.process_time() - started_s

        return call

    read, encode = read_picture, encode_png
    with (
        patch("data.importers.files.read_picture", timed("decode", read)),
        patch("data.shards.encode_png", timed("encode", encode)),
    ):
        started_s = time.process_time()
        for unit in plan.units[:num_units]:
            pack_unit(unit, store, plan.settings, plan.digest)
        total_s = time.process_time() - started_s
    num_images = sum(len(unit.items) for unit in plan.units[:num_units])
    parts = {name: value / total_s for name, value in spent.items()}
    return {"cpu_s_per_image": total_s / num_images, **parts, "together": sum(parts.values())}


def wall_s(plan: Plan, store: Store, num_workers: int) -> float:
    """Seconds to pack everything on a started Ray with warm workers."""
    open_plan(store, plan)
    started_s = time.perf_counter()
    for _ in pack_on_ray(plan, store, list(plan.units), 2 / num_workers):
        pass
    finish(store, plan, max_bad_fraction=0)
    return time.perf_counter() - started_s


def _encode_s(num_images: int) -> float:
    image = machined_surface(0, SIDE, SIDE, defect=False)[0]
    encode_png(image)
    started_s = time.perf_counter()
    for _ in range(num_images):
        encode_png(image)
    return time.perf_counter() - started_s


def raw_speedup(num_images: int = 100) -> float:
    """How much more two processes encode than one, without any packing."""
    taken = []
    for num in (1, 2):
        with multiprocessing.get_context("spawn").Pool(num) as pool:
            taken.append(max(pool.map(_encode_s, [num_images] * num, chunksize=1)))
    return 2 * taken[0] / taken[1]


def main() -> None:
    """Run, print, write."""
    num_images = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        items = write_source(root / "source", num_images)
        share = {
            f"{mode} {side}": shares(plan_of(items, mode, side), Store(f"{root}/{mode}{side}"), 4)
            for mode, side in CASES
        }
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        warm = plan_of(items[:48], "whole", SIDE)
        wall_s(warm, Store(f"{root}/warm"), 2)
        plan = plan_of(items, "whole", SIDE)
        times: dict[int, list[float]] = {1: [], 2: []}
        raw = []
        for turn in range(ROUNDS):
            raw.append(raw_speedup())
            for workers, taken in times.items():
                taken.append(wall_s(plan, Store(f"{root}/{workers}-{turn}"), workers))
    fastest = {workers: min(taken) for workers, taken in times.items()}
    record = {
        "images": num_images,
        "share_of_cpu_time": share,
        "wall_s": times,
        "speedup_of_2_workers": fastest[1] / fastest[2],
        "speedup_of_2_encoders": raw,
        "load_average": os.getloadavg(),
    }
    write_results("data_pack", record)
    table = Table("case", "CPU ms/image", "decode", "encode", "together", title="share of CPU time")
    for name, row in share.items():
        parts = (f"{row[part]:.1%}" for part in ("decode", "encode", "together"))
        table.add_row(name, f"{row['cpu_s_per_image'] * 1000:.0f}", *parts)
    Console().print(table)
    print(
        f"{num_images} images, 1 worker {fastest[1]:.1f} s, 2 workers {fastest[2]:.1f} s: ", end=""
    )
    print(f"{fastest[1] / fastest[2]:.2f}x; two processes that only encode: {max(raw):.2f}x")


if __name__ == "__main__":
    main()
