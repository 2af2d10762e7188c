"""The inspection command: every input exactly once in scores or failed, whatever happens."""

import io
import json
import random
import re
import shutil
import tarfile
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from cluster.inspection_files import read_failed, read_scores, unit_name
from data.dataset import load_index
from data.shards import read_shard
from data.store import Store
from tests.jobs import TINY, flags, kill_tree, run_cli, start_cli

# Each shard takes long enough for a kill to fall into the midst of a job.
SLOW: dict[str, object] = {"search.steps": 200}


@pytest.fixture
def damaged(dataset: Path, tmp_path: Path) -> Path:
    """The data set with one corrupt image, one truncated shard and one missing shard in test."""
    copy = tmp_path / "damaged"
    shutil.copytree(dataset, copy)
    first, second, third, *_ = load_index(Store(str(copy))).shards_of("test")
    _corrupt_image(copy / first.path)
    content = (copy / second.path).read_bytes()
    (copy / second.path).write_bytes(content[: len(content) * 6 // 10])
    (copy / third.path).unlink()
    return copy


@pytest.fixture
def slow_run(dataset: Path, run_dir: Path, tmp_path: Path) -> Path:
    """A run directory whose model is calibrated with a search that takes long."""
    copy = tmp_path / "run"
    shutil.copytree(run_dir / "model", copy / "model")
    more = SLOW | {"inspect.split": "validation"}
    status, output = run_cli(["inspect", *_words(dataset, copy, tmp_path / "unused", more)])
    assert status == 0, output
    return copy


def test_damaged_inputs_end_in_failed_with_the_reason(
    dataset: Path, damaged: Path, run_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, output = run_cli(["inspect", *_words(damaged, run_dir, out)])
    assert status == 0, output
    first, second, third, *_ = load_index(Store(str(damaged))).shards_of("test")
    failed = read_failed(Store(str(out)))
    by_shard = {
        s.path: [r["reason"] for r in failed if r["source"] == s.path]
        for s in (first, second, third)
    }
    assert len(by_shard[first.path]) == 1
    assert "not a readable image" in by_shard[first.path][0]
    assert 0 < len(by_shard[second.path]) < second.samples
    assert len(by_shard[third.path]) == third.samples
    _assert_every_input_once(dataset, out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["images"] == len(read_scores(Store(str(out))))
    assert manifest["failed"] == len(failed)
    assert len(manifest["damaged_shards"]) == 3


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_job_killed_at_a_random_moment_loses_and_repeats_nothing(
    dataset: Path, damaged: Path, slow_run: Path, tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    status, output = run_cli(["inspect", *_words(damaged, slow_run, straight, SLOW)])
    assert status == 0, output

    words = ["inspect", *_words(damaged, slow_run, killed, SLOW)]
    before = _kill_midway(words, killed, num_units=len(_finished(straight)))
    status, output = run_cli(words)
    assert status == 0, output
    assert before.items() <= _finished(killed).items(), "a finished unit was done again"
    _assert_every_input_once(dataset, killed)
    once, resumed = Store(str(straight)), Store(str(killed))
    pd.testing.assert_frame_equal(read_scores(resumed), read_scores(once), check_exact=True)
    assert read_failed(resumed) == read_failed(once)


def test_other_settings_are_refused_in_the_same_directory(
    dataset: Path, run_dir: Path, tmp_path: Path
) -> None:
    status, output = run_cli(["inspect", *_words(dataset, run_dir, tmp_path, {"search.steps": 6})])
    assert status == 2
    assert "search.steps=6 is not the 5 the model" in output


def _words(
    dataset: Path, run_dir: Path, out: Path, more: dict[str, object] | None = None
) -> list[str]:
    places = {"data.uri": dataset, "run.dir": run_dir, "inspect.dir": out}
    return flags(TINY | places | (more or {}))


def _finished(out: Path) -> dict[str, int]:
    """Finished units and when each was written, in nanoseconds."""
    return {path.stem: path.stat().st_mtime_ns for path in out.glob("scores/*.parquet")}


def _kill_midway(words: list[str], out: Path, *, num_units: int) -> dict[str, int]:
    """Kill a job at a random moment between its first and its last unit; returns the finished."""
    for _ in range(4):
        shutil.rmtree(out, ignore_errors=True)
        stop = random.SystemRandom().randrange(1, num_units)
        process = start_cli(words)
        deadline = time.monotonic() + 120
        while len(_finished(out)) < stop and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.SystemRandom().uniform(0, 0.5))
        kill_tree(process.pid)
        process.communicate()
        finished = _finished(out)
        print(f"killed after {stop} units, {len(finished)} of {num_units} done")
        if 0 < len(finished) < num_units and not (out / "manifest.json").exists():
            return finished
    raise AssertionError("no kill fell between the first and the last unit")


def _assert_every_input_once(dataset: Path, out: Path) -> None:
    """Each packed sample is scored or failed; one whose key is lost fails as `shard#ordinal`."""
    table, failed = read_scores(Store(str(out))), read_failed(Store(str(out)))
    keys = [*table["key"], *(row["key"] for row in failed)]
    assert len(keys) == len(set(keys))
    for shard in load_index(Store(str(dataset))).shards_of("test"):
        packed = {sample.key for sample in read_shard((dataset / shard.path).read_bytes()).samples}
        scored = set(table.loc[table["unit"] == unit_name(shard), "key"])
        told = {row["key"] for row in failed if row["source"] == shard.path}
        lost = {key for key in told if key.startswith(f"{shard.path}#")}
        assert scored | (told - lost) <= packed
        assert len(scored) + len(told) == shard.samples


def _corrupt_image(shard: Path) -> None:
    """Overwrite the middle of the first image in a tar file, in place."""
    content = bytearray(shard.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(".png"))
    middle = member.offset_data + member.size // 2
    content[middle : middle + 8] = b"\xff" * 8
    shard.write_bytes(bytes(content))
    with pytest.raises(Exception, match=r".+"):  # the fixture itself must do damage
        Image.open(
            io.BytesIO(content[member.offset_data : member.offset_data + member.size])
        ).load()


def test_dry_run_counts_and_estimates_and_inspects_nothing(
    dataset: Path, run_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = {"inspect.price_per_hour": 3.5}
    status, output = run_cli(["inspect", "--dry-run", *_words(dataset, run_dir, out, more)])
    assert status == 0, output
    index = load_index(Store(str(dataset)))
    expected = sum(shard.samples for shard in index.shards_of("test"))
    for row in (f"images to inspect +│ +{expected:,}", "images/s", "actor hours", "price"):
        assert re.search(row, output), row
    assert not out.exists()


def test_dry_run_of_what_cannot_be_read_is_one_clear_message(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "torn.png").write_bytes(b"\x89PNG")
    places = {"run.dir": run_dir, "inspect.source": tmp_path / "in", "inspect.dir": tmp_path / "o"}
    status, output = run_cli(["inspect", "--dry-run", *flags(TINY | places)])
    assert status == 2, output
    assert "nothing in the first unit can be inspected" in output
    assert "Traceback" not in output
