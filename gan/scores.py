"""From a search result to maps, scores, and p-values that mean something on a data set."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from gan.features import FeatureNetwork
from gan.search import SearchResult, SearchSettings

Statistic = Literal["mean", "window"]


@torch.no_grad()
def anomaly_map(
    features: FeatureNetwork,
    image_BCHW: Tensor,
    found: SearchResult,
    settings: SearchSettings,
    *,
    stage: int,
    fade: float = 1.0,
) -> Tensor:
    """Where each image differs from what G can make: the terms of L, pixel by pixel.

    (1 - lambda) |x - G(z)| + lambda |f(x) - f(G(z))|, each averaged over its channels, feature
    distances brought up to image size bilinearly and averaged over levels. The mean over the image
    is close to L; exact for the residual, up to interpolation at the rim for the features.

    Args:
        features: Feature network of the search.
        image_BCHW: Float queries in [-1, 1].
        found: Result of the search for them.
        settings: How it was searched.
        stage: Stage of the networks.
        fade: Weight of the newest block in [0, 1], below 1 only while training.

    Returns:
        Float [B, H, W], at least 0.
    """
    residual = (image_BCHW - found.reconstruction).abs().mean(dim=1)
    query = features(image_BCHW, stage, fade)
    made = features(found.reconstruction, stage, fade)
    size = image_BCHW.shape[-2:]
    distances = [
        nnf.interpolate((query[i] - made[i]).abs().mean(dim=1, keepdim=True), size, mode="bilinear")
        for i in settings.feature_levels
    ]
    feature = torch.stack(distances).mean(dim=0).squeeze(1)
    return torch.lerp(residual, feature, settings.feature_weight)


def strongest_window(map_BHW: Tensor, window: int) -> Tensor:
    """Mean of the strongest window of each map: an average over all would hide a small defect.

    Args:
        map_BHW: Float maps.
        window: Side of the window in pixels; cut to the map where it is larger.

    Returns:
        Float [B].
    """
    side = min(window, *map_BHW.shape[-2:])
    return nnf.avg_pool2d(map_BHW.unsqueeze(1), side, stride=1).flatten(1).amax(dim=1)


def conformal_p_values(
    scores: Sequence[float] | NDArray[np.float64],
    normal_scores: Sequence[float] | NDArray[np.float64],
) -> NDArray[np.float64]:
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


def conformal_threshold(normal_scores: Sequence[float], false_positive_rate: float) -> float:
    """The score above which the conformal p-value is at most `false_positive_rate`.

    Raises:
        ValueError: If the rate is not between 0 and 1, or too low for so few normals.
    """
    if not 0.0 < false_positive_rate < 1.0:
        raise ValueError(f"false_positive_rate={false_positive_rate} must be above 0 and below 1")
    n = len(normal_scores)
    allowed = int(np.floor(false_positive_rate * (n + 1) + 1e-9)) - 1
    if allowed < 0:
        raise ValueError(
            f"false_positive_rate={false_positive_rate} needs at least "
            f"{int(np.ceil(1 / false_positive_rate)) - 1} normal validation images, there are {n}"
        )
    return float(np.sort(np.asarray(normal_scores))[::-1][allowed])
