"""The study: what it leaves behind, that a rerun trains nothing, that another study is refused."""

import json
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.cluster_utils import Cluster

from cluster.cli import parse
from cluster.config import load_config
from cluster.train_loop import schedule_of
from tests.jobs import ROOT, TINY, flags, kill_tree, run_cli, start_cli

# Two checkpoints before the last, so that ASHA has rungs at which to stop the weaker trial.
STUDY = TINY | {
    "tune.num_trials": 2,
    "tune.grace_kimg": 0.4,
    "tune.reduction_factor": 2,
    "cluster.num_workers": 1,
    "tracking.validation_images": 12,
}
TOTAL = schedule_of(load_config(None, STUDY))[-1].end


def _words(dataset: Path, run_dir: Path, **changed: object) -> list[str]:
    # The command of docs/operations.md, made small.
    words = ["tune", "--config", str(ROOT / "docs/surfaces.yaml")]
    return [*words, *flags(STUDY | {"data.uri": dataset, "run.dir": run_dir} | changed)]


@pytest.fixture(scope="module")
def study(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a finished study, made by `python -m cluster tune`."""
    folder = tmp_path_factory.mktemp("study")
    status, output = run_cli(_words(dataset, folder))
    assert status == 0, output
    return folder


def _last_rows(study: Path) -> dict[str, dict[str, float]]:
    """The last validated row of each trial's metrics, by trial."""
    found = {}
    for path in study.glob("tune/trials/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [r for r in rows if "train/validation_auroc" in r][-1]
    return found


def test_best_is_the_best_of_the_trials_that_went_to_the_end(study: Path) -> None:
    best = load_config(str(study / "tune/best.yaml"))
    last = _last_rows(study)
    assert len(last) == 2
    ended = {t: r["train/validation_auroc"] for t, r in last.items() if r["images_seen"] == TOTAL}
    winners = [
        load_config(str(study / f"tune/trials/{trial}/config.yaml"))
        for trial, auroc in ended.items()
        if auroc == max(ended.values())
    ]
    assert (best.objective, best.search) in [(won.objective, won.search) for won in winners]
    assert best.run.dir == str(study / "tune/best")
    parse(["train", "--config", str(study / "tune/best.yaml")])
    assert not (study / "tracking.json").exists()


def test_all_runs_ended_and_trials_are_nested(study: Path) -> None:
    runs = _runs(study)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    trials = [run for run in runs if run is not parent]
    assert len(trials) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.params["objective.gamma"] for run in trials}) == 2
    first, second = sorted(trials, key=lambda run: run.info.start_time)
    assert first.info.end_time <= second.info.start_time, "it ended with the study"


def test_rerun_trains_nothing(dataset: Path, study: Path) -> None:
    kept = [*study.glob("tune/trials/*/metrics.jsonl"), study / "tune/best.yaml"]
    before = {path: path.read_bytes() for path in kept}
    status, output = run_cli(_words(dataset, study))
    assert status == 0, output
    assert {path: path.read_bytes() for path in kept} == before
    assert len([*study.glob("tune/trials/*/config.yaml")]) == 2
    assert {run.info.status for run in _runs(study)} == {"FINISHED"}


@pytest.mark.parametrize(
    ("field", "value", "old"),
    [("tune.num_trials", 4, 2), ("search.statistic", "mean", "'window'")],
)
def test_other_settings_are_refused(
    dataset: Path, study: Path, field: str, value: object, old: object
) -> None:
    status, output = run_cli(_words(dataset, study, **{field: value}))
    assert status == 2
    assert f"holds a run with {field}={old}, not {value!r}; choose another run.dir" in output


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_study_stopped_by_ctrl_c_is_not_done_and_goes_on(dataset: Path, tmp_path: Path) -> None:
    process = start_cli(_words(dataset, tmp_path))
    try:
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("tune/trials/*/metrics.jsonl")):
            assert time.monotonic() < deadline, "no trial began"
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        kill_tree(process.pid)
    assert process.returncode == 130, output
    assert not (tmp_path / "tune/best.yaml").exists()
    assert "FINISHED" not in {run.info.status for run in _runs(tmp_path)}
    status, output = run_cli(_words(dataset, tmp_path))
    assert status == 0, output
    assert (tmp_path / "tune/best.yaml").exists()
    assert {run.info.status for run in _runs(tmp_path)} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trials_leave_nodes_of_just_their_size_to_their_workers(
    dataset: Path, tmp_path: Path, nodes: Cluster
) -> None:
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    small = {"tune.num_trials": 1, "cluster.num_workers": 2, "schedule.final_kimg": 0.4}
    words = _words(dataset, tmp_path, **small)
    status, output = run_cli(words, env={"RAY_ADDRESS": nodes.address})
    assert status == 0, output
    assert (tmp_path / "tune/best.yaml").exists()


def _runs(study: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("blemish")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))
