"""A Ray cluster for one command: the one we run on, or one started in this process."""

import contextlib
import logging
import os
import signal
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import ray

from cluster.cluster_config import Cluster
from cluster.errors import UserError

_TIMEOUT_S = 5


@contextlib.contextmanager
def ray_session(min_cpus: float, *, state_api: bool = False) -> Iterator[None]:
    """Connect to Ray for as long as the block lasts.

    Joins the cluster named by RAY_ADDRESS (set inside `ray job submit` and on Kubernetes), or a
    session this process has already opened, or starts Ray in process. What Ray's own processes log
    stays in their log files: people see progress, notes on failures survived, and errors.

    Args:
        min_cpus: CPUs the command's workers reserve together. A cluster in process offers at least
            as many, even if workers then share cores.
        state_api: Whether a cluster in process serves Ray's state API. Ray Train needs it to give
            back what a trial held that was stopped from outside; it costs a process.

    Raises:
        UserError: If RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _connect(address)
    else:
        cpus = max(os.cpu_count() or 1, int(-(-min_cpus // 1)))
        # Nobody announces the end of this machine; the watcher would cost each run a process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # "local" always starts anew: a file left by an older cluster would otherwise be joined.
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=state_api,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
        _tighten_token()
    if in_main_thread:
        # Ray's own handler would leave at once; as Ctrl-C it ends what was begun, such as a run.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        ray.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def living_nodes() -> list[dict[str, float]]:
    """What each living node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room_on_nodes(cluster: Cluster) -> list[int]:
    """How many workers, or actors, each living node has room for: none is split between nodes."""
    wanted = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    return [
        # Fractions of a CPU or GPU are no exact floats.
        min(int(have.get(name, 0.0) / each + 1e-6) for name, each in wanted.items() if each)
        for have in living_nodes()
    ]


def _connect(address: str) -> None:
    _check_port(address)
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"RAY_ADDRESS={address} does not answer: {error}; "
            "start it (`ray start --head`) or unset RAY_ADDRESS"
        ) from None


def _tighten_token() -> None:
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)


def _check_port(address: str) -> None:
    """Fail within seconds where Ray itself would wait for minutes."""
    try:
        place = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
        if not place.hostname or not place.port:
            return
        socket.create_connection((place.hostname, place.port), timeout=_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS={address} does not answer ({error}); "
            "start it (`ray start --head`) or unset RAY_ADDRESS"
        ) from None
