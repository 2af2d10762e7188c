"""A small packed data set and a model trained on it with the real commands, made once."""

from pathlib import Path

import pytest

from tests.jobs import TINY, flags, run_cli


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic surfaces of 16 pixels, packed by `python -m cluster pack`."""
    folder = tmp_path_factory.mktemp("data")
    status, output = run_cli(["pack", "surfaces", str(folder), *flags(TINY)])
    assert status == 0, output
    return folder


@pytest.fixture(scope="session")
def run_dir(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a trained, calibrated model, made by `python -m cluster train`."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    words = flags(TINY | {"data.uri": dataset, "run.dir": folder})
    status, output = run_cli(["train", *words])
    assert status == 0, output
    return folder
