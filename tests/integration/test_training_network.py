"""What happens to a real training run when the network between its hosts is cut.

Each host is a network namespace with a raylet of its own, joined to this machine by a bridge; a cut
takes a host's cable out of the bridge, so that packets vanish and nobody is told.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ceph_server import INSTALL
from tests.cluster_nodes import FAST_CHECKS
from tests.jobs import FADING, flags, kill_tree, start_cli
from tests.ports import free_port
from tests.training_runs import TOTAL, rows_of_steps, saved, wait_for_images, workers_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

BRIDGE, INSIDE = "blemish", "eth0"
NETWORK = "10.211.7"
HEAD = f"{NETWORK}.1"
RAY = str(Path(sys.executable).with_name("ray"))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _may_make_namespaces() -> bool:
    """Whether this process may; takes nothing but trying."""
    if not shutil.which("ip"):
        return False
    try:
        _ip("netns", "add", "blemish-try")
        _ip("netns", "del", "blemish-try")
    except subprocess.CalledProcessError:
        return False
    return True


class Hosts:
    """Hosts on one network, each with a raylet of one CPU; the head, without any, is this machine.

    Args:
        folder: for Ray's files.
        count: number of hosts.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.names = [f"{BRIDGE}-{number}" for number in range(count)]
        self._folder = folder
        self._raylets: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def start(self) -> None:
        """Lay the cables, start the head, then a raylet on each host."""
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{HEAD}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(self.names):
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", INSIDE, "netns", name)
            _ip("link", "set", name, "master", BRIDGE, "up")
            _ip("-n", name, "addr", "add", f"{self._ip_of(number)}/24", "dev", INSIDE)
            _ip("-n", name, "link", "set", INSIDE, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        port = free_port(HEAD)
        self.address = f"{HEAD}:{port}"
        head = ["--head", f"--node-ip-address={HEAD}", f"--port={port}", "--num-cpus=0"]
        self._raylet([], [*head, "--include-dashboard=false", f"--temp-dir={self._folder}"])
        _wait_until(lambda: _listens(HEAD, port), "the head does not listen")
        for number, name in enumerate(self.names):
            words = [f"--address={self.address}", f"--node-ip-address={self._ip_of(number)}"]
            self._raylet(["ip", "netns", "exec", name], [*words, "--num-cpus=1"])
            # One after the other: they share a folder, where both would take the same names.
            _wait_until(lambda cpus=number + 1: f"/{cpus}.0 CPU" in self._status(), f"no {name}")

    def cut(self, number: int) -> None:
        """Take a host's cable out."""
        _ip("link", "set", self.names[number], "down")

    def stop(self) -> None:
        """End everything that was started."""
        for raylet in self._raylets:
            kill_tree(raylet.pid)
        links = [["link", "del", name] for name in (*self.names, BRIDGE)]
        for words in (*links, *(["netns", "del", name] for name in self.names)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*words)

    def _ip_of(self, number: int) -> str:
        return f"{NETWORK}.{number + 2}"

    def _status(self) -> str:
        words = [RAY, "status", f"--address={self.address}"]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def _raylet(self, inside: list[str], words: list[str]) -> None:
        # All hosts have this machine's name, by which gloo would look for the way to others.
        env = os.environ | FAST_CHECKS | {"GLOO_SOCKET_IFNAME": INSIDE}
        log = (self._folder / f"raylet-{len(self._raylets)}.log").open("wb")
        command = [*inside, RAY, "start", "--block", *words]
        with log:
            raylet = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        self._raylets.append(raylet)


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _wait_until(condition: Callable[[], bool], complaint: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.5)


@pytest.fixture
def hosts(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hosts]:
    """Two hosts, joined with this machine; only this machine can reach them."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    if not _may_make_namespaces():
        pytest.skip(f"no right to make network namespaces (be root), or no `ip`: run {INSTALL}")
    found = Hosts(tmp_path_factory.mktemp("ray"), 2)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def test_run_goes_on_without_a_host_whose_network_is_cut(
    dataset: Path, tmp_path: Path, hosts: Hosts
) -> None:
    run = tmp_path / "run"
    words = FADING | {"data.uri": dataset, "run.dir": run, "cluster.min_workers": 1}
    env = {"RAY_ADDRESS": hosts.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
    process = start_cli(["train", *flags(words)], env=env)
    try:
        wait_for_images(process, run, 400)
        assert set(saved(run).values()) == {2}
        hosts.cut(1)
        output, _ = process.communicate(timeout=600)
    finally:
        kill_tree(process.pid)
    assert process.returncode == 0, output
    assert "resumed with 1 instead of 2 workers" in output
    rows = rows_of_steps(run)
    assert workers_of(rows) == [2, 1]
    seen = [row["images_seen"] for row in rows]
    assert seen == sorted(set(seen))
    assert seen[-1] == TOTAL
