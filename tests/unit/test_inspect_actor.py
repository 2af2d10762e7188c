"""What an actor of an inspection does with its units, here without Ray."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import inspection, inspector
from cluster.calibration import calibration_for
from cluster.config import Config
from cluster.engine import Engine
from cluster.errors import UserError
from cluster.inspection import inspect_split
from cluster.inspection_files import MANIFEST, REGIONS, inspection_store
from cluster.inspector import UNITS_AT_ONCE, Inspector
from data.errors import DataError
from data.preparation import Preparation
from data.store import Store
from tests.inspecting import SIDE, calibrated, contents, inspect_here, with_inspect


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A packed data set and a calibrated model; units run in this process."""
    monkeypatch.setattr(inspection, "run_units", inspect_here)
    return calibrated(tmp_path, Preparation(resolution=SIDE, channels=1))


def test_units_inspected_at_once_are_searched_one_after_the_other(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect_split(config, calibration_for(config))
    searching, most = list[int](), list[int]()
    real = Engine.score

    def watched(engine: Engine, samples: Any) -> Any:
        searching.append(1)
        most.append(len(searching))
        time.sleep(0.05)
        try:
            return real(engine, samples)
        finally:
            searching.pop()

    def at_once(job: Any, units: list[Any], _: Config) -> list[Any]:
        with ThreadPoolExecutor(UNITS_AT_ONCE) as pool:
            return list(pool.map(Inspector(job).inspect, units))

    monkeypatch.setattr(Engine, "score", watched)
    monkeypatch.setattr(inspection, "run_units", at_once)
    other = with_inspect(config, dir=str(tmp_path / "at-once"))
    inspect_split(other, calibration_for(other))
    assert most == [1, 1, 1]
    straight = contents(inspection_store(config), MANIFEST, REGIONS)
    assert contents(inspection_store(other), MANIFEST, REGIONS) == straight


def test_a_model_that_cannot_be_loaded_is_told_where_an_actor_works_not_where_it_begins(
    config: Config, tmp_path: Path
) -> None:
    """Ray tells an error of the beginning as the actor's death, without its type."""
    job, _, inspected = inspection._find(config, None)
    actor = Inspector(dataclasses.replace(job, run=Store(str(tmp_path / "of another node"))))
    with pytest.raises((UserError, DataError), match="of another node"):
        actor.inspect(inspected.units[0])


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "cuda")])
def test_an_actor_computes_on_a_gpu_only_where_it_has_reserved_one(
    config: Config, monkeypatch: pytest.MonkeyPatch, gpus: float, device: str
) -> None:
    """Ray hides none from actors that have not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told: list[torch.device] = []
    monkeypatch.setattr(inspector, "Engine", lambda *_, device, **__: told.append(device))
    cluster = config.cluster.model_copy(update={"gpus_per_worker": gpus})
    job, *_ = inspection._find(config.model_copy(update={"cluster": cluster}), None)
    assert Inspector(job).engine is None
    assert told == [torch.device(device)]
