"""Inspection while its store is away and actors or nodes die: every input once, nothing else."""

import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from ray.cluster_utils import Cluster

from cluster.inspection_files import read_failed, read_scores
from data.sample import encode_png
from data.store import Store
from data.synthetic import machined_surface
from tests.ceph_server import BUCKET, CephServer
from tests.cluster_nodes import kill_node, runs
from tests.jobs import TINY, flags, kill_tree, run_cli, start_cli

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

NUM_IMAGES = 96
OUTAGE_S = 60
# Each unit takes seconds, so that what happens falls into the midst of a job.
SLOW: dict[str, object] = {"search.steps": 400, "inspect.unit_images": 8}


@pytest.fixture(scope="module")
def slow_run(dataset: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose model is calibrated with a search that takes long."""
    copy = tmp_path_factory.mktemp("slow") / "run"
    Store(str(copy)).write_bytes("model/.keep", b"")
    for path in Store(str(run_dir)).list("model/"):
        Store(str(copy)).write_bytes(path, Store(str(run_dir)).read_bytes(path))
    words = {"data.uri": dataset, "run.dir": copy, "inspect.split": "validation"}
    status, output = run_cli(["inspect", *flags(TINY | SLOW | words)])
    assert status == 0, output
    return copy


def _write_images(store: Store) -> None:
    for number in range(NUM_IMAGES):
        image, _ = machined_surface(number, 16, 16, defect=number % 4 == 0)
        store.write_bytes(f"day-1/part-{number:03d}.png", encode_png(image))
    store.write_bytes("day-1/torn.png", b"\x89PNG")


def _words(run: Path, source: str, out: str) -> list[str]:
    places = {"run.dir": run, "inspect.source": source, "inspect.dir": out}
    return ["inspect", *flags(TINY | SLOW | places)]


def _wait_for_units(out: Store, number: int) -> None:
    deadline = time.monotonic() + 300
    while len(out.list("scores/")) < number:
        assert time.monotonic() < deadline, "no unit was finished"
        time.sleep(0.2)


def _check_every_input_once(source: Store, out: Store, scored: pd.DataFrame | None = None) -> None:
    table = read_scores(out)
    ended = [*table["source"], *(row["source"] for row in read_failed(out))]
    assert sorted(ended) == sorted(source.url(name) for name in source.list())
    assert len(table) == NUM_IMAGES
    if scored is not None:
        pd.testing.assert_frame_equal(table, scored, check_exact=True)


def test_store_down_for_a_minute_only_delays_a_job(slow_run: Path, ceph: CephServer) -> None:
    source, out = (Store(f"s3://{BUCKET}/{name}") for name in ("images", "out"))
    _write_images(source)
    process = start_cli(_words(slow_run, source.uri, out.uri))
    try:
        _wait_for_units(out, 2)
        ceph.stop_gateway()
        time.sleep(OUTAGE_S)
        ceph.start_gateway()
        output, _ = process.communicate(timeout=500)
    finally:
        kill_tree(process.pid)
    assert process.returncode == 0, output
    assert f"{NUM_IMAGES} images scored, 1 inputs failed" in output
    _check_every_input_once(source, out)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The images in a folder."""
    store = Store(str(tmp_path_factory.mktemp("images")))
    _write_images(store)
    return store


@pytest.fixture(scope="module")
def undisturbed(
    slow_run: Path, images: Store, tmp_path_factory: pytest.TempPathFactory
) -> pd.DataFrame:
    """Their scores by a job that nothing happened to."""
    out = Store(str(tmp_path_factory.mktemp("straight")))
    status, output = run_cli(_words(slow_run, images.uri, out.uri))
    assert status == 0, output
    return read_scores(out)


def test_killed_actors_are_replaced_and_no_input_is_lost(
    slow_run: Path, images: Store, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    out = Store(str(tmp_path))
    process = start_cli(_words(slow_run, images.uri, out.uri))
    try:
        for finished in (1, 4):
            _wait_for_units(out, finished)
            _kill_an_actor(process.pid)
        output, _ = process.communicate(timeout=500)
    finally:
        kill_tree(process.pid)
    assert process.returncode == 0, output
    _check_every_input_once(images, out, undisturbed)


@pytest.mark.parametrize("num_hosts", [3, 2], ids=["another has room", "none has room"])
def test_killed_node_is_replaced_and_no_input_is_lost(
    num_hosts: int,
    slow_run: Path,
    images: Store,
    undisturbed: pd.DataFrame,
    nodes: Cluster,
    tmp_path: Path,
) -> None:
    out = Store(str(tmp_path))
    hosts = [nodes.add_node(num_cpus=1) for _ in range(num_hosts)]
    words = _words(slow_run, images.uri, out.uri)
    process = start_cli(words, env={"RAY_ADDRESS": nodes.address})
    try:
        _wait_for_units(out, 1)
        # One may be done with its first unit before the other begins.
        for _ in range(600):
            busy = [host for host in hosts if runs(host, "Inspector.inspect")]
            if len(busy) == 2:
                break
            time.sleep(0.1)
        assert len(busy) == 2
        kill_node(busy[0])
        output, _ = process.communicate(timeout=500)
    finally:
        kill_tree(process.pid)
    assert process.returncode == 0, output
    _check_every_input_once(images, out, undisturbed)


def _kill_an_actor(driver: int) -> None:
    """Kill -9 one process that inspects."""
    for process in psutil.Process(driver).children(recursive=True):
        if "Inspector.inspect" in " ".join(process.cmdline()):
            process.kill()
            return
    raise AssertionError("nobody inspects")
