"""The best model so far, by AUROC on validation images.

It lies in `best/<number>/` of the run directory. A better one is whole before it goes.
"""

import contextlib

from cluster.config import ObjectiveConfig
from cluster.errors import UserError
from cluster.model_store import MODEL, copy_model, delete_model, load_model, save_model
from data.errors import LostDataError
from data.preparation import Preparation
from data.store import Store
from gan.model import Architecture
from gan.state import TrainingState

BEST = "best"


class BestModel:
    """Keeps the best model, also of earlier starts of the same run.

    Args:
        run: Run directory.
        architecture: What is trained.
        preparation: How its images were prepared.
        objective: Weights it is trained with.
    """

    def __init__(
        self,
        run: Store,
        architecture: Architecture,
        preparation: Preparation,
        objective: ObjectiveConfig,
    ) -> None:
        self._run, self._architecture = run, architecture
        self._preparation, self._objective = preparation, objective
        self._best = _stored(run)

    def offer(self, state: TrainingState, auroc: float) -> float:
        """Keep the model if it is better than all before; returns the highest AUROC so far."""
        if self._best is None or auroc > self._best[0]:
            numbers = [int(old.rpartition("/")[2]) for old in _folders(self._run)]
            folder = f"{BEST}/{max(numbers, default=0) + 1:03d}"
            save_model(
                self._run,
                self._architecture,
                state.average,
                state.judge,
                preparation=self._preparation,
                objective=self._objective,
                images_seen=state.images_seen,
                folder=folder,
                validation_auroc=auroc,
            )
            self._best = auroc, folder
            for old in _folders(self._run) - {folder}:
                delete_model(self._run, old)
        return self._best[0]


def _folders(run: Store) -> set[str]:
    """Folders of best models, whole or not."""
    found = {path.split("/")[1] for path in run.list(f"{BEST}/") if path.count("/") > 1}
    return {f"{BEST}/{name}" for name in found if name.isdecimal()}


def _stored(run: Store) -> tuple[float, str] | None:
    """AUROC and folder of the best whole model; None without one."""
    found = []
    for folder in _folders(run):
        # One that is not whole was being written or deleted when the run was killed.
        with contextlib.suppress(UserError, LostDataError):
            auroc = load_model(run, folder).card.validation_auroc
            found.append((auroc or 0.0, folder))
    return max(found, default=None)


def finish_with_best(run: Store) -> bool:
    """Make the best model the finished one; returns False if there is none."""
    best = _stored(run)
    if best is None:
        return False
    copy_model(run, best[1], MODEL)
    return True
