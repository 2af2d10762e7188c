"""`ray job submit --working-dir . -- python -m cluster train` against a real head node."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import ROOT, TINY, flags, kill_tree
from tests.ports import free_ports

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node on loopback with token authentication; yields the environment of its clients."""
    gcs, dashboard = free_ports(2)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    start = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=4"]
    start += [f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    # A session folder of its own, with a short name: Unix sockets allow 107 bytes.
    temporary = Path("/tmp") / f"blemish-{gcs}"
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    process = subprocess.Popen(
        [*start, f"--temp-dir={temporary}"], env=env, stdout=log, stderr=log, start_new_session=True
    )
    env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_up(env)
        yield env
    finally:
        kill_tree(process.pid)
        process.wait(timeout=60)
        # What a process of Ray writes that was born while the others were killed.
        shutil.rmtree(temporary, ignore_errors=True)
        log.close()


def _wait_until_up(env: dict[str, str]) -> None:
    for _ in range(30):
        try:
            listed = subprocess.run(
                [RAY, "job", "list"], env=env, capture_output=True, text=True, timeout=60
            )
        except subprocess.TimeoutExpired as error:
            told = str(error)
            continue
        if listed.returncode == 0:
            return
        told = f"{listed.stdout}{listed.stderr}"
    raise AssertionError(f"the head node does not answer: {told}")


def _submit(env: dict[str, str], words: list[str]) -> subprocess.CompletedProcess[str]:
    entrypoint = ["python", "-m", "cluster", *words]
    return subprocess.run(
        [RAY, "job", "submit", "--working-dir", ".", "--", *entrypoint],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_training_job_is_submitted_and_leaves_a_model(
    head: dict[str, str], dataset: Path, tmp_path: Path
) -> None:
    run_dir, config = tmp_path / "run", tmp_path / "run.yaml"
    config.write_text(f"run: {{dir: {run_dir}}}\ndata: {{uri: {dataset}}}\n")
    done = _submit(head, ["train", "--config", str(config), *flags(TINY)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    card = json.loads((run_dir / "model/model.json").read_text())
    assert card["calibration"]["normal_scores"]


def test_mistake_in_a_submitted_job_is_told_and_fails_the_submission(
    head: dict[str, str], dataset: Path, tmp_path: Path
) -> None:
    done = _submit(head, ["train", "--objective.gamma", "0"])
    assert done.returncode != 0
    assert "objective.gamma=0: input should be greater than 0" in done.stdout + done.stderr
