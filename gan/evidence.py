"""What speaks against an image after the search: differences, logits, contrast, and statistics.

An average over all pixels hides a defect of a few of them, the strongest window of a map does not;
and the discriminator has learned from the known defects what no difference shows. Each of these is
one term; `gan.fusion` makes a score and a map of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gan.model import AnyDiscriminator
from gan.search_loss import SearchSettings

STATISTICS = ("mean", "window", "peak")
RESIDUAL, FEATURE, LOGIT, LOCAL_CONTRAST = "residual", "feature", "logit", "local-contrast"
"""Kinds of maps."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What speaks against images, place by place.

    Attributes:
        residual: Float [B, H, W], |x - G(z)| averaged over channels.
        levels: For each level of the feature network, |f(x) - f(G(z))| averaged over channels,
            float [B, h, w] on the level's own grid.
        logits: -D(x) of each of D's heads on its own grid, float [B, h, w]; of a discriminator
            that judges whole images that is one cell.
        contrast: See `local_contrast`, float [B, H, W]; None where it is not asked for.
    """

    residual: Tensor
    levels: list[Tensor]
    logits: list[Tensor]
    contrast: Tensor | None = None

    def maps(self) -> dict[str, Tensor]:
        """All of them by name, in the order of `map_names`."""
        with_contrast = self.contrast is not None
        names = map_names(len(self.levels), len(self.logits), with_contrast=with_contrast)
        last = [] if self.contrast is None else [self.contrast]
        return dict(zip(names, (self.residual, *self.levels, *self.logits, *last), strict=True))

    def verdict(self) -> Tensor:
        """-D(x) of each image, float [B]: the mean over the heads of the means over their cells."""
        return torch.stack([one.flatten(1).mean(dim=1) for one in self.logits]).mean(dim=0)


@torch.no_grad()
def gather_evidence(
    discriminator: AnyDiscriminator,
    image_BCHW: Tensor,
    reconstruction_BCHW: Tensor,
    *,
    stage: int,
    fade: float = 1.0,
    contrast_side: int = 0,
    query: list[Tensor] | None = None,
) -> Evidence:
    """Compare images with their reconstructions, and ask the discriminator.

    Args:
        discriminator: Frozen discriminator; its features are those of the search.
        image_BCHW: Float queries in [-1, 1].
        reconstruction_BCHW: G at their latents.
        stage: Stage of the networks.
        fade: Weight of the newest block in [0, 1], below 1 only while training.
        contrast_side: Surroundings of `local_contrast` in pixels; 0 leaves it out.
        query: Feature levels of the images, where they are known.
    """
    query = query or discriminator.features(image_BCHW, stage, fade)
    made = discriminator.features(reconstruction_BCHW, stage, fade)
    return Evidence(
        residual=(image_BCHW - reconstruction_BCHW).abs().mean(dim=1),
        levels=[(a - b).abs().mean(dim=1) for a, b in zip(query, made, strict=True)],
        logits=[-one for one in discriminator.logits(query)],
        contrast=local_contrast(image_BCHW, contrast_side) if contrast_side else None,
    )


def local_contrast(image_BCHW: Tensor, side: int) -> Tensor:
    """Mean absolute deviation of pixels from the mean of their surroundings, averaged over these.

    High at lines and specks of a few pixels, which the coarse cells of features miss; low where
    brightness changes slowly, however much. At the rim surroundings are what lies in the image.

    Args:
        image_BCHW: Float images.
        side: Odd side of the surroundings, in pixels.

    Returns:
        Float [B, H, W], at least 0.
    """

    def around(x: Tensor) -> Tensor:
        return nnf.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)

    deviation = (image_BCHW - around(image_BCHW)).abs().mean(dim=1, keepdim=True)
    return around(deviation).squeeze(1)


def anomaly_map(found: Evidence, settings: SearchSettings) -> Tensor:
    """The terms of L, pixel by pixel: (1 - lambda) |x - G(z)| + lambda |f(x) - f(G(z))|.

    Feature differences are brought up to image size bilinearly and averaged over the levels of the
    search. The mean over the image is close to L; exact for the residual, up to interpolation at
    the rim for the features.

    Args:
        found: Evidence of the images.
        settings: How they were searched.

    Returns:
        Float [B, H, W], at least 0.
    """
    size = found.residual.shape[-2:]
    enlarged = [_enlarged(found.levels[level], size) for level in settings.feature_levels]
    feature = torch.stack(enlarged).mean(dim=0)
    return torch.lerp(found.residual, feature, settings.feature_weight)


def fused_map(found: Evidence, weights: Mapping[str, float]) -> Tensor:
    """All maps pixel by pixel, each times its weight; of logits softplus(-D), which is -log of D.

    Args:
        found: Evidence of the images.
        weights: Weight of each map by name; see `gan.fusion.Fusion.map_weights`.

    Returns:
        Float [B, H, W], at least 0.
    """
    size = found.residual.shape[-2:]
    total = torch.zeros_like(found.residual)
    for name, one in found.maps().items():
        places = nnf.softplus(one) if name.startswith(LOGIT) else one
        if weights.get(name):
            total += weights[name] * _enlarged(places, size)
    return total


def _enlarged(map_BHW: Tensor, size: Sequence[int]) -> Tensor:
    return nnf.interpolate(map_BHW.unsqueeze(1), tuple(size), mode="bilinear").squeeze(1)


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


def map_names(num_levels: int, num_heads: int, *, with_contrast: bool = False) -> tuple[str, ...]:
    """Names of the maps: residual, feature-0, ..., logit-0, ..., where 0 is the finest.

    The only head of a discriminator that judges whole images is called logit. Local contrast, where
    it is among them, is the last.
    """
    features = (f"{FEATURE}-{level}" for level in range(num_levels))
    heads = (f"{LOGIT}-{head}" for head in range(num_heads)) if num_heads > 1 else (LOGIT,)
    return (RESIDUAL, *features, *heads, *([LOCAL_CONTRAST] if with_contrast else []))


def term_names(maps: Sequence[str]) -> tuple[str, ...]:
    """Names of the terms that `statistics` gives for maps of these names, in its order."""
    return tuple(f"{name}/{statistic}" for name in maps for statistic in STATISTICS)


@torch.no_grad()
def statistics(found: Evidence, *, window: int) -> Tensor:
    """All terms of each image, high for an abnormal one; see `term_names`.

    Mean, strongest window and largest value of each map.

    Args:
        found: Evidence of the images.
        window: Side of the window in pixels of the image; smaller in step on a coarser grid.

    Returns:
        Float [B, K]; each row depends on its own image only.
    """
    height = found.residual.shape[-2]
    terms = []
    for one in found.maps().values():
        side = max(1, round(window * one.shape[-2] / height))
        values = one.flatten(1)
        terms += [values.mean(dim=1), strongest_window(one, side), values.amax(dim=1)]
    return torch.stack(terms, dim=1)
