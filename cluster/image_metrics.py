"""Image metrics and their intervals, at a cost that hardly grows with the number of images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gan.bootstrap import Interval, Ints, intervals, resample_groups, resample_sorts
from gan.ranking import auroc, average_precision, fpr_at_recall

RECALL = 0.95
"""Recall at which the false-positive rate is told."""

_MAX_PLACES = 2**12
"""Distinct scores kept apart in replicates; more only make intervals slow."""
_DECISIONS = ("normal", "review", "abnormal")
_UNDECIDED = -1

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Known:
    """Labelled images.

    Attributes:
        scores: [N] float64.
        abnormal: [N] bool, what the labels say.
        seen: [N] bool, of a kind of anomaly that training knew.
        decision: [N] int, index into normal, review, abnormal; -1 where none was made.
        at_best_f1: [N] bool, abnormal at the best F1 on validation; None where that is not known.
        kind: [N] kind.
        group: [N] int, number of the physical part.
    """

    scores: NDArray[np.float64]
    abnormal: Bools
    seen: Bools
    decision: Ints
    at_best_f1: Bools | None
    kind: NDArray[Any]
    group: Ints

    @classmethod
    def from_table(
        cls, known: pd.DataFrame, seen_kinds: Iterable[str], f1_threshold: float | None
    ) -> "Known":
        """Columns of a table of scores whose images all have a label."""
        scores = known["score"].to_numpy(np.float64)
        decisions = pd.Categorical(known["decision"], categories=_DECISIONS)
        return cls(
            scores=scores,
            abnormal=(known["label"] == "abnormal").to_numpy(),
            seen=known["kind"].isin(list(seen_kinds)).to_numpy(),
            decision=decisions.codes.astype(np.int64),
            at_best_f1=None if f1_threshold is None else scores >= f1_threshold,
            kind=known["kind"].to_numpy(),
            group=pd.factorize(known["group"], use_na_sentinel=False)[0].astype(np.int64),
        )


class Sorts:
    """Images counted by all that metrics ask of them: place of the score, label, decision.

    Normal images between the same two abnormal ones share a place, which changes no metric here.

    Args:
        known: The images.
        max_places: Places kept apart, the rest being joined with their neighbours.
    """

    def __init__(self, known: Known, max_places: int | None = None) -> None:
        place = _places(known.scores, known.abnormal)
        num_places = int(place.max()) + 1
        if max_places and num_places > max_places:
            place = place * max_places // num_places
        shape = (int(place.max()) + 1, 2, 2, len(_DECISIONS) + 1, 2)
        at_best = np.zeros_like(known.abnormal) if known.at_best_f1 is None else known.at_best_f1
        facts = (place, known.abnormal, known.seen, known.decision - _UNDECIDED, at_best)
        codes = np.ravel_multi_index(
            tuple(np.asarray(fact, dtype=np.int64) for fact in facts), shape
        )
        used, self.sort_N, self.counts = np.unique(codes, return_inverse=True, return_counts=True)
        place_K, abnormal_K, seen_K, decision_K, best_K = np.unravel_index(used, shape)
        self.abnormal = abnormal_K.astype(bool)
        self._place, self._num_places = place_K, shape[0]
        self._seen = seen_K.astype(bool)
        self._best = None if known.at_best_f1 is None else best_K.astype(bool)
        self._decision = decision_K + _UNDECIDED
        self._all_decided = bool((self._decision != _UNDECIDED).all())

    def measure(self, counts_K: NDArray[Any]) -> dict[str, float]:
        """All metrics, given how many images of each sort there are; NaN where undefined."""
        abnormal, normal_P = self.abnormal, self._at_places(counts_K, ~self.abnormal)
        abnormal_P = self._at_places(counts_K, abnormal)
        seen_P = self._at_places(counts_K, abnormal & self._seen)
        found: dict[str, Any] = {
            "auroc": auroc(normal_P, abnormal_P),
            "auroc_seen": auroc(normal_P, seen_P),
            "auroc_unseen": auroc(normal_P, abnormal_P - seen_P),
            "average_precision": average_precision(normal_P, abnormal_P),
            "fpr_at_95_recall": fpr_at_recall(normal_P, abnormal_P, RECALL),
            "best_f1": np.nan,
            **self._decided(counts_K),
        }
        if self._best is not None:
            found["best_f1"] = _confusion(counts_K, abnormal, self._best)["f1"]
        return {name: float(value) for name, value in found.items()}

    def _decided(self, counts_K: NDArray[Any]) -> dict[str, float]:
        flagged, passed = self._decision == 2, self._decision == 0
        found = _confusion(counts_K, self.abnormal, flagged)
        missed = counts_K[passed & self.abnormal].sum()
        found["escape_rate"] = _share(missed, counts_K[self.abnormal].sum())
        found["review_rate"] = _share(counts_K[self._decision == 1].sum(), counts_K.sum())
        return found if self._all_decided else dict.fromkeys(found, np.nan)

    def _at_places(self, counts_K: NDArray[Any], chosen: Bools) -> NDArray[np.float64]:
        weights = counts_K[chosen].astype(np.float64)
        at_P = np.bincount(self._place[chosen], weights=weights, minlength=self._num_places)
        return np.asarray(at_P, dtype=np.float64)


def image_metrics(known: Known, seed: int) -> tuple[dict[str, float], dict[str, Interval]]:
    """Every metric with its 95 % interval.

    Replicates draw images anew among the normal and among the abnormal; whole groups where some
    hold several images, then among those with and without an abnormal one. Scores at more than
    4,096 places are joined for them, not for the metrics themselves.

    Args:
        known: Labelled images, normal and abnormal ones.
        seed: Of the replicates.

    Returns:
        Metrics, NaN where undefined, and intervals by name. No intervals where a label has only one
        image or group, of which no draw says how much they vary.
    """
    exact, coarse = Sorts(known), Sorts(known, _MAX_PLACES)
    metrics = exact.measure(exact.counts)
    draws = _draws(known, coarse, np.random.default_rng(seed))
    if draws is None:
        return metrics, {}
    found = intervals(coarse.measure, draws)
    return metrics, {name: each for name, each in found.items() if np.isfinite(metrics[name])}


def auroc_by_kind(known: Known) -> dict[str, float]:
    """AUROC of the abnormal images of each kind against all normal ones."""
    normal = np.sort(known.scores[~known.abnormal])
    found = {}
    for kind in sorted(set(known.kind[known.abnormal])):
        scores = known.scores[known.abnormal & (known.kind == kind)]
        below = np.searchsorted(normal, scores, "left") + np.searchsorted(normal, scores, "right")
        found[str(kind)] = float(below.mean() / (2 * len(normal)))
    return found


def _draws(known: Known, sorts: Sorts, rng: np.random.Generator) -> Iterator[NDArray[Any]] | None:
    num_groups = int(known.group.max()) + 1
    if num_groups == len(known.group):
        units, strata = sorts.counts, sorts.abnormal.astype(np.int64)
        draws = resample_sorts(units, strata, rng)
    else:
        strata = np.zeros(num_groups, dtype=np.int64)
        strata[known.group[known.abnormal]] = 1
        units = np.ones_like(strata)
        draws = resample_groups(sorts.sort_N, known.group, strata, len(sorts.counts), rng)
    return draws if np.bincount(strata, weights=units)[np.unique(strata)].min() >= 2 else None


def _places(scores: NDArray[np.float64], abnormal: Bools) -> Ints:
    _, rank = np.unique(scores, return_inverse=True)
    holds_abnormal = np.bincount(rank[abnormal], minlength=int(rank.max()) + 1) > 0
    starts = holds_abnormal.copy()
    starts[1:] |= holds_abnormal[:-1]
    return np.asarray(np.cumsum(starts)[rank] - starts[0], dtype=np.int64)


def _confusion(counts_K: NDArray[Any], abnormal: Bools, flagged: Bools) -> dict[str, float]:
    hits, alarms = counts_K[flagged & abnormal].sum(), counts_K[flagged & ~abnormal].sum()
    num_abnormal = counts_K[abnormal].sum()
    return {
        "f1": _share(2 * hits, hits + alarms + num_abnormal),
        "precision": _share(hits, hits + alarms),
        "recall": _share(hits, num_abnormal),
        "false_positive_rate": _share(alarms, counts_K[~abnormal].sum()),
    }


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else float("nan")
