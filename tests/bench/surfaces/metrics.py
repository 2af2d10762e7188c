"""How well crops, whole pictures and pixels are told apart, with intervals that draw parts anew."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.pixel_metrics import NUM_BINS, NUM_BLOCKS, PixelCounts, aupro
from data.tiles import assemble
from gan.bootstrap import NUM_REPLICATES, percentiles, resample_groups, resample_sorts
from gan.evidence import strongest_window
from gan.ranking import auroc
from tests.bench.surfaces.crops import GOOD, MIN_DEFECT_PIXELS, Crops, Picture

LEVELS = ("crop", "image", "image_map", "pixel_auroc", "aupro")
"""AUROC of crops; of pictures by their strongest crop, and by the strongest window of their map;
of pixels; and the area under the per-region overlap up to a false-positive rate of 0.3."""
ALL, MEAN = "all", "mean"
"""Of all abnormal ones together, and the mean over the kinds of defect."""
WINDOW = 9
_DRAWS = 50
# Knots of `_share`: shares of pixels at or above, and the level they get.
_TAILS = np.geomspace(1.0, 1e-5, 1024)
_LEVELS = np.geomspace(2.0**-12, 2.0**3.9, 1024)

Floats = NDArray[np.floating]
Found = dict[str, list[float | None]]
"""By `ALL`, `MEAN` and kind: value and both ends of its 95 % interval, None where undefined."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Test pictures with what a detector said.

    Attributes:
        pictures: the pictures.
        scores: [P] score of each, that of its strongest crop.
        maps: of each picture, [H, W] at the size of the halved photograph.
    """

    pictures: list[Picture]
    scores: Floats
    maps: list[Floats]


def judged(pictures: Sequence[Picture], crops: Crops, scores: Floats, maps: Floats) -> Judged:
    """Put crops together to the pictures they are of.

    Args:
        pictures: all pictures of the study.
        crops: N crops, all of each picture.
        scores: [N].
        maps: [N, 64, 64].
    """
    found, places = np.unique(crops.picture, return_inverse=True)
    whole = []
    for number, picture in zip(range(len(found)), (pictures[i] for i in found), strict=True):
        rows = np.flatnonzero(places == number)
        offsets = zip(crops.y[rows], crops.x[rows], strict=True)
        joined = assemble(maps[rows], offsets, *picture.pixels.shape)
        whole.append(joined[: picture.height, : picture.width])
    strongest = np.full(len(found), -np.inf)
    np.maximum.at(strongest, places, scores)
    return Judged([pictures[i] for i in found], strongest, whole)


def measure(
    pictures: Sequence[Picture], crops: Crops, scores: Floats, maps: Floats, seed: int = 0
) -> dict[str, Found]:
    """All of `LEVELS`, each by `ALL`, `MEAN` and kind; arguments as in `judged`."""
    kinds = np.array([one.kind for one in pictures])[crops.picture]
    parts = np.array([one.part for one in pictures])[crops.picture]
    told = (kinds == GOOD) | (crops.num_defect_pixels >= MIN_DEFECT_PIXELS)
    whole = judged(pictures, crops, scores, maps)
    image_kinds = np.array([one.kind for one in whole.pictures])
    image_parts = np.array([one.part for one in whole.pictures])
    strongest = np.array([_peak(one) for one in whole.maps])
    return {
        "crop": aurocs(scores[told], kinds[told], parts[told], seed),
        "image": aurocs(whole.scores, image_kinds, image_parts, seed),
        "image_map": aurocs(strongest, image_kinds, image_parts, seed),
        **pixel_levels(whole, seed),
    }


def _peak(map_HW: Floats) -> float:
    return float(strongest_window(torch.from_numpy(np.ascontiguousarray(map_HW))[None], WINDOW))


def aurocs(
    scores: Floats, kinds: NDArray[np.str_], parts: NDArray[np.str_], seed: int = 0
) -> Found:
    """AUROC of each kind of defect against everything good.

    What the scores of two parts say of each other is counted once; a replicate is then a quadratic
    form of how often each part was drawn. Parts with and without a defect are drawn apart.

    Args:
        scores: [N], high for abnormal.
        kinds: [N] `GOOD` or a kind of defect.
        parts: [N] physical part.
        seed: of the replicates.
    """
    names, part_N = np.unique(parts, return_inverse=True)
    num, good = len(names), kinds == GOOD
    normal_G = np.bincount(part_N[good], minlength=num)
    wins, counts = {}, {}
    for kind in sorted(set(kinds[~good])):
        chosen = kinds == kind
        counts[str(kind)] = np.bincount(part_N[chosen], minlength=num)
        wins[str(kind)] = _wins(scores, chosen, good, part_N, num)

    def measured(drawn_RG: Floats) -> dict[str, Floats]:
        pairs = {kind: (drawn_RG @ each) * (drawn_RG @ normal_G) for kind, each in counts.items()}
        won = {kind: ((drawn_RG @ each) * drawn_RG).sum(axis=1) for kind, each in wins.items()}
        return _with_mean(won, pairs)

    strata = (np.sum(list(counts.values()), axis=0) > 0).astype(np.int64)
    own = np.arange(num)
    draws = resample_groups(own, own, strata, num, np.random.default_rng(seed))
    return _found(measured(np.ones((1, num))), measured(_stacked(draws, NUM_REPLICATES)))


def _wins(
    scores: Floats,
    abnormal: NDArray[np.bool_],
    good: NDArray[np.bool_],
    part_N: NDArray[np.int64],
    num: int,
) -> Floats:
    """[G, G] pairs of an abnormal one of part g above a normal one of part h, ties half."""
    found = np.zeros((num, num))
    for part in np.unique(part_N[good]):
        normal = np.sort(scores[good & (part_N == part)])
        asked = scores[abnormal]
        below = np.searchsorted(normal, asked, "left") + np.searchsorted(normal, asked, "right")
        found[:, part] = np.bincount(part_N[abnormal], weights=below / 2, minlength=num)
    return found


def _with_mean(won: Mapping[str, Floats], pairs: Mapping[str, Floats]) -> dict[str, Floats]:
    with np.errstate(invalid="ignore", divide="ignore"):
        by_kind = {kind: each / pairs[kind] for kind, each in won.items()}
        everything = np.sum(list(won.values()), axis=0) / np.sum(list(pairs.values()), axis=0)
    return {ALL: everything, MEAN: np.mean(list(by_kind.values()), axis=0), **by_kind}


def _found(exact: dict[str, Floats], replicates: dict[str, Floats]) -> Found:
    found: Found = {}
    for name, value in exact.items():
        low, high = percentiles(np.asarray(replicates[name])) or (None, None)
        ends = (float(value[0]), low, high)
        found[name] = [None if end is None else round(end, 4) for end in ends]
    return found


def _stacked(draws: Iterator[NDArray[Any]], num: int) -> Floats:
    return np.stack([next(draws) for _ in range(num)]).astype(np.float64)


def pixel_levels(whole: Judged, seed: int = 0) -> dict[str, Found]:
    """Pixel AUROC and AUPRO of each kind's pictures together with all good ones."""
    share = _share(whole.maps)
    kinds = sorted({one.kind for one in whole.pictures})
    counts = {kind: PixelCounts() for kind in kinds}
    for picture, one in zip(whole.pictures, whole.maps, strict=True):
        mask = picture.mask[: picture.height, : picture.width]
        counts[picture.kind].add(share(one), mask, picture.part)
    histograms = {kind: np.stack(each.histograms) for kind, each in counts.items()}
    good = histograms.pop(GOOD, np.zeros((3, NUM_BLOCKS, NUM_BINS)))
    everything = np.sum([good, *histograms.values()], axis=0)
    sets = {ALL: everything} | {kind: good + each for kind, each in histograms.items()}

    def measured(drawn_RB: Floats) -> dict[str, dict[str, Floats]]:
        found: dict[str, dict[str, Floats]] = {"pixel_auroc": {}, "aupro": {}}
        for name, each in sets.items():
            normal, abnormal, overlap = drawn_RB @ each
            found["pixel_auroc"][name] = auroc(normal, abnormal)
            found["aupro"][name] = aupro(normal, overlap)
        for by_set in found.values():
            by_set[MEAN] = np.mean([by_set[kind] for kind in histograms], axis=0)
        return found

    used, defect = (everything[:2].sum(axis=(0, 2)) > 0), everything[1].sum(axis=1) > 0
    rng = np.random.default_rng(seed)
    draws = resample_sorts(used.astype(np.int64), defect.astype(np.int64), rng)
    parts = [measured(_stacked(draws, _DRAWS)) for _ in range(NUM_REPLICATES // _DRAWS)]
    exact = measured(np.ones((1, NUM_BLOCKS)))
    return {
        level: _found(
            found, {name: np.concatenate([part[level][name] for part in parts]) for name in found}
        )
        for level, found in exact.items()
    }


def _share(maps: Sequence[Floats]) -> Callable[[Floats], Floats]:
    """What makes maps fill the bins of `PixelCounts` evenly in their tail; it keeps the order.

    The areas are the same for every growing function of the maps, so these pixels may be used.
    """
    pixels = np.concatenate([np.ravel(one) for one in maps])
    values, first = np.unique(np.quantile(pixels, 1 - _TAILS), return_index=True)
    return lambda map_HW: np.asarray(np.interp(map_HW, values, _LEVELS[first]))
