"""What integration tests share: a packed data set, a model trained on it, and S3 servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ceph_server import INSTALL, CephServer, missing_programs
from tests.jobs import FADING, TINY, flags, run_cli


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic surfaces of 16 pixels, packed by `python -m cluster pack`."""
    folder = tmp_path_factory.mktemp("data")
    status, output = run_cli(["pack", "surfaces", str(folder), *flags(TINY)])
    assert status == 0, output
    return folder


@pytest.fixture(scope="session")
def run_dir(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a trained, calibrated model, made by `python -m cluster train`."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    words = flags(FADING | {"data.uri": dataset, "run.dir": folder})
    status, output = run_cli(["train", *words])
    assert status == 0, output
    return folder


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
