"""Two ranks without Ray: what one of them decides, or both meet, they do at the same step."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import cluster.stopping
import gan.state
from cluster.checkpoint_store import MANIFEST
from cluster.config import Config, load_config
from cluster.progress import ProgressBoard
from cluster.train_loop import train_worker
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.store import Store
from gan.step import NonFiniteError
from tests.jobs import TINY
from tests.training_runs import rows_of_steps

pytestmark = pytest.mark.timeout(600)

WORLD_SIZE = 2
BATCH = 8
SETTINGS = TINY | {
    "networks.resolution": 8,
    "schedule.batch": BATCH,
    "schedule.fade_kimg": 0.04,
    "schedule.steady_kimg": 0.04,
    "schedule.final_kimg": 0.08,
    "cluster.num_workers": WORLD_SIZE,
    "cluster.checkpoint_kimg": 0.04,
    "cluster.keep_checkpoints": 9,
}


def _train(rank: int, folder: str, config: Config, fail_at: int, stop_at: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD_SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE)
    context = SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: WORLD_SIZE)
    ray.train.get_context = lambda: context  # type: ignore[assignment]
    ray.train.report = lambda _: None  # type: ignore[assignment]
    ray.train.torch.get_device = lambda: torch.device("cpu")
    cluster.stopping._POLL_S = 0.0
    step, num_steps, notes = gan.state.training_step, 0, list[str]()

    def failing_step(*args: Any, **options: Any) -> dict[str, torch.Tensor]:
        nonlocal num_steps
        num_steps += 1
        if num_steps == fail_at:
            raise NonFiniteError("loss_d is nan")
        return step(*args, **options) | {"world_rank": torch.tensor(float(rank))}

    def stopping() -> SimpleNamespace:
        answer: Future[bool] = Future()
        answer.set_result(num_steps == stop_at)
        return SimpleNamespace(future=lambda: answer)

    gan.state.training_step = failing_step
    names = [name for name in vars(ProgressBoard) if not name.startswith("_")]
    answers: dict[str, Any] = {name: lambda *_: None for name in names}
    answers |= {"note": notes.append, "stopping": stopping}
    board = SimpleNamespace(
        **{name: SimpleNamespace(remote=answer) for name, answer in answers.items()}
    )
    tracking = {"uri": "http://127.0.0.1:9", "run_id": None}
    train_worker({"config": config.model_dump(), "tracking": tracking, "board": board})
    Path(f"{folder}/notes-{rank}").write_text("\n".join(notes))
    Path(f"{folder}/steps-{rank}").write_text(str(num_steps))
    dist.destroy_process_group()


def _run(folder: Path, *, fail_at: int = -1, stop_at: int = -1) -> Path:
    """Train on both ranks; returns the run directory."""
    counts = {"num_train_normal": 24, "num_train_abnormal": 8, "num_validation": 2, "num_test": 2}
    data = Store(str(folder / "data"))
    pack(
        synthetic_surfaces(resolution=8, seed=1, **counts),
        data,
        resolution=8,
        name="metal",
        seed=0,
        shard_samples=8,
    )
    run = folder / "run"
    config = load_config(None, SETTINGS | {"data.uri": data.uri, "run.dir": str(run)})
    spawn(_train, args=(str(folder), config, fail_at, stop_at), nprocs=WORLD_SIZE)
    return run


def _checkpoints(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob(f"checkpoints/*/{MANIFEST}"))


def test_both_ranks_go_back_and_on(tmp_path: Path) -> None:
    run = _run(tmp_path, fail_at=8)
    assert _checkpoints(run) == [
        "checkpoint_000_000000000040",
        *(f"checkpoint_001_{n:012d}" for n in (40, 80, 120, 160)),
    ]
    assert "goes on from 0.04 kimg with 0.5 times" in (tmp_path / "notes-0").read_text()
    assert (tmp_path / "notes-1").read_text() == ""
    assert (run / "model/model.json").is_file()
    assert {row["train/world_rank"] for row in rows_of_steps(run)} == {0.5}, "not rank 0 alone"


def test_stop_that_rank_0_hears_of_is_taken_by_both(tmp_path: Path) -> None:
    run = _run(tmp_path, stop_at=7)
    assert [(tmp_path / f"steps-{rank}").read_text() for rank in range(2)] == ["7", "7"]
    assert _checkpoints(run) == [f"checkpoint_000_{n:012d}" for n in (40, 7 * BATCH)]
    files = {path.name for path in (run / f"checkpoints/{_checkpoints(run)[-1]}").iterdir()}
    assert files == {"state.pt", "rank-00000.pt", "rank-00001.pt", MANIFEST}
