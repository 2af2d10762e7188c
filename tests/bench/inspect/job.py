"""The batch job: what a second actor brings, what is spent beside the search, and its memory.

`PYTHONPATH=. python tests/bench/inspect/job.py` prints tables and writes
tests/bench/results/inspect_job.json. Images take 100 ms each: the number of steps is chosen for
that. Their speed in a job is taken between its first and last finished units, so that the start of
Ray and of the actors counts apart ("start"). Beside it the engine alone, in one process and in two
at once: the second tells how much this machine has to give to a second actor. All take turns.

Memory: 50,000 small images without steps, resident memory of the driver and of the largest actor as
units are finished; it goes to inspect_job_memory.json. `--images 0` or `--many 0` leaves one out.
"""

import os

# Before numpy is loaded: an actor has one core, and so has the engine alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import functools
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from cluster.config import Config, load_config
from cluster.engine import Engine
from cluster.inputs import find_inputs
from cluster.inspection import inspect_dataset
from cluster.inspection_files import scores_path
from cluster.model_store import load_card, load_model
from cluster.ray_session import ray_session
from data.sample import Sample
from data.store import Store
from tests.bench.data.common import write_results
from tests.bench.data.turns import Taken, against_bar, in_turns, rate, ratio
from tests.bench.train.tables import Row, show
from tests.tiny_model import AT_32_PIXELS, calibrated_model, image_file

ACTORS_BAR, SEARCH_BAR = 1.8, 0.95
IMAGE_S, UNIT = 0.1, 16
NUM_FILES = 64
"""Different images; a folder holds each of them many times, under other names."""
SETTINGS = AT_32_PIXELS | {"inspect.unit_images": UNIT}


def prepare(folder: Path, settings: dict[str, object], num_images: int, side: int) -> Config:
    """A run with a model, and a folder of images to inspect with it."""
    source = folder / "images"
    source.mkdir(parents=True)
    files = [image_file(number, side) for number in range(NUM_FILES)]
    for number in range(num_images):
        (source / f"part-{number:06d}.png").write_bytes(files[number % NUM_FILES])
    places = {"run.dir": str(folder / "run"), "inspect.source": str(source)}
    config = load_config(None, SETTINGS | settings | places)
    calibrated_model(config)
    return config


def changed(config: Config, section: str, **fields: object) -> Config:
    """The configuration with other values in one section."""
    part = getattr(config, section).model_copy(update=fields)
    return config.model_copy(update={section: part})


def samples_of(config: Config) -> list[list[Sample]]:
    """The samples of each unit."""
    card = load_card(Store(config.run.dir))
    return [unit.read().samples for unit in find_inputs(config, card).units]


def engine_s(config: Config, turn: int, num_turns: int) -> float:
    """Seconds that the engine alone takes for an image, over every so-many-th unit."""
    torch.set_num_threads(1)
    engine = Engine(load_model(Store(config.run.dir)), config.search, seed=config.run.seed)
    units = samples_of(config)[turn::num_turns]
    engine.score(units[0][:1])
    started_s = time.perf_counter()
    for samples in units:
        engine.score(samples)
    return (time.perf_counter() - started_s) / sum(len(samples) for samples in units)


def engines_s(config: Config, num_processes: int) -> float:
    """Seconds an image, with so many processes that share the units."""
    ask = functools.partial(engine_s, config, num_turns=num_processes)
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        return max(pool.map(ask, range(num_processes), chunksize=1)) / num_processes


def job_s(config: Config, num_actors: int, starts: Taken) -> float:
    """Seconds an image, from a unit's end to the last one's; what was before goes to `starts`."""
    config = changed(config, "cluster", num_actors=num_actors)
    with tempfile.TemporaryDirectory() as out:
        started_s = time.time()
        assert inspect_dataset(changed(config, "inspect", dir=out)) == 0
        ended_s = sorted(path.stat().st_mtime for path in Path(out).glob(scores_path("*")))
    # The units that ended first were begun together.
    first_s, after = ended_s[num_actors - 1], len(ended_s) - num_actors
    each_s = (ended_s[-1] - first_s) / (after * UNIT)
    starts.setdefault(str(num_actors), []).append(first_s - started_s - each_s * num_actors * UNIT)
    return each_s


def speed(folder: Path, num_images: int, turns: int) -> list[Row]:
    """Jobs of one and two actors, and the engine alone as often."""
    config = prepare(folder, {"search.steps": 20}, num_images, 48)
    probe = functools.partial(engine_s, num_turns=4)
    steps = round(20 * IMAGE_S / probe(config, 0))
    config = changed(config, "search", steps=steps)
    calibrated_model(config)
    starts: Taken = {}
    with ray_session(2):
        taken = in_turns(
            {
                "engine": lambda: engines_s(config, 1),
                "job, 1 actor": lambda: job_s(config, 1, starts),
                "two engines": lambda: engines_s(config, 2),
                "job, 2 actors": lambda: job_s(config, 2, starts),
            },
            turns,
        )
    rows: list[Row] = [
        {"what": name, "steps": steps, "images_per_s": rate(seconds), "seconds": seconds}
        for name, seconds in taken.items()
    ]
    rows[1] |= {"start_s": round(min(starts["1"]), 1), "beside": "engine"}
    rows[1] |= against_bar(ratio(taken, "job, 1 actor", "engine"), SEARCH_BAR)
    rows[2] |= {"beside": "engine", "ratio": round(ratio(taken, "two engines", "engine"), 2)}
    rows[3] |= {"start_s": round(min(starts["2"]), 1), "beside": "job, 1 actor"}
    rows[3] |= against_bar(ratio(taken, "job, 2 actors", "job, 1 actor"), ACTORS_BAR)
    return rows


def memory(folder: Path, num_images: int) -> list[Row]:
    """Resident memory of a job while it goes on, at each tenth of its units."""
    few: dict[str, object] = {"search.steps": 0, "search.candidates": 8, "cluster.num_actors": 1}
    config = prepare(folder, few, num_images, 48)
    config = changed(config, "inspect", dir=str(folder / "out"))
    seen: list[Row] = []
    ended = threading.Event()
    with ray_session(2):
        watch = threading.Thread(target=_watch, args=(folder / "out", num_images, seen, ended))
        watch.start()
        try:
            assert inspect_dataset(config) == 0
        finally:
            ended.set()
            watch.join()
    return seen


def _watch(out: Path, num_images: int, seen: list[Row], ended: threading.Event) -> None:
    """Add a row each time that another tenth of the images is finished."""
    while not ended.wait(0.5):
        finished = UNIT * sum(1 for _ in out.glob(scores_path("*")))
        if finished >= (len(seen) + 1) * num_images / 10:
            driver = psutil.Process()
            actors = [
                child.memory_info().rss
                for child in driver.children(recursive=True)
                if "Inspector" in " ".join(child.cmdline())
            ]
            seen.append(
                {
                    "finished": finished,
                    "driver_mib": driver.memory_info().rss >> 20,
                    "actor_mib": max(actors, default=0) >> 20,
                }
            )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=480, help="images of 100 ms")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--many", type=int, default=50_000, help="images of the memory's job")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = {"options": vars(options), "settings": SETTINGS}
        if options.images:
            rows = speed(Path(folder) / "speed", options.images, options.turns)
            show("100 ms an image", rows)
            write_results("inspect_job", told | {"rows": rows})
        if options.many:
            rows = memory(Path(folder) / "memory", options.many)
            show("resident memory", rows)
            write_results("inspect_job_memory", told | {"rows": rows})


if __name__ == "__main__":
    main()
