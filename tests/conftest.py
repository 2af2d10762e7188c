"""What holds for every test: one thread per process, fixed seeds, GPU tests only with a GPU."""

import os

# Before torch and numpy are imported: the tests' many processes share few cores, and sums then
# have the same order on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test draw from the global generator
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # These start whole clusters and share what they train, so they stay in one process, one
        # after the other; a second process runs all others meanwhile.
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group("integration"))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
