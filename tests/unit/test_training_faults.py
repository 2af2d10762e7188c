"""One rank trained in this process, with steps made to fail: what becomes of the run."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gan.state
from cluster.checkpoint_store import MANIFEST
from cluster.config import Config, load_config
from cluster.errors import UserError
from cluster.train_loop import train_worker
from data.dataset import load_index
from data.errors import StoreError
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.shard_cache import ShardCache
from data.store import Store
from gan.step import NonFiniteError
from tests.jobs import TINY
from tests.one_rank import Board, without_ray

BATCH = 8
SETTINGS = TINY | {
    "networks.resolution": 8,
    "networks.fmap_base": 8,
    "networks.fmap_max": 4,
    "schedule.batch": BATCH,
    "schedule.abnormal_batch": 4,
    "schedule.fade_kimg": 0.04,
    "schedule.steady_kimg": 0.04,
    "schedule.final_kimg": 0.08,
    "cluster.num_workers": 1,
    "cluster.checkpoint_kimg": 0.04,
    "cluster.keep_checkpoints": 9,
    "tracking.log_kimg": 0.008,
    "tracking.sample_kimg": 100,
}
"""Twenty steps of eight images; a checkpoint every five steps."""

Fail = Callable[[int], None]


class KilledError(Exception):
    """Stands for a worker that dies."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    counts = {"num_train_normal": 24, "num_train_abnormal": 8, "num_validation": 2, "num_test": 2}
    folder = str(tmp_path_factory.mktemp("data"))
    samples = synthetic_surfaces(resolution=8, seed=1, **counts)
    pack(samples, Store(folder), resolution=8, name="metal", seed=0, shard_samples=8)
    return folder


@pytest.fixture(autouse=True)
def _without_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fail], None]:
    """Makes the function given run before each training step, told how many ran before it."""
    real_step = gan.state.training_step

    def install(fail: Fail) -> None:
        calls = iter(range(10_000))

        def step(*args: Any, **how: Any) -> dict[str, Tensor]:
            fail(next(calls))
            return real_step(*args, **how)

        monkeypatch.setattr(gan.state, "training_step", step)

    return install


def _at(*numbers: int, error: type[Exception] = NonFiniteError) -> Fail:
    def fail(number: int) -> None:
        if number in numbers:
            raise error("loss_d is nan")

    return fail


def _config(dataset: str, run: Path) -> Config:
    return load_config(None, SETTINGS | {"data.uri": dataset, "run.dir": str(run)})


def _train(config: Config, board: Board | None = None) -> list[str]:
    board, tracking = board or Board(), {"uri": "http://127.0.0.1:9", "run_id": None}
    train_worker({"config": config.model_dump(), "tracking": tracking, "board": board})
    return board.notes


def _rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _factors(run: Path) -> list[tuple[int, float]]:
    """Images seen and learning rates, as a share of those configured, row by row."""
    return [(int(r["images_seen"]), r["train/lr_factor"]) for r in _rows(run) if "train/kimg" in r]


def _weights(run: Path) -> bytes:
    return (run / "model/weights.safetensors").read_bytes()


def _checkpoints(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob(f"checkpoints/*/{MANIFEST}"))


def test_run_goes_back_to_its_last_checkpoint_and_on_with_half_the_rates(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None]
) -> None:
    failing(_at(7))
    (note,) = _train(_config(dataset, tmp_path))
    assert "diverged at 0.056 kimg: loss_d is nan; it goes on from 0.04 kimg with 0.5" in note
    seen = range(BATCH, 160 + BATCH, BATCH)
    assert _factors(tmp_path) == [(n, 1.0 if n <= 40 else 0.5) for n in seen]
    cut = [r for r in _rows(tmp_path) if r.keys() == {"images_seen", "time_ms", "train/lr_factor"}]
    assert [(r["images_seen"], r["train/lr_factor"]) for r in cut] == [(40, 0.5)]
    assert _checkpoints(tmp_path) == [
        "checkpoint_000_000000000040",
        *(f"checkpoint_001_{n:012d}" for n in (40, 80, 120, 160)),
    ]


def test_run_goes_back_where_a_loss_alone_is_not_finite(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step, calls = gan.state.training_step, iter(range(10_000))

    def step(*args: Any, **how: Any) -> dict[str, Tensor]:
        spoilt = {"loss_d": torch.tensor(torch.nan)} if next(calls) == 7 else {}
        return real_step(*args, **how) | spoilt

    monkeypatch.setattr(gan.state, "training_step", step)
    (note,) = _train(_config(dataset, tmp_path))
    assert "train/loss_d not finite; it goes on from 0.04 kimg with 0.5" in note


def test_run_without_a_checkpoint_goes_back_to_the_beginning(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None]
) -> None:
    failing(_at(3))
    (note,) = _train(_config(dataset, tmp_path))
    assert "goes on from 0 kimg" in note
    assert _factors(tmp_path) == [(n, 0.5) for n in range(BATCH, 160 + BATCH, BATCH)]


@pytest.mark.parametrize("second", [8, 12])
def test_second_time_within_an_interval_ends_the_run(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None], second: int
) -> None:
    # The cut is at 40 images, so steps 8 to 12 begin with 40 to 72 images seen.
    failing(_at(7, second))
    with pytest.raises(UserError, match=r"diverged again, .* lower optimizer\.generator_lr"):
        _train(_config(dataset, tmp_path))
    assert not (tmp_path / "model").exists()
    # What led there can be looked at.
    assert max(row["images_seen"] for row in _rows(tmp_path)) == 40 + (second - 8) * BATCH


def test_damaged_images_end_the_run_for_good_and_a_disk_that_refuses_does_not(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Store(str(tmp_path / "data"))
    for path in Store(dataset).list():
        copy.write_bytes(path, Store(dataset).read_bytes(path))
    config = _config(copy.uri, tmp_path / "run")
    with monkeypatch.context() as busy:
        busy.setattr(ShardCache, "open", _refuse)
        with pytest.raises(StoreError, match="too many open files"):
            _train(config)
    for shard in load_index(copy).shards_of("train-normal", 8):
        copy.write_bytes(shard.path, b"no tar")
    with pytest.raises(UserError, match=r"are damaged, more than data\.max_bad_fraction"):
        _train(config)


def test_what_cannot_be_read_is_listed_and_counted_over_a_resume(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None]
) -> None:
    copy = Store(str(tmp_path / "data"))
    for path in Store(dataset).list():
        copy.write_bytes(path, Store(dataset).read_bytes(path))
    spoilt = load_index(copy).shards_of("train-normal", 8)[0]
    copy.write_bytes(spoilt.path, b"no tar")
    places = {"data.uri": copy.uri, "run.dir": str(tmp_path / "run")}
    config = load_config(None, SETTINGS | places | {"data.max_bad_fraction": 0.6})
    failing(_at(17, error=KilledError))
    with pytest.raises(KilledError):
        _train(config)
    (listed,) = (tmp_path / "run/quarantine").iterdir()
    before = listed.read_text()
    lost = [json.loads(line) for line in before.splitlines()]
    assert {one["path"] for one in lost} == {spoilt.path}
    assert sum(one["num_samples"] for one in lost) == spoilt.samples
    failing(lambda _: None)
    _train(config)
    assert listed.read_text() == before
    assert _rows(tmp_path / "run")[-2]["data/lost_images"] == spoilt.samples


def _refuse(*_: object) -> None:
    raise StoreError("too many open files")


def test_checkpoints_of_a_run_with_another_objective_are_not_taken(
    dataset: str, tmp_path: Path
) -> None:
    _train(_config(dataset, tmp_path / "one"))
    objective = {"objective.gamma": 1.0, "objective.alpha": 0.0}
    settings = SETTINGS | objective | {"data.uri": dataset, "run.dir": str(tmp_path / "two")}
    shutil.copytree(tmp_path / "one/checkpoints", tmp_path / "two/checkpoints")
    board = Board()
    with pytest.raises(UserError, match="none of the 4 checkpoints"):
        _train(load_config(None, settings), board)
    assert board.notes
    assert all("of another run, with objective=" in note for note in board.notes)


def test_second_time_after_an_interval_cuts_again(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None]
) -> None:
    failing(_at(7, 13))
    first, second = _train(_config(dataset, tmp_path))
    assert "0.5 times" in first
    assert "goes on from 0.08 kimg with 0.25 times" in second
    assert _factors(tmp_path)[-1] == (160, 0.25)


@pytest.mark.parametrize("killed_at", [9, 14])
def test_run_killed_after_the_cut_ends_like_one_that_was_not(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None], killed_at: int
) -> None:
    straight, killed = _config(dataset, tmp_path / "a"), _config(dataset, tmp_path / "b")
    failing(_at(7))
    _train(straight)

    def fail_and_die(number: int) -> None:
        _at(7)(number)
        _at(killed_at, error=KilledError)(number)

    failing(fail_and_die)
    with pytest.raises(KilledError):
        _train(killed)
    failing(lambda _: None)
    assert _train(killed) == []
    assert _weights(tmp_path / "b") == _weights(tmp_path / "a")
    assert _factors(tmp_path / "b") == _factors(tmp_path / "a")


def test_weights_spoilt_by_a_step_are_in_no_checkpoint(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[gan.state.TrainingState] = []
    real_enter = gan.state.TrainingState.enter
    monkeypatch.setattr(
        gan.state.TrainingState,
        "enter",
        lambda self, *args, **how: (states.append(self), real_enter(self, *args, **how))[1],
    )

    def spoil(number: int) -> None:
        if number == 7:
            next(states[-1].average.parameters()).data.fill_(float("nan"))

    failing(spoil)
    (note,) = _train(_config(dataset, tmp_path))
    assert "weights are not finite after 80 images; it goes on from 0.04 kimg" in note
    paths = list(tmp_path.glob("checkpoints/*/state.pt"))
    assert paths
    for path in paths:
        saved = torch.load(path, weights_only=True)
        assert all(value.isfinite().all() for value in saved["average"].values())


@pytest.mark.parametrize("stopped_at", [0, 7, 9, 12])
def test_run_told_to_stop_saves_what_it_has_and_ends_like_one_that_was_not(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None], stopped_at: int
) -> None:
    straight, stopped = _config(dataset, tmp_path / "a"), _config(dataset, tmp_path / "b")
    _train(straight)
    board = Board()

    def ask(number: int) -> None:
        board.asked = number == stopped_at

    failing(ask)
    _train(stopped, board)
    assert not (tmp_path / "b/model").exists()
    seen = (stopped_at + 1) * BATCH
    assert _checkpoints(tmp_path / "b")[-1] == f"checkpoint_000_{seen:012d}"
    assert _rows(tmp_path / "b")[-1]["images_seen"] == seen
    failing(lambda _: None)
    _train(stopped)
    assert _weights(tmp_path / "b") == _weights(tmp_path / "a")
    assert _factors(tmp_path / "b") == _factors(tmp_path / "a")


def test_run_told_to_stop_where_it_begins_writes_nothing(dataset: str, tmp_path: Path) -> None:
    for _ in range(2):
        _train(_config(dataset, tmp_path), Board(asked=True))
        assert _checkpoints(tmp_path) == []


def test_run_told_to_stop_where_it_was_resumed_leaves_that_checkpoint_alone(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None]
) -> None:
    failing(_at(6, error=KilledError))
    with pytest.raises(KilledError):
        _train(_config(dataset, tmp_path))
    (folder,) = (tmp_path / "checkpoints").glob("checkpoint_*")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    _train(_config(dataset, tmp_path), Board(asked=True))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert len(_checkpoints(tmp_path)) == 1


def test_deterministic_run_refuses_an_operation_that_is_not(
    dataset: str, tmp_path: Path, failing: Callable[[Fail], None]
) -> None:
    def write_one_place_twice(_: int) -> None:
        torch.zeros(1).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    failing(write_one_place_twice)
    config = _config(dataset, tmp_path)
    _train(config)
    strict = config.cluster.model_copy(update={"deterministic": True})
    other = config.run.model_copy(update={"dir": str(tmp_path / "strict")})
    try:
        with pytest.raises(RuntimeError, match="put_ does not have a deterministic"):
            _train(config.model_copy(update={"cluster": strict, "run": other}))
    finally:
        torch.use_deterministic_algorithms(False)
