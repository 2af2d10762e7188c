"""Where scores stop being normal: thresholds fitted on validation scores, and what they promise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = Sequence[float] | Floats
Rule = Literal["false_positive_rate", "best_f1", "zero_escape", "reject_band"]
Decision = Literal["normal", "review", "abnormal"]
_ASCENDING: tuple[Decision, ...] = get_args(Decision)
RULES: tuple[Rule, ...] = get_args(Rule)
NEED_ABNORMAL: tuple[Rule, ...] = ("best_f1", "zero_escape", "reject_band")
"""Rules that cannot be fitted without known abnormal images."""
NEED_NORMAL: tuple[Rule, ...] = ("false_positive_rate", "reject_band")
"""Rules that need enough normal images for the false-positive rate."""

# Products such as 0.3 * 10 come out a little below the whole number they stand for.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Thresholds:
    """Scores below `low` are normal, those from `high` on abnormal, those between for review.

    Attributes:
        low: Lowest score that is not normal.
        high: Lowest score that is abnormal; equal to `low` where nothing is left for review.
    """

    low: float
    high: float

    def decide(self, scores: Scores) -> list[Decision]:
        """The decision on each score."""
        bounds = np.array([self.low, self.high])
        return [_ASCENDING[i] for i in np.searchsorted(bounds, scores, side="right")]


def fit_thresholds(
    rule: Rule,
    normal_scores: Scores,
    abnormal_scores: Scores,
    *,
    false_positive_rate: float,
    miss_rate: float,
) -> Thresholds:
    """Fit one rule on validation scores.

    - `false_positive_rate`: a normal image is called abnormal with probability at most that rate.
    - `best_f1`: best F1 on the scores given.
    - `zero_escape`: the highest threshold at which none of the abnormal scores given is missed.
    - `reject_band`: two split-conformal tests, one against normals at `false_positive_rate`, one
      against defects at `miss_rate`. Where exactly one of the two labels is refused the other is
      decided; where both fit, or neither, a person looks.

    Args:
        rule: Which of them.
        normal_scores: Scores of the n validation normals.
        abnormal_scores: Scores of known abnormal validation images.
        false_positive_rate: Share of normals that may be called abnormal, in (0, 1).
        miss_rate: Share of defects that a reject band may call normal, in [0, 1); 0 stands for the
            least there is, no known one.

    Raises:
        ValueError: If there are too few scores for what is asked.
    """
    if rule in NEED_ABNORMAL and not len(abnormal_scores):
        raise ValueError(
            f"the rule {rule} needs known abnormal validation images, there are none; "
            "without them only the rule false_positive_rate works"
        )
    if rule == "best_f1":
        return _single(best_f1_threshold(normal_scores, abnormal_scores))
    if rule == "zero_escape":
        return _single(escape_threshold(abnormal_scores, 0.0))
    # From the next number on is the same as strictly above.
    alarm = float(np.nextafter(conformal_threshold(normal_scores, false_positive_rate), np.inf))
    if rule == "false_positive_rate":
        return _single(alarm)
    escape = escape_threshold(abnormal_scores, miss_rate)
    return Thresholds(low=min(alarm, escape), high=max(alarm, escape))


def conformal_p_values(scores: Scores, normal_scores: Scores) -> Floats:
    """Split-conformal p-value of each score: (1 + #{normal >= score}) / (n + 1).

    For a normal image exchangeable with the validation normals, P(p <= q) <= q for every q,
    whatever the distribution of scores (Vovk et al. 2005).

    Args:
        scores: Scores to judge.
        normal_scores: Scores of the n validation normals.

    Returns:
        Float [len(scores)] in [1 / (n + 1), 1].
    """
    ascending = np.sort(np.asarray(normal_scores, dtype=np.float64))
    at_least = len(ascending) - np.searchsorted(ascending, np.asarray(scores), side="left")
    return np.asarray((1.0 + at_least) / (len(ascending) + 1.0), dtype=np.float64)


def conformal_threshold(normal_scores: Scores, false_positive_rate: float) -> float:
    """The score above which the conformal p-value is at most `false_positive_rate`.

    Raises:
        ValueError: If the rate is not between 0 and 1, or too low for so few normals.
    """
    if not 0.0 < false_positive_rate < 1.0:
        raise ValueError(f"false_positive_rate={false_positive_rate} must be above 0 and below 1")
    n = len(normal_scores)
    allowed = int(np.floor(false_positive_rate * (n + 1) + _ROUNDING)) - 1
    if allowed < 0:
        raise ValueError(
            f"false_positive_rate={false_positive_rate} needs at least "
            f"{needed_images(false_positive_rate)} normal validation images, there are {n}"
        )
    return float(np.sort(np.asarray(normal_scores, dtype=np.float64))[::-1][allowed])


def needed_images(rate: float) -> int:
    """Fewest images on which a conformal threshold for `rate`, in (0, 1), can be fitted."""
    return int(np.ceil(1 / rate - _ROUNDING)) - 1


def num_escaping(num_abnormal: int, miss_rate: float) -> int:
    """The k of `escape_threshold`: which known defect, from the lowest score on, is the bound.

    Raises:
        ValueError: If `miss_rate` is above 0 but too low for so few defects.
    """
    if miss_rate == 0.0:
        return 1
    k = int(np.floor(miss_rate * (num_abnormal + 1) + _ROUNDING))
    if k < 1:
        raise ValueError(
            f"miss_rate={miss_rate} needs at least {needed_images(miss_rate)} abnormal validation "
            f"images, there are {num_abnormal}; raise it, or set it to 0 for the least they allow"
        )
    return k


def escape_threshold(abnormal_scores: Scores, miss_rate: float) -> float:
    """The k-th lowest score of n known defects; a score below it is called normal.

    A defect exchangeable with them scores below it with probability at most k / (n + 1). k is the
    largest for which that is at most `miss_rate`; for 0 it is 1, so that no known one is missed.

    Raises:
        ValueError: If there are too few defects.
    """
    k = num_escaping(len(abnormal_scores), miss_rate)
    return float(np.sort(np.asarray(abnormal_scores, dtype=np.float64))[k - 1])


def best_f1_threshold(normal_scores: Scores, abnormal_scores: Scores) -> float:
    """The score from which on everything is called abnormal at the best F1.

    The lowest where several are best, because a missed defect costs more than a false alarm.
    """
    normal = np.sort(np.asarray(normal_scores, dtype=np.float64))
    abnormal = np.sort(np.asarray(abnormal_scores, dtype=np.float64))
    # F1 only falls between two abnormal scores, so no other threshold can be best.
    candidates = np.unique(abnormal)
    hits = len(abnormal) - np.searchsorted(abnormal, candidates)
    alarms = len(normal) - np.searchsorted(normal, candidates)
    return float(candidates[np.argmax(2 * hits / (hits + alarms + len(abnormal)))])


def _single(threshold: float) -> Thresholds:
    return Thresholds(low=threshold, high=threshold)
