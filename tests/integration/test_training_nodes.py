"""What happens to real training runs when a whole node of the Ray cluster is lost, or comes back.

Every node is a raylet of its own on this machine; the command joins them by RAY_ADDRESS.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.cluster_nodes import kill_node, runs
from tests.jobs import FADING, flags, kill_tree, start_cli
from tests.training_runs import TOTAL, rows_of_steps, saved, wait_for, wait_for_images, workers_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

WEIGHTS = "model/weights.safetensors"


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


def test_killed_node_is_replaced_and_the_run_ends_bit_identical(
    dataset: Path, run_dir: Path, tmp_path: Path, nodes: Cluster, start: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    workers = [nodes.add_node(num_cpus=1) for _ in range(3)]
    process = start(dataset, run)
    wait_for_images(process, run, 800)
    busy = [node for node in workers if runs(node, "RayTrainWorker")]
    assert len(busy) == 2
    kill_node(busy[0])
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "failed: " in output
    seen = [row["images_seen"] for row in rows_of_steps(run)]
    assert seen == [row["images_seen"] for row in rows_of_steps(run_dir)]
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
    wait_for_images(process, run, 400)
    assert set(saved(run).values()) == {2}
    kill_node(first)
    wait_for(process, lambda: 1 in saved(run).values())
    nodes.add_node(num_cpus=1)
    wait_for(process, lambda: set(saved(run).values()) == {2})
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "resumed with 1 instead of 2 workers" in output
    assert "resumed with 2 instead of 1 workers" in output
    rows = rows_of_steps(run)
    assert workers_of(rows) == [2, 1, 2]
    seen = [row["images_seen"] for row in rows]
    assert seen == sorted(set(seen))
