"""The same commands with data set, run and inspection in a bucket."""

from pathlib import Path

import pytest

from tests.jobs import TINY, flags, run_cli
from tests.s3_server import BUCKET, moto_s3


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whole_chain_in_a_bucket(tmp_path: Path) -> None:
    root = f"s3://{BUCKET}/factory"
    places = {
        "data.uri": f"{root}/data",
        "run.dir": f"{root}/run",
        "tracking.uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    with moto_s3() as env:
        for words in (
            ["pack", "surfaces", f"{root}/data", *flags(TINY)],
            ["train", *flags(TINY | places)],
            ["inspect", "--run.dir", f"{root}/run"],
            ["evaluate", "--run.dir", f"{root}/run"],
            ["report", "--run.dir", f"{root}/run"],
        ):
            status, output = run_cli(words, env=env)
            assert status == 0, output
        status, output = run_cli(["inspect", "--run.dir", f"{root}/other"], env=env)
        assert status == 2
        assert "error: " in output


def test_remote_run_without_a_tracking_server_says_what_to_give(dataset: Path) -> None:
    words = flags(TINY | {"data.uri": dataset, "run.dir": f"s3://{BUCKET}/run"})
    with moto_s3() as env:
        status, output = run_cli(["train", *words], env=env)
    assert status == 2
    assert "give tracking.uri, such as http://mlflow:5000" in output
