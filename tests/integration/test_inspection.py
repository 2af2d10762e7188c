"""The inspection command: every input exactly once in scores or failed, whatever happens."""

import io
import json
import random
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.inspection_files import read_failed, read_scores
from data.dataset import load_index
from data.shards import read_shard
from data.store import Store
from tests.jobs import TINY, flags, kill_tree, run_cli, start_cli


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
    assert "decode" in by_shard[first.path][0] or "image" in by_shard[first.path][0]
    assert 0 < len(by_shard[second.path]) < second.samples
    assert len(by_shard[third.path]) == third.samples
    scored = set(read_scores(Store(str(out)))["key"])
    assert len(scored) + len(failed) == load_index(Store(str(dataset))).num_samples("test")
    assert scored < _keys(dataset)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["images"], manifest["failed"]) == (len(scored), len(failed))
    assert len(manifest["damaged_shards"]) == 3


def test_job_killed_at_a_random_moment_loses_and_repeats_nothing(
    dataset: Path, run_dir: Path, tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    slow = {"search.steps": 5}
    status, output = run_cli(["inspect", *_words(dataset, run_dir, straight, slow)])
    assert status == 0, output

    process = start_cli(["inspect", *_words(dataset, run_dir, killed, slow)])
    deadline = time.monotonic() + 120
    while not list(killed.glob("maps/*/*.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.SystemRandom().uniform(0, 0.5))
    kill_tree(process.pid)
    process.communicate()
    finished_before = set(killed.glob("scores/*.parquet"))

    status, output = run_cli(["inspect", *_words(dataset, run_dir, killed, slow)])
    assert status == 0, output
    table = read_scores(Store(str(killed)))
    assert set(table["key"]) == _keys(dataset)
    assert table["key"].is_unique
    assert finished_before <= set(killed.glob("scores/*.parquet"))
    reference = read_scores(Store(str(straight)))
    np.testing.assert_array_equal(table["score"], reference["score"])


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


def _keys(dataset: Path) -> set[str]:
    index = load_index(Store(str(dataset)))
    shards = [(dataset / s.path).read_bytes() for s in index.shards_of("test")]
    return {sample.key for shard in shards for sample in read_shard(shard).samples}


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
