"""What happens to real training runs when they are stopped, killed, starved or damaged."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch

from data.store import Store
from tests.ceph_server import BUCKET, CephServer
from tests.jobs import FADING, flags, kill_tree, run_cli, start_cli
from tests.training_runs import TOTAL, images_saved, rows_of, rows_of_steps, wait_for_images

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

WEIGHTS = "model/weights.safetensors"
OUTAGE_S = 60


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Starts commands and kills, at the end, what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def begin(words: list[str], **env: str) -> subprocess.Popen[str]:
        started.append(start_cli(words, env=env))
        return started[-1]

    yield begin
    for process in started:
        kill_tree(process.pid)


def _words(data: object, run: object, **more: object) -> list[str]:
    return ["train", *flags(FADING | {"data.uri": data, "run.dir": run} | more)]


def _newest(run: Path) -> Path:
    return sorted(run.glob("checkpoints/checkpoint_*"))[-1]


def _terminate(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130, output
    assert "asked to stop: the workers write a checkpoint first" in output
    assert "stopped; run the same command again to continue" in output
    return output


def _positions(run: Path) -> tuple[int, int]:
    state = torch.load(_newest(run) / "state.pt", weights_only=True)
    return state["images_seen"], state["position"]["normal"]


@pytest.fixture(scope="module")
def stopped_once(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that got SIGTERM between two checkpoints."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    process = start_cli(_words(dataset, run))
    try:
        wait_for_images(process, run, 800)
        _terminate(process)
    finally:
        kill_tree(process.pid)
    return run


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def test_run_told_to_stop_loses_nothing_and_ends_bit_identical(
    dataset: Path, run_dir: Path, stopped: Path
) -> None:
    assert not (stopped / WEIGHTS).exists()
    before = images_saved(stopped)[-1]
    assert 800 <= before < TOTAL
    last_row = rows_of(stopped)[-1]["images_seen"]
    assert before - 80 < last_row <= before, "the checkpoint is not where training stopped"
    status, output = run_cli(_words(dataset, stopped))
    assert status == 0, output
    assert (stopped / WEIGHTS).read_bytes() == (run_dir / WEIGHTS).read_bytes()


def test_number_of_workers_may_change_twice(
    dataset: Path, stopped: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    first = _positions(stopped)
    process = start(_words(dataset, stopped, **{"cluster.num_workers": 1}))
    wait_for_images(process, stopped, first[0] + 400)
    output = _terminate(process)
    assert "resumed with 1 instead of 2 workers" in output
    second = _positions(stopped)
    status, output = run_cli(_words(dataset, stopped))
    assert status == 0, output
    assert "resumed with 2 instead of 1 workers" in output
    # A position counts the images all ranks have read, and they are read in its order.
    for images_seen, position in (first, second, _positions(stopped)):
        assert images_seen == position
    # Rows of steps; assessments have rows of their own.
    seen = [row["images_seen"] for row in rows_of_steps(stopped)]
    assert seen == sorted(set(seen))
    assert seen[-1] == TOTAL == _positions(stopped)[0]


def test_torn_checkpoint_is_named_and_the_one_before_it_used(
    dataset: Path, run_dir: Path, stopped: Path
) -> None:
    torn = _newest(stopped)
    content = (torn / "state.pt").read_bytes()
    (torn / "state.pt").write_bytes(content[: len(content) // 2])
    before = images_saved(stopped)[-2]
    status, output = run_cli(_words(dataset, stopped))
    assert status == 0, output
    assert f"{torn} is not used: state.pt has {len(content) // 2} bytes" in output
    assert re.search(rf"training goes on from \S+_0*{before}\n", output)
    assert (stopped / WEIGHTS).read_bytes() == (run_dir / WEIGHTS).read_bytes()


def test_run_without_a_sound_checkpoint_stops_at_once(dataset: Path, stopped: Path) -> None:
    for folder in stopped.glob("checkpoints/checkpoint_*"):
        (folder / "rank-00001.pt").unlink()
    status, output = run_cli(_words(dataset, stopped))
    assert status == 2, output
    assert "can be used; bring sound ones back, delete the folder" in output
    assert output.count("checkpoint is not used") + output.count("is not used: ") == 2
    assert "worker 0 failed" not in output, "it was tried again"


def test_killed_worker_is_replaced_and_the_run_ends_bit_identical(
    dataset: Path, run_dir: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    run = tmp_path / "killed"
    process = start(_words(dataset, run))
    wait_for_images(process, run, 800)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].kill()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert re.search(r"worker [01] failed", output)
    assert (run / WEIGHTS).read_bytes() == (run_dir / WEIGHTS).read_bytes()


def test_store_down_for_a_minute_only_delays_the_run(
    dataset: Path,
    run_dir: Path,
    tmp_path: Path,
    ceph: CephServer,
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    local, remote = Store(str(dataset)), Store(f"s3://{BUCKET}/packed")
    for path in local.list():
        remote.write_bytes(path, local.read_bytes(path))
    run = tmp_path / "run"
    cache = {"data.cache_dir": tmp_path / "cache"}
    process = start(_words(remote.uri, run, **cache))
    # Still at 8 pixels, so that all shards of 16 pixels are to come.
    wait_for_images(process, run, 400)
    ceph.stop_gateway()
    time.sleep(OUTAGE_S)
    assert process.poll() is None
    assert images_saved(run)[-1] < TOTAL
    ceph.start_gateway()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "failed" not in output
    assert max(row.get("data/wait_s", 0) for row in rows_of(run)) > OUTAGE_S / 2
    assert (run / WEIGHTS).read_bytes() == (run_dir / WEIGHTS).read_bytes()


def test_run_directory_down_for_a_minute_only_delays_the_run(
    dataset: Path,
    run_dir: Path,
    tmp_path: Path,
    ceph: CephServer,
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    run = Store(f"s3://{BUCKET}/run")
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    process = start(_words(dataset, run.uri, **{"tracking.uri": database}))
    deadline = time.monotonic() + 600
    while not run.exists("checkpoints/checkpoint_000_000000000800/checkpoint.json"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ceph.stop_gateway()
    time.sleep(OUTAGE_S)
    assert process.poll() is None, process.communicate()[0]
    ceph.start_gateway()
    assert not run.exists("model"), "it ended before the outage could touch it"
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "failed" not in output
    rows = [json.loads(line) for line in run.read_bytes("metrics.jsonl").splitlines()]
    assert [row["images_seen"] for row in rows] == [row["images_seen"] for row in rows_of(run_dir)]
    took_s = [(b["time_ms"] - a["time_ms"]) / 1000 for a, b in pairwise(rows)]
    assert max(took_s) > OUTAGE_S / 2, "no step had to wait for the store"
    kept = {path.split("/")[1] for path in run.list("checkpoints/checkpoint_")}
    assert kept == {path.name for path in run_dir.glob("checkpoints/checkpoint_*")}
    assert run.read_bytes(WEIGHTS) == (run_dir / WEIGHTS).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that the second checkpoint fills."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not mounted or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_one_clear_message_and_space_heals_it(
    dataset: Path, run_dir: Path, tmp_path: Path, small_disk: Path
) -> None:
    # The filler leaves room for one checkpoint of 0.4 MB and a half.
    (small_disk / "filler").write_bytes(b"x" * 1_400_000)
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    more = {"tracking.uri": database, "cluster.max_failures": 0}
    status, output = run_cli(_words(dataset, small_disk / "run", **more))
    assert status == 2, output
    assert "No space left on device; check the path, its permissions and the free space" in output
    assert "Traceback" not in output
    (small_disk / "filler").unlink()
    status, output = run_cli(_words(dataset, small_disk / "run", **more))
    assert status == 0, output
    assert (small_disk / "run" / WEIGHTS).read_bytes() == (run_dir / WEIGHTS).read_bytes()
