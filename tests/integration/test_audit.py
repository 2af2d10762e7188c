"""The audit of a run: all training images once, restartable, in the files that are promised."""

import json
from pathlib import Path

import pandas as pd
import pytest

from data.dataset import load_index
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.store import Store
from tests.jobs import TINY, flags, run_cli


@pytest.mark.slow
def test_audit_ranks_every_training_image_and_does_nothing_twice(
    dataset: Path, run_dir: Path
) -> None:
    # Settings of the search come from the run; pictures are made of the few that are shown.
    words = flags({"run.dir": run_dir, "audit.num_shown": 8, "inspect.num_maps": 2})
    status, output = run_cli(["audit", *words])
    assert status == 0, output
    index = load_index(Store(str(dataset)))
    suspects = pd.read_csv(run_dir / "audit/suspects.csv")
    assert len(suspects) == suspects["key"].nunique() == index.num_samples("train-normal")
    assert suspects["score"].is_monotonic_decreasing
    summary = json.loads((run_dir / "audit/audit.json").read_text())
    assert summary["num_known_abnormal"] == index.num_samples("train-abnormal") + 40
    assert summary["num_validation_normal"] == 40
    # The built-in set mixes defects in on purpose, and tells.
    assert summary["true_contamination"] == 0.2
    assert f"precision at c of the ranking: {summary['precision_at_c']:.3f}" in output
    page = (run_dir / "audit/audit.html").read_text()
    assert page.count("<article") == 8

    written = {path: path.stat().st_mtime_ns for path in run_dir.glob("audit/*/scores/*")}
    splits = ("validation", "train-normal", "train-abnormal")
    assert len(written) == sum(len(index.shards_of(split)) for split in splits)
    (run_dir / "audit/audit.html").unlink()
    status, output = run_cli(["audit", *words])
    assert status == 0, output
    assert (run_dir / "audit/audit.html").read_text() == page
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.slow
def test_audit_of_tiles_counts_tiles(tmp_path: Path) -> None:
    data, run = Store(str(tmp_path / "data")), tmp_path / "run"
    counts = {"num_train_normal": 16, "num_train_abnormal": 8, "num_validation": 20, "num_test": 2}
    items = synthetic_surfaces(resolution=32, seed=1, **counts)
    pack(items, data, resolution=16, name="metal", seed=0, mode="tiles", shard_samples=64)
    alone = {"cluster.num_workers": 1, "cluster.num_actors": 1, "search.steps": 1}
    settings = TINY | alone | {"data.uri": data.uri, "run.dir": run}
    status, output = run_cli(["train", *flags(settings)])
    assert status == 0, output
    status, output = run_cli(["audit", *flags({"run.dir": run, "audit.num_shown": 3})])
    assert status == 0, output
    index = load_index(data)
    suspects = pd.read_csv(run / "audit/suspects.csv")
    # Twenty images called normal; of the four with a defect only the tiles that show it are taken.
    assert 16 * 4 < len(suspects) == index.num_samples("train-normal") < 20 * 4
    assert len(suspects) == suspects["key"].nunique() > suspects["group"].nunique() == 20
    summary = json.loads((run / "audit/audit.json").read_text())
    # For the calibration whole validation images count; here each of their tiles does.
    labels = index.labels["validation"]
    assert summary["num_validation_normal"] == labels["normal"] > 10 * 4
    known = index.num_samples("train-abnormal") + labels["abnormal"]
    assert summary["num_known_abnormal"] == known
    assert (run / "audit/audit.html").read_text().count("<article") == 3
