"""One score and one map out of several terms of evidence, measured by what normal images show.

A term on its own scale cannot be added to another. Each is therefore centred and scaled by the
validation normals; the score is the mean over the differences, plus what each logit says against
the image, plus a share of the local contrast where it is asked for. Which statistic of the maps,
which differences and which share, is chosen on validation images where some are known to be
abnormal.

A logit accuses and never acquits. D was told that defects which hide in the training set are real:
that it finds an image real says nothing, so that a logit counts by its softplus. And its weight is
not chosen: it knows best the very defects that would choose, and would drown what tells the others.
A D that was shown no known defect has nothing to accuse of: its logits are about G alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from gan.evidence import LOCAL_CONTRAST, LOGIT, RESIDUAL, term_names
from gan.ranking import auroc

Float = NDArray[np.float64]
Terms = NDArray[np.floating]
STATISTICS = ("window", "mean", "peak")
RESIDUAL_WEIGHTS = (1.0, 0.0)
CONTRAST_WEIGHTS = (0.5, 1.0)
"""What is tried; the first of each is taken where no validation image is known to be abnormal, or
where several do equally well. A weight of the residual is relative to that of a feature level.
Local contrast always counts: what tells no known defect apart may be what tells the next."""
VERSION = 3
"""Raised when the same numbers score otherwise. 1: logits counted on both sides of their centre. 2:
they counted also where D was shown no known defect."""
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
        version: `VERSION` of the code that fitted it.
    """

    names: tuple[str, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    weight: tuple[float, ...]
    version: int = VERSION

    def scores(self, terms_NK: Terms) -> Float:
        """Score of each row of terms, float [N]."""
        scaled = (np.asarray(terms_NK, dtype=np.float64) - self.centre) / self.spread
        is_logit = [name.startswith(LOGIT) for name in self.names]
        scaled = np.where(is_logit, np.logaddexp(0.0, scaled), scaled)
        # Row by row: the last bit of a matrix product depends on how many rows there are.
        return np.asarray((scaled * self.weight).sum(axis=1), dtype=np.float64)

    def without_logits(self) -> "Fusion":
        """The same but for what D's logits say."""
        pairs = zip(self.names, self.weight, strict=True)
        kept = tuple(0.0 if name.startswith(LOGIT) else weight for name, weight in pairs)
        return replace(self, weight=kept)

    def image_scores(self, images: Sequence[Terms]) -> Float:
        """Score of each image, that of its most suspicious tile; float [N].

        Args:
            images: Terms of each image's tiles, [T, K] with T at least 1.
        """
        return _largest(self.scores, images)

    def map_weights(self, *, with_logit: bool = False) -> Mapping[str, float]:
        """Weight of each map of the evidence by name: their sum shows what the score rests on.

        Args:
            with_logit: Whether the one logit of a whole image has a weight. It is nowhere in
                particular, so that it only helps where the image is a tile as small as a defect.
        """
        result = {}
        for name, spread, weight in zip(self.names, self.spread, self.weight, strict=True):
            map_name = name.partition("/")[0]
            if weight and (with_logit or map_name != LOGIT):
                result[map_name] = weight / spread
        return result

    def map_peaks(self, images: Sequence[Terms], *, with_logit: bool = False) -> Float:
        """The most that each image's map can reach: where all its maps peak at one place; [N].

        Args:
            images: Terms of each image's tiles, [T, K] with T at least 1.
            with_logit: As in `map_weights`.
        """
        map_weights = self.map_weights(with_logit=with_logit)
        columns = [self.names.index(f"{name}/peak") for name in map_weights]
        signed = np.array([name.startswith(LOGIT) for name in map_weights])
        weights = np.array([*map_weights.values()])

        def peaks(terms_NK: Terms) -> Float:
            found = np.asarray(terms_NK, dtype=np.float64)[:, columns]
            places = np.where(signed, np.logaddexp(0.0, found), found)
            return np.asarray((places * weights).sum(axis=1))

        return _largest(peaks, images)


def fit_fusion(
    maps: Sequence[str], normal: Sequence[Terms], abnormal: Sequence[Terms], *, alpha: float
) -> Fusion:
    """Fit the scale of each term, and choose the weights that tell validation images best apart.

    Args:
        maps: Names of the maps of the evidence.
        normal: Terms of each validation normal's tiles, [T, K] in the order of
            `gan.evidence.term_names`; at least two images.
        abnormal: The same of known abnormal validation images; there may be none.
        alpha: Weight of known abnormal images in training; where it is 0 logits do not count.
    """
    names = term_names(maps)
    low, centre, high = np.quantile(np.concatenate(normal), (_SPREAD[0], 0.5, _SPREAD[1]), axis=0)
    spread = (high - low) / 2
    # What never changes on normal images has no scale, and says nothing.
    told = spread > 1e-9 * np.maximum(np.abs(centre), 1e-12)
    scale = np.where(told, spread, 1.0)
    candidates = [
        Fusion(names, _tuple(centre), _tuple(scale), _tuple(weight * told))
        for weight in _candidates(maps, with_logits=alpha > 0)
    ]
    if not abnormal:
        return candidates[0]
    aurocs = [_auroc(one.image_scores(normal), one.image_scores(abnormal)) for one in candidates]
    return candidates[int(np.argmax(aurocs))]


def _candidates(maps: Sequence[str], *, with_logits: bool) -> list[Float]:
    """Weights of all terms, one array for each choice."""
    is_logit = np.array([name.startswith(LOGIT) for name in maps])
    is_contrast = np.array(maps) == LOCAL_CONTRAST
    result = []
    contrasts = CONTRAST_WEIGHTS if is_contrast.any() else (0.0,)
    for statistic, residual, contrast in product(STATISTICS, RESIDUAL_WEIGHTS, contrasts):
        differing = np.where(np.array(maps) == RESIDUAL, residual, 1.0) * ~is_logit * ~is_contrast
        weights = differing / max(differing.sum(), 1.0) + contrast * is_contrast
        weights += is_logit * with_logits
        columns = [name.endswith(f"/{statistic}") for name in term_names(maps)]
        term_weights = np.zeros(len(columns))
        term_weights[columns] = weights
        result.append(term_weights)
    return result


def _largest(measure: Callable[[Terms], Float], images: Sequence[Terms]) -> Float:
    """The largest value among each image's tiles."""
    if not len(images):
        return np.empty(0)
    starts = np.cumsum([0, *(len(tiles) for tiles in images[:-1])])
    return np.maximum.reduceat(measure(np.concatenate(images)), starts)


def _auroc(normal: Float, abnormal: Float) -> float:
    places, which = np.unique(np.concatenate([normal, abnormal]), return_inverse=True)
    parts = which[: len(normal)], which[len(normal) :]
    return float(auroc(*(np.bincount(part, minlength=len(places)) for part in parts)))


def _tuple(values: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
