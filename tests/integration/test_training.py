"""The training command: what it leaves behind, and that a killed run ends like a straight one."""

import itertools
import json
import re
import time
from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.metrics import meaning
from cluster.train_loop import schedule_of
from gan.schedule import phase_at
from tests.jobs import FADING, flags, kill_tree, run_cli, start_cli


def test_run_directory_holds_what_the_contract_says(run_dir: Path) -> None:
    card = json.loads((run_dir / "model/model.json").read_text())
    assert (run_dir / "model/weights.safetensors").is_file()
    assert card["calibration"]["thresholds"]["false_positive_rate"]["high"] > 0
    assert load_config(str(run_dir / "config.yaml")).run.dir == str(run_dir)
    assert list((run_dir / "checkpoints").glob("checkpoint_*/state.pt"))


def test_rows_tell_how_training_goes(run_dir: Path) -> None:
    rows = [json.loads(line) for line in _lines(run_dir)]
    steps = [row for row in rows if "train/loss_d" in row]
    assert steps[-1]["train/resolution"] == 16
    assert any("train/r1" in row for row in steps)
    told = {"train/logit_abnormal", "data/wait_s", "data/lost_images", "train/memory_gib"}
    for row in steps:
        assert told <= row.keys()
        assert row["ranks/wait_share_min"] <= row["ranks/wait_share_max"]
        assert row["ranks/memory_gib_max"] >= 0.99 * row["train/memory_gib"] > 0.1
    names = {name for row in rows for name in row} - {"images_seen", "time_ms"}
    assert [name for name in names if not meaning(name)] == []


def test_quality_is_measured_at_each_checkpoint_and_stage_end(run_dir: Path) -> None:
    rows = [json.loads(line) for line in _lines(run_dir)]
    measured = {row["images_seen"]: row for row in rows if "train/swd" in row}
    schedule = schedule_of(load_config(None, FADING))
    ends = {phase.stage: phase.end for phase in schedule}
    assert list(measured) == sorted({*ends.values(), *range(400, ends[2], 400)})
    for stage, end in ends.items():
        assert f"train/swd_{4 << stage}" in measured[end]
        assert 0 <= measured[end]["train/validation_auroc"] <= 1
    final = [row["train/best_auroc"] for row in measured.values() if "train/best_auroc" in row]
    aurocs = [row["train/validation_auroc"] for row in list(measured.values())[-len(final) :]]
    assert final == list(itertools.accumulate(aurocs, max))
    (card,) = run_dir.glob("best/*/model.json")
    best = json.loads(card.read_text())
    assert best["validation_auroc"] == final[-1]
    last = json.loads((run_dir / "model/model.json").read_text())
    assert last["images_seen"] == ends[2]


def test_prometheus_can_read_the_metrics(trained: tuple[Path, str]) -> None:
    run_dir, page = trained
    lines = [line for line in page.splitlines() if line.startswith("ray_blemish_")]
    values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert values["ray_blemish_resolution"] in (4, 8, 16)
    assert values["ray_blemish_swd"] > 0
    assert all(f'run="{run_dir}"' in line for line in lines)


def test_dry_run_prints_the_plan_and_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    status, output = run_cli(["train", *_words(dataset, tmp_path / "run"), "--dry-run"])
    assert status == 0, output
    assert "expected time" in output
    rows = re.findall(r"│ +(\d+) │.* \d+\.\d+ \+ \d+\.\d+ M │", output)
    assert rows == ["4", "8", "16"]
    assert not (tmp_path / "run").exists()


def test_finished_run_is_not_trained_again(dataset: Path, run_dir: Path) -> None:
    before = (run_dir / "model/weights.safetensors").read_bytes()
    status, output = run_cli(["train", *_words(dataset, run_dir)])
    assert status == 0, output
    assert (run_dir / "model/weights.safetensors").read_bytes() == before


def test_other_settings_are_refused_in_the_same_run_directory(dataset: Path, run_dir: Path) -> None:
    status, output = run_cli(["train", *_words(dataset, run_dir), "--objective.gamma", "0.5"])
    assert status == 2
    assert "objective.gamma=0.7, not 0.5; choose another run.dir" in output


@pytest.mark.faults
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
    """Rows of metrics.jsonl without what depends on the clock and the machine."""
    clock = ("time_ms", "train/images_per_s", "train/memory_gib", "data/wait_", "ranks/")
    rows = [json.loads(line) for line in _lines(run_dir)]
    return [{n: value for n, value in row.items() if not n.startswith(clock)} for row in rows]
