"""A run whose discriminator judges patches, by the command line on a local Ray."""

from pathlib import Path

import pytest

from cluster.inspection_files import read_scores
from cluster.model_store import load_card
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.store import Store
from tests.jobs import PATCHES, flags, run_cli


@pytest.mark.slow
def test_a_run_on_patches_is_trained_calibrated_and_inspected(tmp_path: Path) -> None:
    data, run = tmp_path / "data", Store(str(tmp_path / "run"))
    counts = {"num_train_normal": 64, "num_train_abnormal": 16}
    samples = synthetic_surfaces(resolution=32, seed=1, num_validation=32, num_test=32, **counts)
    pack(samples, Store(str(data)), resolution=32, name="metal", seed=0, shard_samples=32)
    words = flags(PATCHES | {"data.uri": data, "run.dir": run.uri})
    for command in (["train", *words], ["inspect", "--run.dir", run.uri]):
        status, output = run_cli(command)
        assert status == 0, output
    calibration = load_card(run).calibration
    assert calibration is not None
    assert calibration.fusion is not None
    assert {f"logit-{head}/window" for head in range(4)} <= set(calibration.fusion.names)
    table = read_scores(run.child("inspection/test"))
    assert set(table["steps"]) == {0}
    assert table["pictures"].any()
