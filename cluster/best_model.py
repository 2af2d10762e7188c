"""The best model so far, by AUROC on validation images.

It lies in `best/<number>/` of the run directory. A better one is whole before it goes. One found
with other validation images or another search gives way to the first that is measured anew.
"""

import contextlib

from cluster.config import ObjectiveConfig
from cluster.errors import UserError
from cluster.model_store import (
    MODEL,
    ModelCard,
    copy_model,
    delete_model,
    load_model,
    save_model,
)
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
        measure: What AUROCs must have in common to be compared, see `cluster.validation`.
    """

    def __init__(
        self,
        run: Store,
        architecture: Architecture,
        preparation: Preparation,
        objective: ObjectiveConfig,
        *,
        measure: str,
    ) -> None:
        self._run, self._architecture = run, architecture
        self._preparation, self._objective = preparation, objective
        self._measure = measure
        stored = _stored(run)
        is_comparable = stored and stored[0].validation_measure == measure
        self._best = stored[0].validation_auroc if stored and is_comparable else None

    def offer(self, state: TrainingState, auroc: float) -> float:
        """Keep the model if it is better than all before; returns the highest AUROC so far."""
        if self._best is None or auroc > self._best:
            number = 1 + max(map(_number, _folders(self._run)), default=0)
            folder = f"{BEST}/{number:03d}"
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
                validation_measure=self._measure,
            )
            self._best = auroc
            for old in _folders(self._run) - {folder}:
                delete_model(self._run, old)
        return self._best


def _folders(run: Store) -> set[str]:
    """Folders of best models, whole or not."""
    found = {path.split("/")[1] for path in run.list(f"{BEST}/") if path.count("/") > 1}
    return {f"{BEST}/{name}" for name in found if name.isdecimal()}


def _number(folder: str) -> int:
    return int(folder.rpartition("/")[2])


def _stored(run: Store) -> tuple[ModelCard, str] | None:
    """Card and folder of the last whole model, the best when it came; None without one."""
    for folder in sorted(_folders(run), key=_number, reverse=True):
        # One that is not whole was being written or deleted when the run was killed.
        with contextlib.suppress(UserError, LostDataError):
            return load_model(run, folder).card, folder
    return None


def finish_with_best(run: Store) -> bool:
    """Make the best model the finished one; returns False if there is none."""
    best = _stored(run)
    if best is None:
        return False
    copy_model(run, best[1], MODEL)
    return True
