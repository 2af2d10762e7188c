"""What holds for every test: one thread per process, fixed seeds, GPU tests only with a GPU."""

import os

# Before torch and numpy are imported: the tests' many processes share few cores, and sums then
# have the same order on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import hypothesis
import numpy as np
import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Examples that were slow for once are no failure; a test that hangs ends after pytest's time.
hypothesis.settings.register_profile("blemish", deadline=None)
hypothesis.settings.load_profile("blemish")

# Tests start Ray themselves; a cluster of the person who runs them is none of their business.
for _name in [name for name in os.environ if name.startswith("RAY_")]:
    del os.environ[_name]


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test draw from the global generator
    torch.manual_seed(0)


_WITHOUT_CLUSTER = (
    "_s3.py",
    "test_ceph.py",
    "test_export.py",
    "test_tracking.py",
    "test_training_ranks.py",
)
"""Endings of integration tests' files that start no cluster and share nothing."""


class Scheduling(LoadScopeScheduling):
    """Keeps tests that start whole clusters and share what they train in one process.

    They run there one after the other; a second process runs the files of all others meanwhile.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        together = file.startswith("tests/integration/") and not file.endswith(_WITHOUT_CLUSTER)
        return "integration" if together else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
