"""Choosing one setting out of a few on validation."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

Choice = TypeVar("Choice")


def best_by_auroc(
    choices: Iterable[Choice],
    scores: Callable[[Choice], NDArray[np.floating]],
    abnormal: NDArray[np.bool_],
    told: dict[str, Any],
) -> Choice:
    """The choice whose scores of validation crops have the highest AUROC, the first among equals.

    Args:
        choices: what may be chosen.
        scores: [V] scores of the validation crops with a choice.
        abnormal: [V].
        told: takes `chosen` and `validation`, the AUROC of each choice.
    """
    found = {each: round(float(roc_auc_score(abnormal, scores(each))), 4) for each in choices}
    best = max(found, key=lambda each: found[each])
    told |= {"chosen": best, "validation": {str(each): value for each, value in found.items()}}
    return best
