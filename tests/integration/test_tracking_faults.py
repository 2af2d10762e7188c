"""What goes wrong beneath MLflow, or by hand, neither stops a job nor loses anything."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils

from cluster import tracking
from cluster.config import Config, load_config
from cluster.errors import UserError
from cluster.inspection_files import StoredFiles
from cluster.tracking import METRICS, Tracker, finish_run, load_run, log_results, open_run
from data.store import Store

ROW = {"images_seen": 100, "time_ms": 1_000_001, "train/loss_d": 0.5}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests here, since making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def config(tmp_path: Path, uri: str) -> Config:
    return load_config(None, {"run.dir": str(tmp_path), "tracking.uri": uri})


@pytest.fixture
def dead_artifacts(config: Config, uri: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configuration whose artifacts go to an S3 store that is down."""
    for name in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client = MlflowClient(uri)
    if client.get_experiment_by_name("dead") is None:
        client.create_experiment("dead", artifact_location="s3://dead/artifacts")
    section = config.tracking.model_copy(update={"experiment": "dead"})
    return config.model_copy(update={"tracking": section})


def _run_id(config: Config) -> str:
    ref = load_run(config)
    assert ref is not None
    assert ref.run_id is not None
    return ref.run_id


def test_artifact_store_down_loses_nothing(dead_artifacts: Config, uri: str) -> None:
    run = Store(dead_artifacts.run.dir)
    notes: list[str] = []
    tracker = Tracker(open_run(dead_artifacts, name="one"), run, notes.append)
    run.write_bytes("samples/a.png", b"png")
    for _ in range(2):
        tracker.picture("samples/a.png")
    tracker.row(ROW)
    assert not tracker.close(timeout_s=60)
    # Curves go on beside pictures that cannot be sent, and people hear of it once.
    assert MlflowClient(uri).get_run(_run_id(dead_artifacts)).data.metrics == {"train/loss_d": 0.5}
    assert len(notes) == 1
    assert "failed" in notes[0]
    run.write_bytes(METRICS, json.dumps(ROW).encode())
    finish_run(dead_artifacts, "FINISHED", name="one")
    assert MlflowClient(uri).get_run(_run_id(dead_artifacts)).data.metrics == {"train/loss_d": 0.5}


def test_artifact_store_down_fails_no_job(dead_artifacts: Config, uri: str) -> None:
    with tracking.tracked_run(dead_artifacts, name="one"):
        Store(dead_artifacts.run.dir).write_bytes("samples/a.png", b"png")
    assert MlflowClient(uri).get_run(_run_id(dead_artifacts)).info.status == "FINISHED"


def test_results_of_an_outage_are_sent_later(
    config: Config, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_run(config, name="one")
    with monkeypatch.context() as away:
        away.setattr(tracking, "connect", _refuse)
        log_results(config, {"test/auroc": 0.9}, {"report/report.html": b"<p>"})
    finish_run(config, "FINISHED", name="one")
    client = MlflowClient(uri)
    assert client.get_run(_run_id(config)).data.metrics == {"test/auroc": 0.9}
    found = client.list_artifacts(_run_id(config), "report")
    assert [file.path for file in found] == ["report/report.html"]
    assert Store(config.run.dir).list("unsent/") == []


@pytest.mark.parametrize("away", [False, True])
def test_a_file_that_cannot_be_read_keeps_no_other_back(
    config: Config,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    away: bool,
) -> None:
    run = Store(config.run.dir)
    run.write_bytes("here.html", b"<p>")
    open_run(config, name="one")
    with monkeypatch.context() as patched:
        if away:
            patched.setattr(tracking, "connect", _refuse)
        log_results(config, {"test/auroc": 0.9}, StoredFiles(run, "a/", ["gone.png", "here.html"]))
    text = capsys.readouterr().err
    assert "MLflow goes without a/gone.png: reading" in text
    assert (f"MLflow at {uri} failed" in text) is away
    assert run.list("unsent/files/") == ["unsent/files/a/here.html"] * away
    finish_run(config, "FINISHED", name="one")
    found = MlflowClient(uri).list_artifacts(_run_id(config), "a")
    assert [file.path for file in found] == ["a/here.html"]


@pytest.mark.parametrize("opened", [False, True])
def test_what_an_outage_kept_back_is_sent_with_the_next_results_once_the_run_has_ended(
    config: Config, uri: str, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    if opened:
        open_run(config, name="one")
    with monkeypatch.context() as away:
        away.setattr(tracking, "connect", _refuse)
        if not opened:
            open_run(config, name="one")
        Store(config.run.dir).write_bytes(METRICS, json.dumps(ROW).encode())
        finish_run(config, "KILLED", name="one")
    log_results(config, {"test/auroc": 0.9})
    client, run_id = MlflowClient(uri), _run_id(config)
    found = client.get_run(run_id)
    assert found.data.metrics == {"train/loss_d": 0.5, "test/auroc": 0.9}
    ref = load_run(config)
    assert ref is not None
    assert ref.complete
    assert (found.info.status, found.info.end_time) == ("KILLED", ref.ended_ms)
    open_run(config, name="one")
    log_results(config, {"test/auroc": 0.8})
    assert client.get_run(run_id).info.status == "RUNNING", "it is trained again"


def test_results_neither_open_nor_end_a_run_that_may_still_train(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr(tracking, "connect", _refuse)
        open_run(config, name="one")
    log_results(config, {"test/auroc": 0.9})
    ref = load_run(config)
    assert ref is not None
    assert ref.run_id is None
    assert Store(config.run.dir).list("unsent/")


def test_deleted_run_is_replaced(config: Config, uri: str) -> None:
    first = open_run(config, name="one").run_id
    assert first is not None
    MlflowClient(uri).delete_run(first)
    second = open_run(config, name="one").run_id
    assert second not in (None, first)


def test_results_open_a_run_that_was_deleted_anew(config: Config, uri: str) -> None:
    open_run(config, name="one")
    Store(config.run.dir).write_bytes(METRICS, json.dumps(ROW).encode())
    finish_run(config, "KILLED", name="one")
    ended, client = load_run(config), MlflowClient(uri)
    client.delete_run(_run_id(config))
    log_results(config, {"test/auroc": 0.9})
    found = client.get_run(_run_id(config))
    assert (found.info.lifecycle_stage, found.info.status) == ("active", "KILLED")
    assert ended is not None
    assert found.info.end_time == ended.ended_ms
    assert found.data.metrics == {"train/loss_d": 0.5, "test/auroc": 0.9}
    assert Store(config.run.dir).list("unsent/") == []


@pytest.mark.parametrize("moved", [True, False])
def test_a_run_directory_that_was_moved_or_copied_has_an_mlflow_of_its_own(
    tmp_path: Path, moved: bool
) -> None:
    places = [tmp_path / "old", tmp_path / "new"]
    old, new = (load_config(None, {"run.dir": str(place)}) for place in places)
    open_run(old, name="one")
    finish_run(old, "FINISHED", name="one")
    log_results(old, {}, {"report/first.html": b"<p>"})
    (shutil.move if moved else shutil.copytree)(*places)
    # As in another process.
    utils._artifact_repos_cache.clear()
    log_results(new, {"test/auroc": 0.9}, {"report/report.html": b"<p>"})
    client = MlflowClient(f"sqlite:///{places[1]}/mlflow.db")
    assert client.get_run(_run_id(new)).data.metrics == {"test/auroc": 0.9}
    names = [file.path for file in client.list_artifacts(_run_id(new), "report")]
    assert names == ["report/first.html", "report/report.html"]
    assert len(list(places[1].glob("mlflow-artifacts/*/artifacts/report/*"))) == 2
    assert Store(new.run.dir).list("unsent/") == []
    assert places[0].exists() is not moved
    if not moved:
        utils._artifact_repos_cache.clear()
        client = MlflowClient(f"sqlite:///{places[0]}/mlflow.db")
        assert client.get_run(_run_id(old)).data.metrics == {}
        assert len(client.list_artifacts(_run_id(old), "report")) == 1


def test_a_recorded_database_that_is_gone_is_not_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {
        "run.dir": str(tmp_path / "run"),
        "tracking.uri": f"sqlite:///{tmp_path}/old/mlflow.db",
    }
    config = load_config(None, place)
    open_run(config, name="one")
    finish_run(config, "FINISHED", name="one")
    shutil.rmtree(tmp_path / "old")
    log_results(config, {"test/auroc": 0.9})
    assert f"{tmp_path}/old is gone; say in tracking.uri where mlflow.db" in capsys.readouterr().err
    assert not (tmp_path / "old").exists()
    assert Store(config.run.dir).list("unsent/")


def test_outage_while_a_run_is_created_leaves_one_run_with_all_settings(
    config: Config, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", _refuse)
        first = open_run(config, name="one").run_id
    assert open_run(config, name="one").run_id == first is not None
    assert MlflowClient(uri).get_run(first).data.params["objective.gamma"] == "0.7"


def test_password_of_the_uri_is_not_shown(
    config: Config, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    open_run(config, name="one")
    assert "tracking.uri" not in MlflowClient(uri).get_run(_run_id(config)).data.params
    section = config.tracking.model_copy(update={"uri": "http://me:secret@127.0.0.1:9"})
    open_run(config.model_copy(update={"tracking": section}), name="one")
    text = capsys.readouterr().err
    assert "***@127.0.0.1:9" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("http://me:secret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://me:se/cret@host/db", "postgresql://***@host/db"),
        ("postgresql://me:se@cret@host/db", "postgresql://***@host/db"),
        ("mysql://me:se?cret@host/db", "mysql://***@host/db"),
        (
            "postgresql://host/db?user=me&password=secret&sslmode=require",
            "postgresql://host/db?user=***&password=***&sslmode=require",
        ),
        (
            "mssql+pyodbc:///?odbc_connect=Driver%3Dx%3BPWD%3Dsecret",
            "mssql+pyodbc:///?odbc_connect=***",
        ),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        (
            "no answer from 'http://me:secret@host', try later",
            "no answer from 'http://***@host', try later",
        ),
    ],
)
def test_user_and_password_are_hidden_in_every_form(uri: str, shown: str) -> None:
    assert tracking.public_uri(uri) == shown


def test_an_error_hides_them_wherever_it_is_cut(config: Config) -> None:
    long = f"http://me:{'secret' * 50}@127.0.0.1:9"
    assert "secret" not in tracking._failed(long, ValueError(f"no answer from {long}"))
    section = config.tracking.model_copy(update={"uri": "foo://me:secret@host"})
    with pytest.raises(UserError, match=r"tracking\.uri=foo://\*\*\*@host is no place"):
        tracking.tracking_uri(config.model_copy(update={"tracking": section}))


def test_relative_sqlite_is_one_file_for_all_workers(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = config.tracking.model_copy(update={"uri": "sqlite:///mlflow.db"})
    relative = config.model_copy(update={"tracking": section})
    assert tracking.tracking_uri(relative) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("wrong", ["mlruns", "/tmp/mlruns", "file:///mlruns", "foo://x", "sqlite:"])
def test_places_mlflow_does_not_know_are_refused(config: Config, wrong: str) -> None:
    section = config.tracking.model_copy(update={"uri": wrong})
    with pytest.raises(UserError, match=r"tracking\.uri=.*; use http"):
        open_run(config.model_copy(update={"tracking": section}), name="one")


def _refuse(*_: object, **__: object) -> None:
    raise ConnectionError("away")
