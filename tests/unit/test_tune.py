"""Which trial wins, how trials end, what a study's settings are, and how a trial is judged."""

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from ray import tune as ray_tune

from cluster.claims import claim_dataset
from cluster.config import Config, dump_config, load_config
from cluster.errors import UserError
from cluster.tracking import RunRef, finish_run, load_run, open_run
from cluster.train_loop import architecture_of
from cluster.validation import Validator
from data.dataset import INDEX_NAME, load_index
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.sample import Sample
from data.store import Store
from gan.evidence import Evidence, gather_evidence
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from tests.jobs import TINY
from tests.ports import free_port
from tune import study
from tune.spaces import apply_point, search_space
from tune.study import _tune_config, claim, finish_trials, rank, study_config

POINT = {
    "objective.gamma": 0.5,
    "objective.alpha": 0.25,
    "search.feature_weight": 0.9,
    "search.steps": 20,
    "search.step_size": 0.1,
}


def _result(
    images_seen: int = 0,
    auroc: float | None = None,
    *,
    error: Exception | None = None,
    path: str = "",
    **more: float,
) -> ray_tune.Result:
    metrics: dict[str, Any] = {"images_seen": images_seen} | more
    if auroc is not None:
        metrics["validation_auroc"] = auroc
    return ray_tune.Result(metrics=metrics, checkpoint=None, error=error, path=path)


def test_lucky_trial_stopped_early_does_not_win() -> None:
    early, good, best, silent = (
        _result(4000, 0.99),
        _result(20000, 0.80),
        _result(20000, 0.85),
        _result(30000),
    )
    assert rank([early, good, best, silent]) == [best, good, early]


def test_where_the_best_model_is_kept_it_decides() -> None:
    high, low = _result(20000, 0.80, best_auroc=0.95), _result(20000, 0.85, best_auroc=0.85)
    early = _result(4000, 0.99)
    assert rank([low, early, high], by="best_auroc") == [high, low, early]
    assert rank([low, early, high]) == [low, high, early]


@pytest.mark.parametrize(("keep_best", "gamma"), [(False, 0.9), (True, 0.5)])
def test_the_best_point_is_written_before_mlflow_is_told_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_best: bool, gamma: float
) -> None:
    """With a study of two trials that has gone to its end."""
    track = {"tracking.keep_best": keep_best, "tracking.validation_images": 8}
    config = load_config(None, {"run.dir": str(tmp_path)} | track)
    found = {0.5: _result(20000, 0.80, best_auroc=0.95), 0.9: _result(20000, 0.85, best_auroc=0.86)}
    for value, result in found.items():
        assert result.metrics
        result.metrics["config"] = POINT | {"objective.gamma": value}
    best: list[float] = []

    def end(*_: object) -> None:
        best.append(load_config(str(tmp_path / "tune/best.yaml")).objective.gamma)

    for name in ("claim", "ray_session", "tracking.tracked_run"):
        monkeypatch.setattr(f"tune.study.{name}", MagicMock())
    tuner = MagicMock()
    tuner.return_value.fit.return_value = [*found.values()]
    monkeypatch.setattr(study, "_tuner", tuner)
    monkeypatch.setattr(study, "finish_trials", end)
    study.tune(config)
    assert best == [gamma]


def test_trial_that_failed_does_not_win() -> None:
    failed, whole = _result(20000, 0.9, error=RuntimeError()), _result(4000, 0.6)
    assert rank([failed, whole]) == [whole]


def test_study_without_a_report_says_what_to_do() -> None:
    with pytest.raises(UserError, match="none of 1 trials reported validation_auroc"):
        rank([_result(4000)])


@pytest.mark.parametrize("kimg", [0.0004, 1000])
def test_a_trial_is_spared_for_at_least_one_image_and_at_most_all(kimg: float) -> None:
    assert _tune_config(load_config(None, TINY | {"tune.grace_kimg": kimg})).scheduler


@pytest.mark.parametrize("images", [0, 40])
def test_trials_share_one_mlflow_and_validate(tmp_path: Path, images: int) -> None:
    config = load_config(None, {"run.dir": str(tmp_path), "tracking.validation_images": images})
    own = study_config(config)
    assert own.run.dir == str(tmp_path / "tune")
    assert own.tracking.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert own.tracking.validation_images == (images or 128)


def test_point_changes_just_its_fields(tmp_path: Path) -> None:
    config = load_config(None, {})
    chosen = apply_point(config, POINT, run_dir=str(tmp_path))
    assert set(POINT) == set(search_space())
    assert (chosen.objective.gamma, chosen.search.steps) == (0.5, 20)
    assert chosen.networks == config.networks
    assert chosen.run.dir == str(tmp_path)


def test_every_trial_ends_in_mlflow_as_it_ended(tmp_path: Path) -> None:
    own = study_config(load_config(None, {"run.dir": str(tmp_path)}))
    parent = open_run(own, name="tune")
    trials = _trials(own, "done", "failed", "cut", "early")
    for each in trials.values():
        open_run(each, name="one", parent_run_id=parent.run_id)
    assert finish_run(trials["early"], "FINISHED", name="one")
    client = MlflowClient(parent.uri)

    def ends() -> dict[str, tuple[str, int]]:
        found = {
            name: client.get_run(_run(trial).run_id or "").info for name, trial in trials.items()
        }
        return {name: (info.status, info.end_time) for name, info in found.items()}

    early = ends()["early"]
    finish_trials(own, [], parent.run_id)
    stopped = ends()
    assert {name: how for name, (how, _) in stopped.items()} == {
        "done": "KILLED",
        "failed": "KILLED",
        "cut": "KILLED",
        "early": "FINISHED",
    }
    assert stopped["early"] == early
    results = [_result(path="x/done"), _result(path="x/failed", error=RuntimeError())]
    for _ in range(2):
        finish_trials(own, results, parent.run_id)
        now = ends()
        assert (now["done"][0], now["failed"][0]) == ("FINISHED", "FAILED")
        assert (now["early"], now["cut"]) == (early, stopped["cut"])


def test_what_mlflow_missed_of_a_trial_is_sent_with_the_time_of_its_end(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    own = study_config(load_config(None, {"run.dir": str(tmp_path), "tracking.uri": uri}))
    (trial,) = _trials(own, "one").values()
    open_run(trial, name="one")
    assert not finish_run(trial, "FINISHED", name="one")
    before = _run(trial)
    finish_trials(own, [], None)
    assert (_run(trial).ended, _run(trial).ended_ms) == ("FINISHED", before.ended_ms)


def test_a_server_that_is_away_is_asked_once_for_all_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    own = study_config(load_config(None, {"run.dir": str(tmp_path), "tracking.uri": uri}))
    for each in _trials(own, "one", "two", "three").values():
        open_run(each, name="one")
    capsys.readouterr()
    finish_trials(own, [], None)
    assert capsys.readouterr().err.count("the run goes on") == 1


def _trials(own: Config, *names: str) -> dict[str, Config]:
    """Configurations of trials, which lie where a study has them."""
    root = Store(own.run.dir)
    trials = {name: apply_point(own, POINT, run_dir=root.url(f"trials/{name}")) for name in names}
    for name, trial in trials.items():
        root.write_bytes(f"trials/{name}/config.yaml", dump_config(trial).encode())
    return trials


def _run(config: Config) -> RunRef:
    ref = load_run(config)
    assert ref is not None
    return ref


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, abnormal where brighter; all of it in the validation split."""
    source = np.random.default_rng(0)
    samples = [
        Sample(
            f"{label}{number}",
            source.integers(0, 100, (16, 16, 1), np.uint8) + np.uint8(shift),
            label,
            "noise",
            f"{label}{number}",
            kind,
            "validation",
        )
        for label, kind, shift in (("normal", "good", 0), ("abnormal", "bright", 20))
        for number in range(10)
    ]
    folder = tmp_path_factory.mktemp("noise")
    pack(samples, Store(str(folder)), resolution=16, name="noise", seed=0)
    return folder


def _auroc(packed: Path, stage: int, fade: float = 1.0, **search: Any) -> float:
    fields = {f"search.{field}": value for field, value in search.items()}
    wanted = {"data.uri": str(packed), "tracking.validation_images": 20, "search.batch": 8}
    config = load_config(None, TINY | wanted | fields)
    index = load_index(Store(str(packed)))
    state = _state(config)
    state.images_seen = round(fade * 100)
    phase = Phase(stage, fading=fade < 1.0, start=0, end=100)
    architecture = architecture_of(config, index)
    return Validator(config, index, architecture, torch.device("cpu")).auroc(state, phase)


def _state(config: Config) -> TrainingState:
    index = load_index(Store(config.data.uri))
    return TrainingState(
        architecture_of(config, index),
        Rates(**config.optimizer.model_dump()),
        seed=0,
        rank=0,
        device=torch.device("cpu"),
    )


def test_level_that_a_stage_does_not_have_yet_is_the_nearest_one(packed: Path) -> None:
    last = {"feature_weight": 1.0, "statistic": "mean"}
    assert _auroc(packed, 1, feature_levels=(1,), **last) == _auroc(
        packed, 1, feature_levels=(0,), **last
    )
    assert 0 <= _auroc(packed, 0, feature_levels=(1, -2), **last) <= 1
    assert _auroc(packed, 2, feature_levels=(1,), **last) != _auroc(
        packed, 2, feature_levels=(0,), **last
    )


def test_trial_is_judged_by_the_statistic_of_the_settings(packed: Path) -> None:
    mean, window = (
        _auroc(packed, 2, statistic=statistic, window=1, steps=0)
        for statistic in ("mean", "window")
    )
    fused = _auroc(packed, 2, statistic="fused", window=1, steps=0)
    whole = _auroc(packed, 2, statistic="window", window=255, steps=0, feature_weight=0)
    assert len({mean, window, fused}) == 3
    assert whole == _auroc(packed, 2, statistic="mean", steps=0, feature_weight=0)


def test_maps_are_made_with_the_fade_of_the_moment(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fades, blocks = [], []

    def noted(*arguments: Any, fade: float, **named: Any) -> Evidence:
        fades.append(fade)
        blocks.append(len(arguments[1]))
        return gather_evidence(*arguments, fade=fade, **named)

    monkeypatch.setattr("cluster.validation.gather_evidence", noted)
    _auroc(packed, 2, fade=0.25, statistic="window", steps=0)
    assert fades == [0.25] * 3
    assert blocks == [8, 8, 4]


def test_a_study_of_another_data_set_is_refused(packed: Path, tmp_path: Path) -> None:
    config = study_config(load_config(None, {"data.uri": str(packed), "run.dir": str(tmp_path)}))
    root = Store(config.run.dir)
    claim_dataset(config, root)
    claim_dataset(config, root)
    root.write_bytes(INDEX_NAME, b"{}")
    with pytest.raises(UserError, match="was packed anew since run"):
        claim_dataset(config, root)


def test_a_study_whose_trials_cannot_share_their_batches_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "data")
    counts = {"num_train_normal": 8, "num_train_abnormal": 4, "num_validation": 60}
    items = synthetic_surfaces(resolution=16, seed=1, **counts)
    pack(items, Store(uri), resolution=16, name="metal", seed=0)
    words = {"run.dir": str(tmp_path), "data.uri": uri}
    odd = {"objective.alpha": 0, "schedule.abnormal_batch": 6}
    with pytest.raises(UserError, match=r"^schedule\.abnormal_batch=6 must be a multiple"):
        claim(study_config(load_config(None, TINY | words | odd)))


@pytest.mark.parametrize(
    "setting", [{"tracking.validation_images": 60}, {"tune.max_concurrent": 2}], ids=str
)
def test_a_study_goes_on_only_as_it_began(tmp_path: Path, setting: dict[str, int]) -> None:
    words = TINY | {"run.dir": str(tmp_path), "data.uri": str(tmp_path / "data")}
    items = synthetic_surfaces(
        resolution=16, seed=1, num_train_normal=8, num_train_abnormal=4, num_validation=60
    )
    pack(items, Store(str(tmp_path / "data")), resolution=16, name="metal", seed=0)
    begun, (field,) = load_config(None, words), setting
    claim(study_config(begun))
    claim(study_config(begun))
    with pytest.raises(UserError, match=f"holds a run with {field}=.*, not {setting[field]}"):
        claim(study_config(load_config(None, words | setting)))
