"""L(z), which a latent search minimises, for two frozen networks.

    L(z) = (1 - lambda) mean|x - G(z)| + lambda mean|f(x) - f(G(z))|        (Eq. 2-4, 24-25)

after Kimura & Yanagihara 2018 and AnoGAN (Schlegl et al. 2017).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gan.features import FeatureNetwork
from gan.networks import Generator


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How to search.

    Attributes:
        steps: Gradient steps of a search, at most; 0 scores the start.
        step_size: Adam's step size on z.
        feature_weight: lambda in [0, 1], the share of the feature term.
        feature_levels: Feature maps that enter the feature term, counted from the finest (0);
            negative numbers count from the coarsest (-1).
        patience: Steps without an improvement of L by `tolerance` after which a search is done;
            0 takes all steps.
        tolerance: What counts as an improvement, as a fraction of L.
        dtype: float32, or bfloat16 for the convolutions; L itself is float32 always.
        block: Searches under way at once. Part of the settings because sums run in another order
            at another size, and many steps amplify the last bit to about 1 % of a score.
    """

    steps: int
    step_size: float
    feature_weight: float
    feature_levels: tuple[int, ...]
    patience: int = 0
    tolerance: float = 0.01
    dtype: torch.dtype = torch.float32
    block: int = 32


class LossTerms(NamedTuple):
    """L of each image with its two terms, float [B], and G(z), float [B, C, H, W]."""

    loss: Tensor
    residual: Tensor
    feature: Tensor
    reconstruction: Tensor

    def detach(self) -> "LossTerms":
        """The same without gradient."""
        return LossTerms(*(term.detach() for term in self))


@dataclass(frozen=True)
class SearchLoss:
    """L(z) of two frozen networks.

    Attributes:
        generator: Frozen generator.
        features: Frozen feature network, normally the trained discriminator's.
        settings: How to search.
        stage: Stage of both networks.
        fade: Weight of the newest block in [0, 1], below 1 only while training.
    """

    generator: Generator
    features: FeatureNetwork
    settings: SearchSettings
    stage: int
    fade: float = 1.0

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.generator.parameters()).device

    def generate(self, latent_BZ: Tensor) -> Tensor:
        """G(z), float [B, C, H, W]."""
        with self._cast():
            return _full(self.generator(latent_BZ, self.stage, self.fade))

    def maps(self, image_BCHW: Tensor) -> list[Tensor]:
        """The feature maps that enter the feature term, each float [B, C, H, W]."""
        with self._cast():
            levels = self.features(image_BCHW, self.stage, self.fade)
        return [_full(level) for level in self.chosen(levels)]

    def chosen(self, levels: list[Tensor]) -> list[Tensor]:
        """Those of all feature levels that enter the feature term."""
        return [levels[level] for level in self.settings.feature_levels]

    def __call__(self, image_BCHW: Tensor, maps: list[Tensor], latent_BZ: Tensor) -> LossTerms:
        """L for images whose `maps` are known."""
        made = self.generate(latent_BZ)
        residual = residual_loss(image_BCHW, made)
        feature = feature_loss(maps, self.maps(made))
        weight = self.settings.feature_weight
        return LossTerms((1 - weight) * residual + weight * feature, residual, feature, made)

    def _cast(self) -> torch.autocast:
        dtype = self.settings.dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype == torch.bfloat16)


def fill(rows: Tensor, size: int) -> Tensor:
    """Repeat the last row until there are `size`."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def residual_loss(image_BCHW: Tensor, reconstruction_BCHW: Tensor) -> Tensor:
    """Mean absolute pixel difference of each image, float [B] (Eq. 2)."""
    return (image_BCHW - reconstruction_BCHW).abs().flatten(1).mean(dim=1)


def feature_loss(query: list[Tensor], levels: list[Tensor]) -> Tensor:
    """Mean absolute feature difference of each image, averaged over levels, float [B] (Eq. 3)."""
    distances = [residual_loss(a, b) for a, b in zip(query, levels, strict=True)]
    return torch.stack(distances).mean(dim=0)


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x
