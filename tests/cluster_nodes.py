"""Nodes of a Ray cluster on one machine: each is a raylet with the processes that it started."""

from typing import Any

import psutil

from tests.jobs import kill_tree

FAST_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""Environment of nodes; by default one that is gone is given up after half a minute."""


def _raylet(node: Any) -> psutil.Process:
    (running,) = node.all_processes["raylet"]
    return psutil.Process(running.process.pid)


def runs(node: Any, name: str) -> bool:
    """Whether a process with this in its name runs on a node."""
    return any(name in " ".join(child.cmdline()) for child in _raylet(node).children())


def kill_node(node: Any) -> None:
    """Take a node away as a power cut does: its raylet, and all that ran under it."""
    kill_tree(_raylet(node).pid)
