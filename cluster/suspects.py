"""Which of the training images called normal look least so; pure functions of tables of scores."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from data.dataset import DatasetIndex
from gan.thresholds import conformal_p_values

COLUMNS = ("rank", "key", "source", "group", "score", "p_value")
"""Columns of suspects.csv; docs/operations.md explains each."""

# Where the kinds give another contamination than the data set tells, they do not say which images
# were mixed in.
_MAX_DISAGREEMENT = 0.02


@dataclass(frozen=True)
class Truth:
    """What a study knows of its training images.

    Attributes:
        contamination: Share of the scored ones that was mixed in.
        precision: Share of such ones among equally many of the most suspicious.
    """

    contamination: float
    precision: float


def rank_suspects(training: pd.DataFrame, normal_scores: "pd.Series[float]") -> pd.DataFrame:
    """Order training images by score, most suspicious first.

    Args:
        training: Scored training images called normal, with the columns of an inspection.
        normal_scores: Scores of validation normals.

    Returns:
        The table with `rank` from 1 and the `p_value` of each score.
    """
    p_values = conformal_p_values(training["score"].to_numpy(), normal_scores.to_numpy())
    # By key where equal, so that the order is the same each time.
    table = training.assign(p_value=p_values).sort_values(
        ["score", "key"], ascending=[False, True], ignore_index=True
    )
    return table.assign(rank=np.arange(1, len(table) + 1))


def hidden_truth(
    index: DatasetIndex, suspects: pd.DataFrame, validation: pd.DataFrame
) -> "pd.Series[bool] | None":
    """Which images were mixed in on purpose: those of a kind that is not normal in validation.

    Returns:
        None where the data set does not say that any were, or the kinds do not tell which.
    """
    if index.contamination is None:
        return None
    normal_kinds = set(validation.loc[validation["label"] == "normal", "kind"])
    mixed_in = ~suspects["kind"].isin(normal_kinds)
    agrees = abs(mixed_in.mean() - index.contamination) <= _MAX_DISAGREEMENT
    return mixed_in if agrees and mixed_in.any() else None


def judge(mixed_in: "pd.Series[bool]") -> Truth:
    """Precision at c of the ranking.

    Args:
        mixed_in: Whether each image was, most suspicious first; at least one.
    """
    found = mixed_in.iloc[: int(mixed_in.sum())]
    return Truth(contamination=float(mixed_in.mean()), precision=float(found.mean()))


def to_csv(suspects: pd.DataFrame) -> bytes:
    """The list people work through, with the columns `COLUMNS`."""
    text: str = suspects.to_csv(columns=list(COLUMNS), index=False, lineterminator="\n")
    return text.encode()
