"""What the whole of training costs beside a bare loop of the same steps.

`PYTHONPATH=. python tests/bench/train/step.py [--quick]` prints a table and writes
tests/bench/results/train_step.json. Whole: `python -m cluster train` with the demo's settings and
two workers: Ray, streaming from shards, tracking, a checkpoint and a grid of samples every 6 kimg.
Bare: two data-parallel processes that take the same steps on batches in memory and do nothing else.
Both at the final resolution and one thread for each process; they take turns, and the first stretch
of each is not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from cluster.config import Config, load_config
from cluster.ranks import wrap_network
from cluster.train_loop import architecture_of, schedule_of
from data.dataset import load_index
from data.store import Store
from gan.state import Rates, TrainingState
from gan.step import Objective
from tests.bench.data.common import ROOT, write_results
from tests.bench.data.turns import against_bar
from tests.bench.train.in_memory import Feed, TrainingImages
from tests.bench.train.mnist_images import cell_images
from tests.bench.train.tables import Row, show

DEMO = str(ROOT / "cluster/demo.yaml")
BAR_RATE, BAR_WAIT = 0.95, 0.02
TURNS = 3
WARM_KIMG = 0.5
COUNTED_KIMG = 6.0
NUM_BATCHES = 8


def settings_in(folder: Path, counted_kimg: float, turn: int) -> dict[str, Any]:
    """The demo's settings, at the final resolution from the start, and hardly any calibration."""
    return {
        "run.dir": str(folder / f"run-{turn}"),
        "data.uri": str(folder / "data"),
        "schedule.fade_kimg": 0.0,
        "schedule.steady_kimg": 0.0,
        "schedule.final_kimg": WARM_KIMG + counted_kimg,
        "search.steps": 0,
        "search.candidates": 0,
    }


def cluster_command(names: list[str], settings: dict[str, Any]) -> None:
    """Run a command of the product with changed settings of the demo."""
    words = [word for path, value in settings.items() for word in (f"--{path}", str(value))]
    command = [sys.executable, "-m", "cluster", *names, "--config", DEMO, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")


def whole(settings: dict[str, Any]) -> tuple[float, float]:
    """Images per second of a whole run, and the share of time in which it waited for data."""
    cluster_command(["train"], settings)
    lines = (Path(settings["run.dir"]) / "metrics.jsonl").read_text().splitlines()
    first, *rest = [row for row in map(json.loads, lines) if "train/images_per_s" in row]
    elapsed_s = (rest[-1]["time_ms"] - first["time_ms"]) / 1000
    images = rest[-1]["images_seen"] - first["images_seen"]
    return images / elapsed_s, sum(row["data/wait_s"] for row in rest) / elapsed_s


def bare(settings: dict[str, Any]) -> float:
    """Images per second of the bare loop."""
    with tempfile.TemporaryDirectory() as folder:
        num_workers = load_config(DEMO, settings).cluster.num_workers
        spawn(_bare_rank, args=(settings, folder), nprocs=num_workers)
        return float((Path(folder) / "rate").read_text())


def _bare_rank(rank: int, settings: dict[str, Any], folder: str) -> None:
    config = load_config(DEMO, settings)
    world_size = config.cluster.num_workers
    torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    meeting = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    rate = _bare_rate(config, rank, world_size)
    if rank == 0:
        (Path(folder) / "rate").write_text(str(rate))
    dist.destroy_process_group()


def _bare_rate(config: Config, rank: int, world_size: int) -> float:
    device = torch.device("cpu")
    state = TrainingState(
        architecture_of(config, load_index(Store(config.data.uri))),
        Rates(**config.optimizer.model_dump()),
        seed=config.run.seed,
        rank=rank,
        device=device,
    )
    phase = schedule_of(config)[-1]
    state.enter(phase, lambda network: wrap_network(network, world_size, device))
    parts = cell_images(0, 0.2, 0, config.run.seed)
    images = TrainingImages(parts["train-normal"][0], parts["train-abnormal"][0])
    feed = Feed(_share(config, world_size), images)
    batches = [feed.batch(phase)[:2] for _ in range(NUM_BATCHES)]
    objective = Objective(**config.objective.model_dump())
    num_images, warm = config.schedule.batch, round(WARM_KIMG * 1000)
    started: tuple[int, float] | None = None
    while state.images_seen < phase.end:
        if started is None and state.images_seen >= warm:
            started = state.images_seen, time.perf_counter()
        batch = batches[state.num_steps % NUM_BATCHES]
        state.step(phase, *batch, objective, images=num_images)
    assert started
    return (state.images_seen - started[0]) / (time.perf_counter() - started[1])


def _share(config: Config, world_size: int) -> Config:
    """The settings with the batch of one rank."""
    schedule = config.schedule
    sizes = {
        "batch": schedule.batch // world_size,
        "abnormal_batch": schedule.abnormal_batch // world_size,
    }
    return config.model_copy(update={"schedule": schedule.model_copy(update=sizes)})


def main() -> None:
    """Measure, print, write."""
    quick = "--quick" in sys.argv[1:]
    counted_kimg, turns = (1.0, 1) if quick else (COUNTED_KIMG, TURNS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster_command(["pack", "digits", str(folder / "data")], {})
        for turn in range(turns):
            settings = settings_in(folder, counted_kimg, turn)
            bare_rate = bare(settings)
            whole_rate, wait_share = whole(settings)
            rates = {"bare": round(bare_rate, 1), "whole": round(whole_rate, 1)}
            share = round(whole_rate / bare_rate, 3)
            rows.append({"turn": turn, **rates, "share": share, "waiting": round(wait_share, 4)})
            show("images/s at 32 pixels, two workers", rows[-1:])
    rate = against_bar(statistics.median(row["share"] for row in rows), BAR_RATE)
    waiting = statistics.median(row["waiting"] for row in rows)
    show("images/s at 32 pixels, two workers", rows)
    told = {"waiting": waiting, "bar": BAR_WAIT, "met": waiting < BAR_WAIT}
    show("medians", [{"what": "whole / bare", **rate}, {"what": "waiting for data", **told}])
    record = {"turns": rows, "rate": rate, "wait": told, "quick": quick, "torch": torch.__version__}
    write_results("train_step", record | {"load_average": os.getloadavg()})


if __name__ == "__main__":
    main()
