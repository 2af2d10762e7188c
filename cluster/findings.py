"""What an audit found, and what to do about it, in numbers and in words."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from cluster.config import ObjectiveConfig
from cluster.suspects import Truth, judge
from gan.contamination import COVERAGE, MIN_KNOWN, Contamination, estimate_contamination
from gan.objective import weights_for_contamination


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an audit found.

    Attributes:
        num_training: Training images called normal that could be scored.
        num_normal: Validation normals they were compared with.
        num_known: Known abnormal images, of training and validation.
        contamination: How many training images are abnormal.
        weights: Recommended gamma and alpha; None where there is no estimate, or no training helps.
        truth: How well the ranking finds images that were mixed in; None where none were.
    """

    num_training: int
    num_normal: int
    num_known: int
    contamination: Contamination
    weights: tuple[float, float] | None
    truth: Truth | None

    @property
    def num_suspects(self) -> int:
        """Images to look at: the highest number of abnormal ones that the interval allows."""
        return math.ceil(self.contamination.high * self.num_training)

    def to_dict(self) -> dict[str, Any]:
        """Contents of audit.json."""
        gamma, alpha = self.weights or (None, None)
        return {
            "num_training": self.num_training,
            "num_validation_normal": self.num_normal,
            "num_known_abnormal": self.num_known,
            **asdict(self.contamination),
            "coverage": COVERAGE,
            "gamma": gamma,
            "alpha": alpha,
            "true_contamination": self.truth.contamination if self.truth else None,
            "precision_at_c": self.truth.precision if self.truth else None,
        }

    def numbers(self) -> dict[str, float]:
        """What of audit.json is a number, for MLflow."""
        return {k: float(v) for k, v in self.to_dict().items() if v is not None}


def find(
    suspects: pd.DataFrame,
    normal: pd.DataFrame,
    known: pd.DataFrame,
    mixed_in: "pd.Series[bool] | None",
    *,
    seed: int,
) -> Findings:
    """Estimate the contamination and choose gamma and alpha for it.

    Args:
        suspects: Scored training images, most suspicious first, with their `evidence`.
        normal: The same of validation normals.
        known: The same of known abnormal images.
        mixed_in: Which training images were mixed in on purpose, where that is known.
        seed: Seed of the interval.

    Raises:
        ValueError: If there are too few images.
    """
    tables = (suspects, normal, known)
    contamination = estimate_contamination(
        *(table["evidence"].to_numpy(dtype=float) for table in tables),
        groups=[table["group"].to_numpy() for table in tables],
        seed=seed,
    )
    return Findings(
        num_training=len(suspects),
        num_normal=len(normal),
        num_known=len(known),
        contamination=contamination,
        weights=recommended_weights(contamination),
        truth=None if mixed_in is None else judge(mixed_in),
    )


def recommended_weights(contamination: Contamination) -> tuple[float, float] | None:
    """Gamma and alpha for the estimate.

    Returns:
        None without an estimate, or if half of the images or more are abnormal.
    """
    if contamination.estimate is None or contamination.estimate >= 0.5:
        return None
    gamma, alpha = weights_for_contamination(contamination.estimate)
    return round(gamma, 3), round(alpha, 3)


def headline(found: Findings) -> str:
    """How many training images are abnormal, in one sentence."""
    c, num = found.contamination, found.num_training
    if c.estimate is not None:
        return (
            f"About {c.estimate:.1%} of the {num:,} training images called normal are abnormal: "
            f"{c.low:.1%} to {c.high:.1%} with a confidence of {COVERAGE:.0%}."
        )
    least = f"At least {c.at_least:.1%} of the {num:,} training images called normal are abnormal"
    if found.num_known < MIN_KNOWN:
        return (
            f"{least}; how many, only known abnormal images could tell: {MIN_KNOWN} or more, there "
            f"{'is' if found.num_known == 1 else 'are'} {found.num_known}."
        )
    return (
        f"{least}; how many cannot be told, because the scores of known abnormal images do not "
        "stand apart from those of normal ones."
    )


def advice(found: Findings, objective: ObjectiveConfig) -> str:
    """What to do, in a sentence or two.

    Args:
        found: What was found.
        objective: What the run was trained with.
    """
    look = (
        f"Look at the first {found.num_suspects:,} suspects, call those that are abnormal so and "
        "pack again"
    )
    if found.contamination.estimate is None:
        if found.num_known < MIN_KNOWN:
            return "Look at the first suspects; call some dozens that are abnormal so, pack again."
        return "Train longer, or tune the search, until `evaluate` tells the two apart; then audit."
    if found.weights is None:
        return f"{look}: no gamma and alpha help where half of the images are abnormal."
    share = objective.alpha / (objective.gamma + objective.alpha)
    if share >= found.contamination.high:
        return (
            f"The gamma={objective.gamma:g} and alpha={objective.alpha:g} of this run cover that "
            f"(alpha's share is {share:.1%}). {look} for a cleaner model still."
        )
    gamma, alpha = found.weights
    return (
        f"The gamma={objective.gamma:g} and alpha={objective.alpha:g} of this run do not cover "
        f"that (alpha's share is {share:.1%}): train a new run with --objective.gamma {gamma:g} "
        f"--objective.alpha {alpha:g}. Or: {look[0].lower()}{look[1:]}."
    )
