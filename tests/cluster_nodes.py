"""Nodes of a Ray cluster on one machine: each is a raylet with the processes that it started."""

from typing import Any

import psutil

from tests.jobs import kill_tree


def _raylet(node: Any) -> psutil.Process:
    (running,) = node.all_processes["raylet"]
    return psutil.Process(running.process.pid)


def runs(node: Any, name: str) -> bool:
    """Whether a process with this in its name runs on a node."""
    return any(name in " ".join(child.cmdline()) for child in _raylet(node).children())


def kill_node(node: Any) -> None:
    """Take a node away as a power cut does: its raylet, and all that ran under it."""
    kill_tree(_raylet(node).pid)
