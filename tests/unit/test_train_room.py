"""What is told where the workers of a run have no room in the cluster yet."""

from pathlib import Path

import pytest
import ray
from ray.train.torch import TorchConfig

from cluster.config import load_config
from cluster.doctor import check_ray
from cluster.errors import UserError
from cluster.train import _trainer, check_run, missing_room
from data.errors import DataError
from tune.study import claim


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


@pytest.mark.parametrize(
    ("gpus", "workers", "refused"), [(0, 2, False), (0.5, 2, True), (0.5, 1, False), (1, 2, False)]
)
def test_training_workers_that_would_share_a_gpu_are_refused(
    tmp_path: Path, gpus: float, workers: int, refused: bool
) -> None:
    chosen: dict[str, object] = {"cluster.gpus_per_worker": gpus, "cluster.num_workers": workers}
    config = load_config(None, chosen | {"data.uri": str(tmp_path), "run.dir": str(tmp_path)})
    told = r"cluster\.gpus_per_worker=0\.5 would let the 2 training workers share a GPU, which NCCL"
    for check in (check_run, claim):
        with pytest.raises((UserError, DataError), match=told if refused else r"dataset\.json"):
            check(config)
    if refused:
        with pytest.raises(UserError, match=told):
            next(check_ray(config))
