"""What speaks against an image after the search: differences, their statistics, D's own verdict.

An average over all pixels hides a defect of a few of them, the strongest window of a map does not;
and the discriminator has learned from the known defects what no difference shows. Each of these is
one term; `gan.fusion` makes a score of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gan.features import FeatureNetwork
from gan.networks import Discriminator
from gan.search_loss import SearchSettings

LOGIT = "logit"
STATISTICS = ("mean", "window")


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Where images differ from their reconstructions.

    Attributes:
        residual: Float [B, H, W], |x - G(z)| averaged over channels.
        levels: For each level of the feature network, |f(x) - f(G(z))| averaged over channels,
            float [B, h, w] on the level's own grid.
        coarsest: Float [B, C, h, w], the coarsest feature maps of x.
    """

    residual: Tensor
    levels: list[Tensor]
    coarsest: Tensor


@torch.no_grad()
def differences(
    features: FeatureNetwork,
    image_BCHW: Tensor,
    reconstruction_BCHW: Tensor,
    *,
    stage: int,
    fade: float = 1.0,
) -> Differences:
    """Compare images with their reconstructions, in pixels and on all feature levels.

    Args:
        features: Feature network of the search.
        image_BCHW: Float queries in [-1, 1].
        reconstruction_BCHW: G at their latents.
        stage: Stage of the networks.
        fade: Weight of the newest block in [0, 1], below 1 only while training.
    """
    query = features(image_BCHW, stage, fade)
    made = features(reconstruction_BCHW, stage, fade)
    return Differences(
        residual=(image_BCHW - reconstruction_BCHW).abs().mean(dim=1),
        levels=[(a - b).abs().mean(dim=1) for a, b in zip(query, made, strict=True)],
        coarsest=query[-1],
    )


def anomaly_map(found: Differences, settings: SearchSettings) -> Tensor:
    """The terms of L, pixel by pixel: (1 - lambda) |x - G(z)| + lambda |f(x) - f(G(z))|.

    Feature differences are brought up to image size bilinearly and averaged over the levels of the
    search. The mean over the image is close to L; exact for the residual, up to interpolation at
    the rim for the features.

    Args:
        found: Differences of the images.
        settings: How they were searched.

    Returns:
        Float [B, H, W], at least 0.
    """
    size = found.residual.shape[-2:]
    enlarged = [
        nnf.interpolate(found.levels[i].unsqueeze(1), size, mode="bilinear")
        for i in settings.feature_levels
    ]
    feature = torch.stack(enlarged).mean(dim=0).squeeze(1)
    return torch.lerp(found.residual, feature, settings.feature_weight)


def strongest_window(map_BHW: Tensor, window: int) -> Tensor:
    """Mean of the strongest window of each map.

    Args:
        map_BHW: Float maps.
        window: Side of the window in pixels; cut to the map where it is larger.

    Returns:
        Float [B].
    """
    side = min(window, *map_BHW.shape[-2:])
    return nnf.avg_pool2d(map_BHW.unsqueeze(1), side, stride=1).flatten(1).amax(dim=1)


def term_names(num_levels: int) -> tuple[str, ...]:
    """Names of the terms that `evidence` gives, in its order."""
    maps = ("residual", *(f"feature-{level}" for level in range(num_levels)))
    return (*(f"{name}/{statistic}" for name in maps for statistic in STATISTICS), LOGIT)


@torch.no_grad()
def evidence(discriminator: Discriminator, found: Differences, *, window: int) -> Tensor:
    """All terms of each image, high for an abnormal one; see `term_names`.

    Mean and strongest window of the residual and of each feature level, then -D(x).

    Args:
        discriminator: Frozen discriminator.
        found: Differences of the images, through the discriminator's own features.
        window: Side of the window in pixels of the image; smaller in step on a coarser level.

    Returns:
        Float [B, K]; each row depends on its own image only.
    """
    height = found.residual.shape[-2]
    terms = []
    for one in (found.residual, *found.levels):
        side = max(1, round(window * one.shape[-2] / height))
        terms += [one.flatten(1).mean(dim=1), strongest_window(one, side)]
    return torch.stack([*terms, -discriminator.alone(found.coarsest)], dim=1)
