"""Evaluation of an inspection of a million images: time and memory, pixels and intervals included.

`PYTHONPATH=. python tests/bench/evaluate.py [IMAGES]` writes scores and pixel counts of so many
images in units of 1,000, evaluates them in a fresh process, once with images apart and once in
parts of ten, and writes the regions of a fifth of them. Prints a table and writes
tests/bench/results/evaluate.json.
"""

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.coco import write_regions
from cluster.evaluate import COLUMNS, evaluate, evaluate_pixels, read_pixels
from cluster.inspection_files import REGIONS, read_scores, write_unit
from cluster.pixel_metrics import PixelCounts
from data.store import Store
from tests.bench.data.common import write_results
from tests.bench.data.stream_memory import memory_mib

UNIT, SIDE = 1000, 64
REGION = {"x": 3, "y": 5, "width": 9, "height": 2, "area": 14, "peak": 0.9}


def write_units(out: Store, units: range) -> None:
    """One image in twenty is abnormal, with a mask; every fifth has regions."""
    rng = np.random.default_rng(0)
    counts = PixelCounts()
    for i in range(UNIT):
        level = rng.gamma(2.0, 0.05, (SIDE, SIDE))
        mask = np.zeros((SIDE, SIDE), bool)
        mask[10:14, 20:30] = i % 20 == 0
        counts.add(level + 0.1 * mask, mask, f"part-{i}")
    pixels = counts.to_bytes()
    for unit in units:
        rng = np.random.default_rng(unit)
        rows = [row(unit * UNIT + i, float(rng.normal())) for i in range(UNIT)]
        write_unit(out, f"test-{SIDE}-{unit:05d}", rows, [], pixels=pixels)


def row(number: int, noise: float) -> dict[str, Any]:
    """A row of the scores."""
    abnormal = number % 20 == 0
    score = noise + 2.0 * abnormal
    name = f"part-{number:07d}"
    return {
        "key": name,
        "source": f"line-7/2026-11-25/{name}.png",
        "label": "abnormal" if abnormal else "normal",
        "kind": ("pit", "scratch")[number // 20 % 2] if abnormal else "good",
        "group": name,
        "height": SIDE,
        "width": SIDE,
        "score": score,
        "residual": score,
        "feature": score,
        "peak": score,
        "steps": 100,
        "best_step": 90,
        "tiles": 1,
        "p_value": 0.5,
        "decision": "abnormal" if score > 1.5 else "normal",
        "pictures": False,
        "regions": [REGION] * 3 if number % 5 == 0 else [],
    }


def measure(task: str, folder: str) -> dict[str, Any]:
    """Seconds and memory of one task, in this process."""
    out, before_mib, started_s = Store(folder), memory_mib("VmRSS"), time.monotonic()
    found: dict[str, Any] = {}
    if task == "pixels":
        found = evaluate_pixels(read_pixels(out))
    elif task == "regions":
        write_regions(out)
        found["bytes"] = out.size(REGIONS)
    else:
        table = read_scores(out, COLUMNS)
        found["read_s"] = round(time.monotonic() - started_s, 1)
        if task == "parts of ten":
            table["group"] = table["group"].str[:-1]
        found |= evaluate(table, {"pit"}, 1.0)
    spent = {"seconds": round(time.monotonic() - started_s, 1), "before_mib": before_mib}
    return spent | {"peak_mib": memory_mib("VmHWM"), "found": found}


def main() -> None:
    """Run, print, write."""
    num_units = int(sys.argv[1]) // UNIT if len(sys.argv) > 1 else 1000
    context = multiprocessing.get_context("spawn")
    results: dict[str, Any] = {}
    table = Table("task", "images", "seconds", "MiB before", "MiB at the peak", "result")
    with tempfile.TemporaryDirectory() as folder:
        large, small = f"{folder}/large", f"{folder}/small"
        write_units(Store(large), range(num_units))
        write_units(Store(small), range(num_units // 5))
        for task, where in (
            ("images apart", large),
            ("parts of ten", large),
            ("pixels", large),
            ("regions", small),
        ):
            with context.Pool(1) as pool:
                spent = pool.apply(measure, (task, where))
            results[task] = spent
            num = len(list(Path(where, "scores").iterdir())) * UNIT
            shown = {k: v for k, v in spent["found"].get("intervals", {}).items() if "au" in k}
            cells = (spent[name] for name in ("seconds", "before_mib", "peak_mib"))
            table.add_row(task, f"{num:,}", *(f"{cell:.1f}" for cell in cells), str(shown))
    Console(width=160).print(table)
    write_results("evaluate", results)


if __name__ == "__main__":
    main()
