"""The training command: what it leaves behind, and that a killed run ends like a straight one."""

import json
import time
from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.train_loop import schedule_of
from gan.schedule import phase_at
from tests.jobs import FADING, flags, kill_tree, run_cli, start_cli


def test_run_directory_holds_what_the_contract_says(run_dir: Path) -> None:
    card = json.loads((run_dir / "model/model.json").read_text())
    assert (run_dir / "model/weights.safetensors").is_file()
    assert card["calibration"]["threshold"] > 0
    assert load_config(str(run_dir / "config.yaml")).run.dir == str(run_dir)
    rows = [json.loads(line) for line in _lines(run_dir)]
    assert rows[-1]["train/resolution"] == 16
    told = {"train/loss_d", "train/logit_abnormal", "data/wait_s"}
    assert all(told <= row.keys() for row in rows)
    assert any("train/r1" in row for row in rows)
    assert list((run_dir / "checkpoints").glob("checkpoint_*/state.pt"))


def test_finished_run_is_not_trained_again(dataset: Path, run_dir: Path) -> None:
    before = (run_dir / "model/weights.safetensors").read_bytes()
    status, output = run_cli(["train", *_words(dataset, run_dir)])
    assert status == 0, output
    assert (run_dir / "model/weights.safetensors").read_bytes() == before


def test_other_settings_are_refused_in_the_same_run_directory(dataset: Path, run_dir: Path) -> None:
    status, output = run_cli(["train", *_words(dataset, run_dir), "--objective.gamma", "0.5"])
    assert status == 2
    assert "objective.gamma=0.7, not 0.5; choose another run.dir" in output


@pytest.mark.timeout(600)
def test_run_killed_in_a_fade_ends_bit_identical(
    dataset: Path, run_dir: Path, tmp_path: Path
) -> None:
    straight, killed = run_dir, tmp_path / "killed"
    process = start_cli(["train", *_words(dataset, killed)])
    images_seen = _wait_for_checkpoint_in_last_fade(killed)
    kill_tree(process.pid)
    process.communicate()
    assert not (killed / "model/model.json").exists(), "the run was over before it was killed"
    before = [line for line in _lines(killed) if json.loads(line)["images_seen"] <= images_seen]
    assert before
    phase = phase_at(schedule_of(load_config(str(killed / "config.yaml"))), images_seen)
    assert phase is not None
    assert phase.fading
    assert 0 < phase.fade(images_seen) < 1

    status, output = run_cli(["train", *_words(dataset, killed)])
    assert status == 0, output
    weights = "model/weights.safetensors"
    assert (killed / weights).read_bytes() == (straight / weights).read_bytes()
    assert _metrics(killed) == _metrics(straight)
    # Training is deterministic, so starting over would give all of that too, at another time.
    assert _lines(killed)[: len(before)] == before


def _words(dataset: Path, run_dir: Path) -> list[str]:
    return flags(FADING | {"data.uri": dataset, "run.dir": run_dir})


def _wait_for_checkpoint_in_last_fade(run_dir: Path, timeout_s: float = 180) -> int:
    """Images seen at the checkpoint that a run killed now resumes from."""
    schedule = schedule_of(load_config(None, FADING))
    last_fade = next(p for p in schedule if p.resolution == 16 and p.fading)
    folder = run_dir / "checkpoints"
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        # The last file of a checkpoint, by which it counts as whole.
        if whole := sorted(folder.glob("checkpoint_*/checkpoint.json")):
            images_seen = json.loads(whole[-1].read_text())["images_seen"]
            if last_fade.start < images_seen < last_fade.end:
                return int(images_seen)
        time.sleep(0.05)
    raise AssertionError("no checkpoint in the last fade")


def _lines(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text().splitlines()


def _metrics(run_dir: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    clock = {"time_ms", "train/images_per_s", "data/wait_s", "data/wait_share"}
    rows = [json.loads(line) for line in _lines(run_dir)]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]
