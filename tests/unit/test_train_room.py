"""What is told where the workers of a run have no room in the cluster yet."""

from pathlib import Path

import pytest
import ray
from ray.train.torch import TorchConfig

from cluster.config import load_config
from cluster.train import _trainer, missing_room


@pytest.mark.parametrize(
    ("have", "told"),
    [
        ({"CPU": 8.0, "GPU": 2.0}, ""),
        ({"CPU": 8.0}, "4 workers need 8 CPU and 2 GPU, the cluster has 8 CPU and 0 GPU"),
        ({"CPU": 7.5, "GPU": 2.0}, "need 8 CPU and 2 GPU, the cluster has 7.5 CPU and 2 GPU"),
    ],
)
def test_a_person_is_told_what_the_workers_wait_for(
    monkeypatch: pytest.MonkeyPatch, have: dict[str, float], told: str
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: have)
    each = {"cluster.cpus_per_worker": 2, "cluster.gpus_per_worker": 0.5}
    found = missing_room(load_config(None, each | {"cluster.num_workers": 4}))
    assert found == told if not told else told in found


def test_the_least_number_of_workers_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    workers: dict[str, object] = {"cluster.num_workers": 2}
    assert missing_room(load_config(None, workers))
    assert not missing_room(load_config(None, workers | {"cluster.min_workers": 1}))


def test_other_ranks_wait_as_long_as_rank_0_may_work_alone(tmp_path: Path) -> None:
    config = load_config(None, {"run.dir": str(tmp_path), "data.retry_s": 7200})
    settings = _trainer(config, {}, []).backend_config
    assert isinstance(settings, TorchConfig)
    assert settings.timeout_s > 7200 + 3600
