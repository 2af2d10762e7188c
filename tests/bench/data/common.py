"""What the benchmarks of the data share: where results go, one core, fair timing, images."""

import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.synthetic import machined_surface

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "tests/bench/results"
Image8 = NDArray[np.uint8]


def write_results(name: str, record: dict[str, Any]) -> None:
    """Write tests/bench/results/<name>.json: the record, with command, date and machine."""
    path = os.environ.get("PYTHONPATH", ".")
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    head = {
        "command": f"PYTHONPATH={path} python {shlex.join([str(script), *sys.argv[1:]])}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{_cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(head | record, indent=1) + "\n")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core, where the system allows it."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def seconds_per_call(
    functions: Mapping[str, Callable[[Any], object]],
    arguments: Sequence[Any],
    *,
    repeats: int = 7,
    slice_s: float = 0.02,
) -> dict[str, float]:
    """Median CPU seconds of one call of each function, over all arguments.

    The functions take turns, so that a busy machine slows all of them alike. CPU time of the
    whole process is counted, so that helper threads of a library are not free.

    Args:
        functions: the candidates.
        arguments: what each is called with, in turn.
        repeats: number of turns; the first, which only warms up, is not counted.
        slice_s: about how long one turn of one candidate takes.
    """
    rounds = dict.fromkeys(functions, 1)
    turns: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(rounds[name]):
                for argument in arguments:
                    function(argument)
            spent = time.process_time() - start
            if turn:
                turns[name].append(spent / rounds[name] / len(arguments))
            else:
                rounds[name] = max(1, round(slice_s / max(spent, 1e-6)))
    return {name: statistics.median(times) for name, times in turns.items()}


def synthetic_images(side: int, channels: int, count: int) -> list[Image8]:
    """Machined surfaces [side, side] or [side, side, 3] uint8."""
    grey = [machined_surface(k, side, side, defect=k % 2 == 0)[0][:, :, 0] for k in range(count)]
    return grey if channels == 1 else [_coloured(image, k) for k, image in enumerate(grey)]


def skip_without_images() -> None:
    """End the benchmark, without an error, where $BLEMISH_IMAGES is unset."""
    if "BLEMISH_IMAGES" not in os.environ:
        print("skipped: set BLEMISH_IMAGES to the folder of real images")
        raise SystemExit(0)


def real_images(side: int, channels: int, count: int) -> list[Image8]:
    """Magnetic tiles under $BLEMISH_IMAGES, cut and, over 256 pixels, set side by side.

    Never enlarged, because that would smooth the noise which decides how well a PNG compresses.
    Empty when the variable is not set.
    """
    folder = os.environ.get("BLEMISH_IMAGES")
    if not folder:
        return []
    rng = np.random.default_rng(0)
    cuts = _cuts(Path(folder) / "magnetic_tile/images/good", rng)
    cell, across = min(side, 256), max(side // 256, 1)
    grey = []
    for _ in range(count):
        rows = [[next(cuts)[:cell, :cell] for _ in range(across)] for _ in range(across)]
        grey.append(np.ascontiguousarray(np.block(rows)))
    return grey if channels == 1 else [_coloured(image, k) for k, image in enumerate(grey)]


def _cuts(folder: Path, rng: np.random.Generator) -> Iterator[Image8]:
    """Yield cuts [256, 256] from random places of the files, without end."""
    paths = sorted(folder.glob("*.jpg"))
    while paths:
        with Image.open(paths[rng.integers(len(paths))]) as opened:
            pixels = np.asarray(opened.convert("L"))
        if min(pixels.shape) >= 256:
            y, x = (int(rng.integers(0, size - 255)) for size in pixels.shape)
            yield pixels[y : y + 256, x : x + 256]


def _coloured(grey: Image8, seed: int) -> Image8:
    """Three channels as a camera gives them: alike, each with its own noise of 1 grey level."""
    noise = np.random.default_rng(seed).normal(0, 1, (*grey.shape, 3))
    return np.clip(grey[:, :, None] * [1.0, 0.93, 0.85] + noise, 0, 255).astype(np.uint8)
