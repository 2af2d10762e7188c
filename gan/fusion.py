"""One score out of several terms of evidence, each measured by what normal images show.

A term on its own scale cannot be added to another. Each is therefore centred and scaled by the
validation normals; the score is the mean over the maps, plus a share of the logit. Which statistic
of the maps, and which share, is chosen on validation images where some are known to be abnormal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gan.evidence import LOGIT, STATISTICS, term_names
from gan.ranking import auroc

Float = NDArray[np.float64]
Terms = NDArray[np.floating]
LOGIT_WEIGHTS = (0.5, 0.25, 1.0, 0.0)
"""Shares of the logit that are tried; the first is taken where no validation image is known to be
abnormal, or where several do equally well."""
# Between these quantiles of a normal distribution lie two standard deviations.
_SPREAD = (0.1587, 0.8413)


@dataclass(frozen=True)
class Fusion:
    """How terms become a score.

    Attributes:
        names: Name of each of K terms.
        centre: What a normal image shows: the median.
        spread: How far normal images differ, as a standard deviation, above 0.
        weight: Weight of each centred and scaled term.
    """

    names: tuple[str, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    weight: tuple[float, ...]

    def scores(self, terms_NK: Terms) -> Float:
        """Score of each row of terms, float [N]."""
        scaled = (np.asarray(terms_NK, dtype=np.float64) - self.centre) / self.spread
        return np.asarray(scaled @ np.asarray(self.weight), dtype=np.float64)

    def image_scores(self, images: Sequence[Terms]) -> Float:
        """Score of each image, that of its most suspicious tile; float [N].

        Args:
            images: Terms of each image's tiles, [T, K] with T at least 1.
        """
        if not len(images):
            return np.empty(0)
        starts = np.cumsum([0, *(len(tiles) for tiles in images[:-1])])
        return np.maximum.reduceat(self.scores(np.concatenate(images)), starts)


def fit_fusion(normal: Sequence[Terms], abnormal: Sequence[Terms]) -> Fusion:
    """Fit the scale of each term, and choose the weights that tell validation images best apart.

    Args:
        normal: Terms of each validation normal's tiles, [T, K] in the order of
            `gan.evidence.term_names`; at least two images.
        abnormal: The same of known abnormal validation images; there may be none.
    """
    # Two statistics of the residual and of each level, and the logit.
    names = term_names(normal[0].shape[1] // 2 - 1)
    low, centre, high = np.quantile(np.concatenate(normal), (_SPREAD[0], 0.5, _SPREAD[1]), axis=0)
    spread = (high - low) / 2
    # What never changes on normal images has no scale, and says nothing.
    told = spread > 1e-9 * np.maximum(np.abs(centre), 1e-12)
    scale = np.where(told, spread, 1.0)
    candidates = [
        Fusion(names, _tuple(centre), _tuple(scale), _tuple(weight * told))
        for statistic in STATISTICS[::-1]
        for weight in _weights(names, statistic)
    ]
    if not abnormal:
        return candidates[0]
    aurocs = [_auroc(one.image_scores(normal), one.image_scores(abnormal)) for one in candidates]
    return candidates[int(np.argmax(aurocs))]


def _auroc(normal: Float, abnormal: Float) -> float:
    places, which = np.unique(np.concatenate([normal, abnormal]), return_inverse=True)
    parts = which[: len(normal)], which[len(normal) :]
    return float(auroc(*(np.bincount(part, minlength=len(places)) for part in parts)))


def _weights(names: Sequence[str], statistic: str) -> list[Float]:
    maps = np.array([float(name.endswith(f"/{statistic}")) for name in names])
    logit = np.array([float(name == LOGIT) for name in names])
    return [maps / maps.sum() + share * logit for share in LOGIT_WEIGHTS]


def _tuple(values: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
