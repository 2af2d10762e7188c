"""What an exact resume needs, on disk: one file all ranks share, one file for each rank.

Ray Train keeps the files of all ranks in one folder, moves it to the run's store, and hands the
newest one back after a failure or when the same command is run again.
"""

import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch

from cluster.errors import UserError
from gan.state import TrainingState

SCHEMA_VERSION = 1
_SHARED = "state.pt"


def report_checkpoint(
    state: TrainingState,
    position: dict[str, int],
    metrics: dict[str, float],
    *,
    rank: int,
    world_size: int,
) -> None:
    """Save this rank's share of a checkpoint and hand it to Ray Train; all ranks must call it.

    Args:
        state: Training state of this rank.
        position: Position of this rank's data streams.
        metrics: Numbers to report with it.
        rank: This rank.
        world_size: Number of ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0:
            shared = state.state_dict() | {
                "schema_version": SCHEMA_VERSION,
                "world_size": world_size,
            }
            torch.save(shared, Path(folder) / _SHARED)
        own = {"latents": state.latent_state(), "position": position}
        torch.save(own, Path(folder) / _rank_file(rank))
        ray.train.report(
            metrics | {"images_seen": state.images_seen},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
        )


def restore_checkpoint(
    state: TrainingState, *, rank: int, world_size: int
) -> dict[str, int] | None:
    """Load the checkpoint Ray Train offers into `state`.

    Returns:
        Position of this rank's data streams; None if training starts from the beginning.

    Raises:
        UserError: If the checkpoint is of another version or number of workers.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        shared = _load(Path(folder) / _SHARED)
        if shared["schema_version"] != SCHEMA_VERSION:
            raise UserError(
                f"{checkpoint.path} has schema_version={shared['schema_version']}, this version "
                f"reads {SCHEMA_VERSION}; resume with that version or take another run.dir"
            )
        if shared["world_size"] != world_size:
            raise UserError(
                f"{checkpoint.path} was written by {shared['world_size']} workers; resume with "
                f"cluster.num_workers={shared['world_size']}, not {world_size}"
            )
        state.load_state_dict(shared)
        own = _load(Path(folder) / _rank_file(rank))
    state.load_latent_state(own["latents"])
    position: dict[str, int] = own["position"]
    return position


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
