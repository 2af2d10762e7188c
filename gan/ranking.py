"""How well scores rank abnormal above normal, from counts at ascending scores alone.

Every function takes the number of normal and of abnormal things at each of K distinct scores,
lowest score first, as arrays [..., K]: images at their scores, or pixels in the bins of a
histogram. Ties are what share a place. NaN stands where one of the two is absent.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[Any]


def auroc(normal_K: Counts, abnormal_K: Counts) -> Floats:
    """Area under the ROC curve: P(abnormal > normal) + P(equal) / 2.

    Returns:
        Float [...] in [0, 1].
    """
    below_K = np.cumsum(normal_K, axis=-1) - 0.5 * normal_K
    pairs = normal_K.sum(axis=-1, dtype=np.float64) * abnormal_K.sum(axis=-1, dtype=np.float64)
    return _ratio((abnormal_K * below_K).sum(axis=-1), pairs)


def average_precision(normal_K: Counts, abnormal_K: Counts) -> Floats:
    """Mean over the abnormal of the precision at their own score; equal scores share one.

    Returns:
        Float [...] in (0, 1].
    """
    hits_K = _from_the_top(abnormal_K)
    precision_K = _ratio(hits_K, hits_K + _from_the_top(normal_K))
    # Where nothing lies at or above a score nothing abnormal lies at it.
    weighted = np.where(abnormal_K > 0, abnormal_K * precision_K, 0.0).sum(axis=-1)
    return _ratio(weighted, abnormal_K.sum(axis=-1, dtype=np.float64))


def fpr_at_recall(normal_K: Counts, abnormal_K: Counts, recall: float) -> Floats:
    """Share of normals at or above the highest score from which on `recall` is reached.

    Args:
        normal_K: Normals at each score.
        abnormal_K: Abnormals at each score.
        recall: Share of the abnormal that must be found, in (0, 1].

    Returns:
        Float [...] in [0, 1].
    """
    hits_K = _from_the_top(abnormal_K)
    total = hits_K[..., :1]
    # Counts are whole numbers, their products with a decimal fraction need not be.
    reached_K = hits_K >= recall * total * (1.0 - 1e-12)
    alarms_K = _ratio(_from_the_top(normal_K), normal_K.sum(axis=-1, keepdims=True))
    # `reached` holds from the lowest score up to the one that is asked for.
    last = reached_K.sum(axis=-1, keepdims=True) - 1
    found = np.take_along_axis(alarms_K, np.maximum(last, 0), axis=-1)[..., 0]
    return np.where(total[..., 0] > 0, found, np.nan)


def tie_error(normal_K: Counts, abnormal_K: Counts) -> Floats:
    """Most that `auroc` can be wrong by where a place holds several scores: half of its ties."""
    pairs = normal_K.sum(axis=-1, dtype=np.float64) * abnormal_K.sum(axis=-1, dtype=np.float64)
    ties = (normal_K.astype(np.float64) * abnormal_K).sum(axis=-1)
    return _ratio(0.5 * ties, pairs)


def _from_the_top(counts_K: Counts) -> Floats:
    """Things at or above each score."""
    return np.cumsum(counts_K[..., ::-1], axis=-1, dtype=np.float64)[..., ::-1]


def _ratio(part: Counts, whole: Counts) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.divide(part, whole), dtype=np.float64)
