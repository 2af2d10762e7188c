"""What an exact resume needs, on disk: one file all ranks share, one file for each rank.

A checkpoint is read back before it counts, and before it is used; see cluster.checkpoint_store.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from cluster.checkpoint_store import CheckpointStore, RefusedError, checkpoint_name
from cluster.config import Config
from cluster.ranks import Ranks
from data.dataset import INDEX_NAME
from data.store import Store
from gan.model import Architecture
from gan.state import TrainingState
from gan.step import NonFiniteError

_SHARED = "state.pt"


@dataclass
class Progress:
    """What a run remembers besides its `TrainingState`, the same on all ranks.

    Attributes:
        position: Position of the data streams.
        num_cuts: How often the learning rates were halved.
        last_cut: Images seen where training went on after the last cut; None before any.
        pending: Phase whose model, that of a checkpoint, is still to be measured, by its number.
    """

    position: dict[str, int] = field(default_factory=lambda: {"normal": 0, "abnormal": 0})
    num_cuts: int = 0
    last_cut: int | None = None
    pending: int | None = None


def identity_of(config: Config, architecture: Architecture, dataset: Store) -> dict[str, Any]:
    """What tells a run's checkpoints from another's."""
    return {
        "seed": config.run.seed,
        "objective": config.objective.model_dump(),
        "dataset": hashlib.sha256(dataset.read_bytes(INDEX_NAME)).hexdigest(),
    } | architecture.to_dict()


def save_checkpoint(
    checkpoints: CheckpointStore,
    state: TrainingState,
    progress: Progress,
    metrics: dict[str, float],
    *,
    ranks: Ranks,
    note: Callable[[str], None],
) -> None:
    """Make everything so far durable; all ranks must call it.

    Args:
        checkpoints: Where to.
        state: Training state of this rank.
        progress: What else the run remembers.
        metrics: Numbers to keep with it.
        ranks: This rank among all.
        note: Takes a line for people.

    Raises:
        NonFiniteError: If a number to be saved is not finite, on all ranks alike.
    """
    name = checkpoint_name(num_cuts=progress.num_cuts, images_seen=state.images_seen)
    check_finite(state)
    shared = state.state_dict() | asdict(progress)
    files = {}
    if ranks.rank == 0:
        files[_SHARED] = checkpoints.write(name, _SHARED, _saved(shared))
    file = _rank_file(ranks.rank)
    files[file] = checkpoints.write(name, file, _saved({"latents": state.latent_state()}))
    listings = ranks.gather(files)
    if ranks.rank == 0:
        try:
            checkpoints.finish(
                name,
                {file: digest for listing in listings for file, digest in listing.items()},
                images_seen=state.images_seen,
                world_size=ranks.world_size,
                metrics=metrics,
                pending=progress.pending,
            )
        except RefusedError as error:
            note(f"checkpoint {name} does not count, the one before it stays: {error}")


def note_measured(
    checkpoints: CheckpointStore,
    state: TrainingState,
    progress: Progress,
    metrics: dict[str, float],
) -> None:
    """Keep what was measured of the model with the checkpoint that was just saved of it."""
    name = checkpoint_name(num_cuts=progress.num_cuts, images_seen=state.images_seen)
    checkpoints.add_metrics(name, metrics)


def check_finite(state: TrainingState) -> None:
    """Raise `NonFiniteError`, on all ranks alike, if a number of the state is not finite."""
    if not _is_finite(state.state_dict()):
        raise NonFiniteError(f"weights are not finite after {state.images_seen} images")


def restore_checkpoint(
    checkpoints: CheckpointStore,
    state: TrainingState,
    *,
    ranks: Ranks,
    seed: int,
    note: Callable[[str], None],
) -> Progress:
    """Load the newest checkpoint that can be used into `state`; all ranks must call it.

    With as many ranks as wrote it the run goes on bit for bit. With another number the same images
    follow, but each rank draws its latents anew.

    Args:
        checkpoints: Where from.
        state: Training state of this rank, as training begins.
        ranks: This rank among all.
        seed: Seed of the run.
        note: Takes a line for people.

    Returns:
        What else the run remembers; that of a new run where there is no checkpoint.

    Raises:
        UserError: If there are checkpoints and none of them can be used.
    """
    # One rank decides, so that all take the same even where the store changes meanwhile.
    found = ranks.gather(checkpoints.newest(note) if ranks.rank == 0 else None)[0]
    if found is None:
        return Progress()
    name, manifest = found
    shared = _loaded(checkpoints.read(name, _SHARED))
    state.load_state_dict(shared)
    if manifest.world_size == ranks.world_size:
        own = _loaded(checkpoints.read(name, _rank_file(ranks.rank)))
        state.load_latent_state(own["latents"])
    else:
        state.renew_latents(seed, ranks.rank)
        if ranks.rank == 0:
            note(
                f"resumed with {ranks.world_size} instead of {manifest.world_size} workers: each "
                "image is still read once, but the latents drawn are others, so the weights will "
                "not be bit for bit those of a run without the change"
            )
    cuts = shared["num_cuts"], shared["last_cut"]
    return Progress(shared["position"], *cuts, pending=manifest.pending)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _is_finite(tree: Any) -> bool:
    if isinstance(tree, dict):
        return all(_is_finite(value) for value in tree.values())
    return not isinstance(tree, Tensor) or bool(tree.isfinite().all())


def _saved(tree: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def _loaded(payload: bytes) -> dict[str, Any]:
    tree: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return tree
