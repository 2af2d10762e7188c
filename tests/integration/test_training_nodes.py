"""What happens to real training runs when a whole node of the Ray cluster is lost, or comes back.

Every node is a raylet of its own on this machine; the command joins them by RAY_ADDRESS.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.jobs import FADING, flags, kill_tree, start_cli

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

WEIGHTS = "model/weights.safetensors"
TOTAL = 3840
BATCH = 16
RAYLET = "raylet"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose head has no room for a worker; tests add nodes with one CPU each."""
    # By default a node that is gone is given up after half a minute.
    for name, value in {
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
    }.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def start(nodes: Cluster) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts training on the cluster and kills, at the end, what is left of it."""
    started: list[subprocess.Popen[str]] = []

    def begin(dataset: Path, run: Path, **more: object) -> subprocess.Popen[str]:
        words = flags(FADING | {"data.uri": dataset, "run.dir": run} | more)
        env = {"RAY_ADDRESS": nodes.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
        started.append(start_cli(["train", *words], env=env))
        return started[-1]

    yield begin
    for process in started:
        kill_tree(process.pid)


def _raylet(node: Any) -> psutil.Process:
    (running,) = node.all_processes[RAYLET]
    return psutil.Process(running.process.pid)


def _trains(node: Any) -> bool:
    return any("RayTrainWorker" in " ".join(p.cmdline()) for p in _raylet(node).children())


def _kill(node: Any) -> None:
    """Take a node away as a power cut does: its raylet, and all that ran under it."""
    kill_tree(_raylet(node).pid)


def _saved(run: Path) -> dict[int, int]:
    """Workers that wrote each whole checkpoint, by images seen."""
    read = [json.loads(path.read_text()) for path in run.glob("checkpoints/*/checkpoint.json")]
    return {told["images_seen"]: told["world_size"] for told in read}


def _wait_for(
    process: subprocess.Popen[str], condition: Callable[[], bool], timeout_s: float = 300
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def _rows(run: Path) -> list[dict[str, float]]:
    """Rows of steps; assessments have rows of their own."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train/loss_d" in row]


def test_killed_node_is_replaced_and_the_run_ends_bit_identical(
    dataset: Path, run_dir: Path, tmp_path: Path, nodes: Cluster, start: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    workers = [nodes.add_node(num_cpus=1) for _ in range(3)]
    process = start(dataset, run)
    _wait_for(process, lambda: max(_saved(run), default=0) >= 800)
    busy = [node for node in workers if _trains(node)]
    assert len(busy) == 2
    _kill(busy[0])
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "failed: " in output
    seen = [row["images_seen"] for row in _rows(run)]
    assert seen == [row["images_seen"] for row in _rows(run_dir)]
    assert seen[-1] == TOTAL
    assert (run / WEIGHTS).read_bytes() == (run_dir / WEIGHTS).read_bytes()


def test_run_shrinks_with_the_cluster_and_grows_with_it(
    dataset: Path, tmp_path: Path, nodes: Cluster, start: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    first, _ = (nodes.add_node(num_cpus=1) for _ in range(2))
    process = start(
        dataset,
        run,
        **{"cluster.min_workers": 1, "cluster.resize_s": 5, "schedule.final_kimg": 20},
    )
    _wait_for(process, lambda: max(_saved(run), default=0) >= 400)
    assert set(_saved(run).values()) == {2}
    _kill(first)
    _wait_for(process, lambda: 1 in _saved(run).values())
    nodes.add_node(num_cpus=1)
    _wait_for(process, lambda: set(_saved(run).values()) == {2})
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "resumed with 1 instead of 2 workers" in output
    assert "resumed with 2 instead of 1 workers" in output
    rows = _rows(run)
    workers = [row["ranks/num_workers"] for row in rows]
    changes = [workers[0], *(b for a, b in pairwise(workers) if a != b)]
    assert changes == [2, 1, 2]
    seen = [row["images_seen"] for row in rows]
    assert seen == sorted(set(seen))
