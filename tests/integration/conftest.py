"""What integration tests share: a packed data set, a model trained on it, and S3 servers."""

import contextlib
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.ceph_server import INSTALL, CephServer, missing_programs
from tests.cluster_nodes import FAST_CHECKS
from tests.jobs import FADING, STARTED, TINY, flags, kill_tree, run_cli


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """Kill the commands that a test started and, because it failed, did not end."""
    before = len(STARTED)
    yield
    for process in STARTED[before:]:
        if process.poll() is None:
            kill_tree(process.pid)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic surfaces of 16 pixels, packed by `python -m cluster pack`."""
    folder = tmp_path_factory.mktemp("data")
    status, output = run_cli(["pack", "surfaces", str(folder), *flags(TINY)])
    assert status == 0, output
    return folder


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run directory, and the page that Prometheus would have read while it was made."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    words = flags(FADING | {"data.uri": dataset, "run.dir": folder})
    with _scraping("blemish_swd") as pages:
        # By default a worker hands its metrics on every ten seconds.
        status, output = run_cli(["train", *words], env={"RAY_metrics_report_interval_ms": "500"})
    assert status == 0, output
    return folder, pages[-1]


@pytest.fixture(scope="session")
def run_dir(trained: tuple[Path, str]) -> Path:
    """A run directory with a trained, calibrated model, made by `python -m cluster train`."""
    return trained[0]


@contextlib.contextmanager
def _scraping(wanted: str) -> Iterator[list[str]]:
    """Read the metrics page of a Ray in this process until it names a metric or the block ends."""
    pages, over = [""], threading.Event()

    def read() -> None:
        while wanted not in pages[-1] and not over.wait(0.5):
            # Ray comes and goes while the block runs, and its port opens later than it does.
            with contextlib.suppress(Exception):
                (node,) = ray.nodes()
                url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    pages.append(answer.read().decode())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield pages
    finally:
        over.set()
        thread.join()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose head has no room for a worker; tests add nodes with one CPU each."""
    for name, value in FAST_CHECKS.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    """A Ceph gateway with one empty bucket, started once; tests take `ceph` instead."""
    if missing := missing_programs():
        pytest.skip(f"{', '.join(missing)} not installed; run {INSTALL}")
    with CephServer(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture
def ceph(ceph_server: CephServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CephServer]:
    """The Ceph gateway, up and its bucket empty, with the environment leading to it."""
    for name, value in ceph_server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    ceph_server.start_gateway()
    ceph_server.empty()
    yield ceph_server
    ceph_server.start_gateway()
    ceph_server.empty()
