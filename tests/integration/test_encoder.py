"""A run with an encoder: trained by a worker of the cluster, used by the inspection."""

from pathlib import Path

import pytest

from cluster.inspection_files import read_scores
from cluster.model_store import load_card, load_model
from data.store import Store
from tests.jobs import TINY, flags, run_cli

ENCODER = {"encoder.kimg": 0.32, "encoder.batch": 16, "search.encoder": True, "search.steps": 2}


@pytest.mark.slow
def test_train_adds_the_encoder_and_inspect_starts_from_it(dataset: Path, tmp_path: Path) -> None:
    words = flags(TINY | ENCODER | {"data.uri": dataset, "run.dir": tmp_path})
    status, output = run_cli(["train", *words])
    assert status == 0, output
    run = Store(str(tmp_path))
    assert load_model(run).encoder is not None
    card = load_card(run)
    assert card.calibration is not None
    assert card.calibration.search.encoder
    status, output = run_cli(["inspect", "--run.dir", str(tmp_path)])
    assert status == 0, output
    assert set(read_scores(run.child("inspection/test"))["steps"]) == {2}
    # Another call has nothing left to train.
    status, output = run_cli(["train", *words])
    assert status == 0, output
    assert load_card(run).encoder_sha256 == card.encoder_sha256
