"""Pixel AUROC and AUPRO of any number of maps, from histograms that can be added up.

Maps are counted into bins as images pass by and never kept. Blocks of images keep histograms of
their own, so that intervals come from drawing blocks anew: random groups (Wolter 2007, chapter 2).
Memory depends neither on the number of images nor on their size.
"""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gan.bootstrap import NUM_REPLICATES, Interval, percentiles, resample_sorts
from gan.ranking import auroc, tie_error

Floats = NDArray[np.float64]

NUM_BLOCKS = 128
"""Blocks that the groups of images are dealt to."""
NUM_BINS = 4096
"""Bins of a histogram: 256 in each doubling, from 2^-12 to 2^4 of the maps' full scale."""
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""Which pixels beside one belong to its region."""
FPR_LIMIT = 0.3
"""False-positive rate up to which AUPRO is taken (Bergmann et al. 2021)."""

_DRAWS = 50
"""Replicates held at a time."""
_HISTOGRAMS = ("normal", "abnormal", "overlap")
_MANTISSA_BITS = 8
_SHIFT = 23 - _MANTISSA_BITS
_LOWEST_EXPONENT = -12
_FIRST = (127 + _LOWEST_EXPONENT) << _MANTISSA_BITS


def bin_of(level: NDArray[np.floating]) -> NDArray[np.int64]:
    """Bin of each value: the leading bits of a float32, which order as the values do.

    A bin is at most 1/256 of its values wide; what lies outside falls into the first or last bin.

    Args:
        level: Map values as shares of full scale, at least 0.
    """
    bits = np.ascontiguousarray(level, dtype=np.float32).view(np.int32) >> _SHIFT
    return np.clip(bits.astype(np.int64) - _FIRST, 0, NUM_BINS - 1)


@dataclass
class PixelCounts:
    """What the maps of some images add up to.

    Attributes:
        normal: [NUM_BLOCKS, NUM_BINS] int64, normal pixels.
        abnormal: [NUM_BLOCKS, NUM_BINS] int64, defect pixels.
        overlap: [NUM_BLOCKS, NUM_BINS] float64, shares of defect regions: each region adds up to 1.
        num_images: Images counted.
        num_without_mask: Abnormal images not counted, because no mask tells where the defect is.
    """

    normal: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((NUM_BLOCKS, NUM_BINS), np.int64)
    )
    abnormal: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((NUM_BLOCKS, NUM_BINS), np.int64)
    )
    overlap: Floats = field(default_factory=lambda: np.zeros((NUM_BLOCKS, NUM_BINS)))
    num_images: int = 0
    num_without_mask: int = 0

    def add(self, level_HW: NDArray[np.floating], defect_HW: NDArray[np.bool_], group: str) -> None:
        """Count one image.

        Args:
            level_HW: Its map as a share of full scale.
            defect_HW: Its defect pixels.
            group: Its physical part; the images of one stay in one block.
        """
        assert level_HW.shape == defect_HW.shape, "map and mask differ in size"
        block = zlib.crc32(group.encode()) % NUM_BLOCKS
        bins_HW = bin_of(level_HW)
        self.normal[block] += np.bincount(bins_HW[~defect_HW], minlength=NUM_BINS)
        self.num_images += 1
        if not defect_HW.any():
            return
        self.abnormal[block] += np.bincount(bins_HW[defect_HW], minlength=NUM_BINS)
        regions_HW, _ = ndimage.label(defect_HW, structure=EIGHT_NEIGHBOURS)
        areas = np.bincount(regions_HW.ravel())
        shares = 1.0 / areas[regions_HW[defect_HW]]
        self.overlap[block] += np.bincount(bins_HW[defect_HW], weights=shares, minlength=NUM_BINS)

    @property
    def histograms(self) -> tuple[Floats, Floats, Floats]:
        """Normal pixels, defect pixels, shares of regions: each [NUM_BLOCKS, NUM_BINS]."""
        return self.normal.astype(np.float64), self.abnormal.astype(np.float64), self.overlap

    def to_bytes(self) -> bytes:
        """All of it, the same bytes for the same counts; most bins of most blocks are empty."""
        arrays = {"images": np.array([self.num_images, self.num_without_mask])}
        for name in _HISTOGRAMS:
            values = getattr(self, name).ravel()
            used = np.flatnonzero(values)
            arrays |= {f"{name}_at": used.astype(np.int32), name: values[used]}
        buffer = io.BytesIO()
        # numpy's types take the mapping for its other, named argument.
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def add_bytes(self, payload: bytes) -> None:
        """Add what `to_bytes` wrote of other images.

        Raises:
            ValueError: If the bytes are nothing of that sort.
        """
        try:
            with np.load(io.BytesIO(payload), allow_pickle=False) as saved:
                read = {name: saved[name] for name in saved.files}
            num_images, num_without_mask = map(int, read["images"])
            for name in _HISTOGRAMS:
                getattr(self, name).reshape(-1)[read[f"{name}_at"]] += read[name]
        except Exception as error:
            raise ValueError(f"no counts of pixels ({type(error).__name__}: {error})") from error
        self.num_images += num_images
        self.num_without_mask += num_without_mask


def aupro(normal_K: NDArray[Any], overlap_K: NDArray[Any], limit: float = FPR_LIMIT) -> Floats:
    """Area under the per-region-overlap curve up to a false-positive rate, as a share of `limit`.

    PRO(t) is the mean over connected defect regions (8 neighbours) of the share of their pixels at
    or above t, FPR(t) the share of all normal pixels, those beside defects included (Bergmann et
    al. 2021, "The MVTec anomaly detection dataset", section 4.3). Straight lines join the points.

    Args:
        normal_K: [..., K] normal pixels at ascending values.
        overlap_K: [..., K] shares of regions at them.
        limit: False-positive rate to stop at, in (0, 1].

    Returns:
        Float [...] in [0, 1]; NaN without normal pixels or without regions.
    """
    fpr, pro = _curve(normal_K), _curve(overlap_K)
    step = np.diff(fpr, axis=-1)
    left = fpr[..., :-1]
    # The share of each step that lies below the limit.
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.clip(np.where(step > 0, (limit - left) / step, 0.0), 0.0, 1.0)
    height = pro[..., :-1] + 0.5 * inside * np.diff(pro, axis=-1)
    area: Floats = (step * inside * height).sum(axis=-1) / limit
    return area


def aupro_error(
    normal_K: NDArray[Any], overlap_K: NDArray[Any], limit: float = FPR_LIMIT
) -> Floats:
    """Most that `aupro` can be wrong by because pixels of one bin count as equal.

    Inside a bin the curve runs anywhere between its two ends: half of a rectangle on either side.
    """
    fpr, pro = _curve(normal_K), _curve(overlap_K)
    reached = fpr[..., :-1] < limit
    error: Floats = (0.5 * reached * np.diff(fpr) * np.diff(pro)).sum(axis=-1) / limit
    return error


def pixel_metrics(counts: PixelCounts, seed: int) -> tuple[dict[str, float], dict[str, Interval]]:
    """Both metrics, how exact they are, and 95 % intervals.

    Intervals draw blocks anew, among those with and those without defect pixels.

    Args:
        counts: What was counted.
        seed: Of the replicates.

    Returns:
        `pixel_auroc`, `aupro` and `pixel_resolution`, NaN where there are no normal or no defect
        pixels; intervals by name, none where all defects lie in one block.
    """
    histograms = counts.histograms
    normal, abnormal, overlap = histograms
    metrics = {k: float(v) for k, v in _measure(histograms, np.ones(NUM_BLOCKS)).items()}
    errors = (
        tie_error(normal.sum(axis=0), abnormal.sum(axis=0)),
        aupro_error(normal.sum(axis=0), overlap.sum(axis=0)),
    )
    metrics["pixel_resolution"] = float(np.max(errors))
    shows_defect = (abnormal > 0).any(axis=1)
    if shows_defect.sum() < 2:
        return metrics, {}
    used = shows_defect | (normal > 0).any(axis=1)
    strata = np.asarray(shows_defect, dtype=np.int64)
    draws = resample_sorts(np.asarray(used, np.int64), strata, np.random.default_rng(seed))
    parts = [_measure(histograms, _stacked(draws)) for _ in range(NUM_REPLICATES // _DRAWS)]
    found = {name: percentiles(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    return metrics, {name: each for name, each in found.items() if each}


def _measure(histograms: tuple[Floats, ...], weights: Floats) -> dict[str, Floats]:
    """The metrics of blocks taken `weights` times, [NUM_BLOCKS] or [R, NUM_BLOCKS]."""
    normal, abnormal, overlap = (weights @ each for each in histograms)
    return {"pixel_auroc": auroc(normal, abnormal), "aupro": aupro(normal, overlap)}


def _stacked(draws: Iterator[NDArray[Any]]) -> Floats:
    return np.stack([next(draws) for _ in range(_DRAWS)]).astype(np.float64)


def _curve(counts_K: NDArray[Any]) -> Floats:
    """Share at or above each value, from the highest down, beginning with 0."""
    cumulated = np.cumsum(counts_K[..., ::-1], axis=-1, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = cumulated / cumulated[..., -1:]
    start = np.zeros((*shares.shape[:-1], 1))
    curve: Floats = np.concatenate([start, shares], axis=-1)
    return curve
