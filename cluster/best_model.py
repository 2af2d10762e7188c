"""The best model so far, by AUROC on validation images; it lies in best/ of the run directory."""

from cluster.config import ObjectiveConfig
from cluster.errors import UserError
from cluster.model_store import MODEL, copy_model, load_model, save_model
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
        self._auroc = stored_auroc(run)

    def offer(self, state: TrainingState, auroc: float) -> float:
        """Keep the model if it is better than all before; returns the highest AUROC so far."""
        if self._auroc is None or auroc > self._auroc:
            save_model(
                self._run,
                self._architecture,
                state.average,
                state.judge,
                preparation=self._preparation,
                objective=self._objective,
                images_seen=state.images_seen,
                folder=BEST,
                validation_auroc=auroc,
            )
            self._auroc = auroc
        return self._auroc


def stored_auroc(run: Store) -> float | None:
    """AUROC of the best model in a run directory; None without one that is whole."""
    try:
        return load_model(run, BEST).card.validation_auroc
    # Killed between weights and card; the run comes to that model again.
    except UserError:
        return None


def finish_with_best(run: Store) -> bool:
    """Make the best model the finished one; returns False if there is none."""
    if stored_auroc(run) is None:
        return False
    copy_model(run, BEST, MODEL)
    return True
