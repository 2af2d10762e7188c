"""What a checkpoint costs, and how long a killed run takes to its next step.

`PYTHONPATH=. python tests/bench/train/checkpoint.py [--quick]` prints tables and writes
tests/bench/results/train_checkpoint.json. The cost is the time for which rank 0 does not train: in
a run of the demo's settings, and with the default networks, whose state is larger. Killed (SIGKILL)
are one worker of two, which Ray replaces, and the whole command with its cluster, which is then
given again at once; timed is until the first step that has ended after that.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import cluster.train
from cluster.config import Config, load_config
from cluster.train_loop import Worker
from data.stream import BatchStream
from gan.schedule import Phase, phase_at
from tests.bench.data.common import ROOT, write_results
from tests.bench.train.step import DEMO, cluster_command
from tests.bench.train.tables import Row, show
from tests.jobs import kill_tree

NUM_CHECKPOINTS = 10
NUM_KILLS = 3
TIMES = "times-{rank}.jsonl"
CHILD_TIMEOUT_S = 300.0
INSTANT: dict[str, Any] = {
    "schedule.fade_kimg": 0.0,
    "schedule.steady_kimg": 0.0,
    "search.steps": 0,
    "search.candidates": 0,
}
"""At the final resolution from the start, and hardly any calibration at the end."""


class TimedWorker(Worker):
    """Notes when each step ended and how long each checkpoint took, in the run directory."""

    def train_batch(self, phase: Phase, stream: BatchStream) -> None:
        super().train_batch(phase, stream)
        self.take_down({"step": self.state.num_steps, "images_seen": self.state.images_seen})

    def checkpoint(self, phase: Phase) -> None:
        started_s = time.perf_counter()
        super().checkpoint(phase)
        self.take_down({"checkpoint_s": time.perf_counter() - started_s})

    def take_down(self, row: Row) -> None:
        path = Path(self.config.run.dir) / TIMES.format(rank=self.rank)
        with path.open("a") as file:
            file.write(json.dumps(row | {"time_s": time.time(), "pid": os.getpid()}) + "\n")


def timed_training(job: Mapping[str, Any]) -> None:
    """`cluster.train_loop.train_worker` with a worker that takes times."""
    worker = TimedWorker(Config.model_validate(job["config"]), job["board"])
    worker.observe(job["tracking"])
    while phase := phase_at(worker.schedule, worker.state.images_seen):
        worker.train_phase(phase)
    worker.finish()


def timed_saving(job: Mapping[str, Any]) -> None:
    """Only checkpoints, with optimisers whose state is as large as it gets, and no model."""
    worker = TimedWorker(Config.model_validate(job["config"]), job["board"])
    worker.observe(job["tracking"])
    state = worker.state
    for optimizer in (state.optimizer_g, state.optimizer_d):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for _ in range(NUM_CHECKPOINTS):
        state.images_seen += 1
        worker.checkpoint(worker.schedule[0])


TRAINING = {"training": timed_training, "saving": timed_saving}


def child(kind: str, settings: dict[str, Any]) -> None:
    """Train with times taken; what the process started by `start` does."""
    config = load_config(settings.pop("config"), settings)
    with (
        patch.object(cluster.train, "train_worker", TRAINING[kind]),
        patch.object(cluster.train, "calibrate", lambda config: None),
    ):
        cluster.train.train(config)


def start(kind: str, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own."""
    words = [sys.executable, __file__, "--child", kind, json.dumps(settings)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Path(settings["run.dir"] + ".log").open("ab") as log:
        return subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def notes(run: Path, rank: int = 0) -> list[Row]:
    """What a rank has noted so far."""
    path = run / TIMES.format(rank=rank)
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def cost(kind: str, settings: dict[str, Any], interval_kimg: float) -> Row:
    """Seconds and bytes of a checkpoint; its share of a run where images were trained.

    Args:
        kind: `training` or `saving`.
        settings: of the run.
        interval_kimg: images between two checkpoints for which the share is told.
    """
    process = start(kind, settings)
    assert process.wait(CHILD_TIMEOUT_S) == 0, Path(settings["run.dir"] + ".log").read_text()
    run = Path(settings["run.dir"])
    rows = notes(run)
    each_s = [row["checkpoint_s"] for row in rows if "checkpoint_s" in row]
    files = (run / "checkpoints").glob("checkpoint_*/state.pt")
    checkpoint_s = statistics.median(each_s[1:])
    told: Row = {
        "case": kind,
        "checkpoint_s": round(checkpoint_s, 3),
        "megabytes": round(max(file.stat().st_size for file in files) / 1e6, 1),
        "each_s": [round(value, 3) for value in each_s],
    }
    steps = [row for row in rows if "step" in row]
    if steps:
        spent_s = steps[-1]["time_s"] - steps[0]["time_s"] - sum(each_s[:-1])
        rate = (steps[-1]["images_seen"] - steps[0]["images_seen"]) / spent_s
        training_s = interval_kimg * 1000 / rate
        told |= {"images_per_s": round(rate, 1), "interval_kimg": interval_kimg}
        told["share"] = round(checkpoint_s / (checkpoint_s + training_s), 5)
    return told


def recoveries(settings: dict[str, Any], num_kills: int) -> Iterator[Row]:
    """Kill a worker, then the command, each `num_kills` times, in one run that goes on."""
    run = Path(settings["run.dir"])
    process = start("training", settings)
    for _ in range(num_kills):
        _wait_for_steps_after_a_checkpoint(run)
        killed_s, last = time.time(), _last_step(run)
        os.kill(notes(run, rank=1)[-1]["pid"], signal.SIGKILL)
        yield {"killed": "one worker", **_recovery(run, killed_s, last)}
        _wait_for_steps_after_a_checkpoint(run)
        killed_s, last = time.time(), _last_step(run)
        kill_tree(process.pid)
        process.wait()
        again_s = time.time()
        process = start("training", settings)
        row = _recovery(run, killed_s, last)
        yield {"killed": "the command", **row, "to_kill_s": round(again_s - killed_s, 2)}
    kill_tree(process.pid)
    process.wait()


def _last_step(run: Path) -> Row:
    return [row for row in notes(run) if "step" in row][-1]


def _wait_for_steps_after_a_checkpoint(run: Path, num_steps: int = 20) -> None:
    """Wait until the present process of rank 0 has trained on after a checkpoint of its own."""
    for _ in _polling("a checkpoint and steps"):
        rows = notes(run)
        own = [row for row in rows if row["pid"] == rows[-1]["pid"]]
        saved = [number for number, row in enumerate(own) if "checkpoint_s" in row]
        if saved and len(own) - saved[-1] > num_steps:
            return


def _recovery(run: Path, killed_s: float, last: Row) -> Row:
    """Seconds from the kill to the end of the next step, and the images trained again."""
    for _ in _polling("a step after the kill"):
        fresh = [row for row in notes(run) if row["pid"] != last["pid"] and "step" in row]
        fresh = [row for row in fresh if row["time_s"] > killed_s]
        if fresh:
            again = last["images_seen"] - fresh[0]["images_seen"]
            return {"to_step_s": round(fresh[0]["time_s"] - killed_s, 2), "images_again": again}
    raise AssertionError


def _polling(what: str) -> Iterator[None]:
    deadline_s = time.monotonic() + CHILD_TIMEOUT_S
    while time.monotonic() < deadline_s:
        yield
        time.sleep(0.05)
    raise TimeoutError(f"no {what} within {CHILD_TIMEOUT_S:.0f} s")


def costs(folder: Path, num_checkpoints: int) -> list[Row]:
    """A checkpoint of the demo's run, and one of the default networks."""
    interval = 0.32
    demo = INSTANT | {
        "config": DEMO,
        "run.dir": str(folder / "demo"),
        "data.uri": str(folder / "digits"),
        "schedule.final_kimg": interval * num_checkpoints,
        "cluster.checkpoint_kimg": interval,
    }
    default = {"config": None, "run.dir": str(folder / "default")}
    default["data.uri"] = str(folder / "surfaces")
    interval_kimg = load_config(DEMO).cluster.checkpoint_kimg
    default_kimg = load_config().cluster.checkpoint_kimg
    trained = cost("training", demo, interval_kimg)
    rows = [{**trained, "networks": "demo"}]
    share = trained["checkpoint_s"] / (
        trained["checkpoint_s"] + default_kimg * 1000 / trained["images_per_s"]
    )
    rows.append({**rows[0], "interval_kimg": default_kimg, "share": round(share, 5), "each_s": []})
    return [*rows, {**cost("saving", default, default_kimg), "networks": "default"}]


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], json.loads(sys.argv[3]))
        return
    quick = "--quick" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster_command(["pack", "digits", str(folder / "digits")], {})
        side = load_config().networks.resolution
        surfaces = ["pack", "surfaces", str(folder / "surfaces")]
        cluster_command(surfaces, {"networks.resolution": side})
        rows = costs(folder, 3 if quick else NUM_CHECKPOINTS)
        killed = INSTANT | {
            "config": DEMO,
            "run.dir": str(folder / "killed"),
            "data.uri": str(folder / "digits"),
            "schedule.final_kimg": 1000.0,
            "cluster.checkpoint_kimg": 0.64,
            "cluster.max_failures": -1,
        }
        kills = list(recoveries(killed, 1 if quick else NUM_KILLS))
    show("what a checkpoint costs", rows)
    show("from a kill to the next step", kills)
    record = {"checkpoints": rows, "kills": kills, "quick": quick, "torch": torch.__version__}
    write_results("train_checkpoint", record | {"load_average": os.getloadavg()})


if __name__ == "__main__":
    main()
