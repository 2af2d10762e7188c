"""Where a latent search starts: the nearest of many images that the generator made beforehand.

From a random start a search often ends in a poor local minimum, and a normal image then looks
abnormal. The candidates are the same for all images, so they are made once, and comparing an image
with a few hundred of them costs less than a single step of the search.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gan.features import FeatureNetwork
from gan.networks import Generator
from gan.search import SearchSettings, fill, initial_latents, select_levels


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Latents that any image may start from, and what they give.

    Attributes:
        latent: Float [N, Z].
        image: Float [N, C, H, W], G at each.
        levels: Their feature maps that enter the feature term, each [N, C, H, W].
    """

    latent: Tensor
    image: Tensor
    levels: list[Tensor]


@torch.no_grad()
def draw_candidates(
    generator: Generator,
    features: FeatureNetwork,
    settings: SearchSettings,
    *,
    count: int,
    seed: int,
    stage: int,
    fade: float = 1.0,
) -> Candidates | None:
    """Draw candidates from the seed alone.

    Args:
        generator: Frozen generator.
        features: Frozen feature network.
        settings: How to search.
        count: Number of candidates; 0 gives None.
        seed: Seed of the search.
        stage: Stage of both networks.
        fade: Weight of the newest block in [0, 1].
    """
    if not count:
        return None
    device = next(generator.parameters()).device
    keys = [f"candidate/{number}" for number in range(count)]
    latent = initial_latents(keys, generator.latent_dim, seed=seed).to(device)
    images, maps = [], []
    for part in latent.split(settings.block):
        images.append(generator(part, stage, fade))
        maps.append(select_levels(features(images[-1], stage, fade), settings.feature_levels))
    levels = [torch.cat(level) for level in zip(*maps, strict=True)]
    return Candidates(latent=latent, image=torch.cat(images), levels=levels)


@torch.no_grad()
def nearest_starts(
    features: FeatureNetwork,
    image_BCHW: Tensor,
    candidates: Candidates,
    settings: SearchSettings,
    *,
    stage: int,
    fade: float = 1.0,
) -> Tensor:
    """The candidate with the lowest L(z) for each image.

    Args:
        features: Frozen feature network.
        image_BCHW: Float queries in [-1, 1].
        candidates: What to choose from.
        settings: How to search; its feature weight, levels and block count here too.
        stage: Stage of both networks.
        fade: Weight of the newest block in [0, 1].

    Returns:
        Float [B, Z]; each row depends on its own image only.
    """
    chosen = []
    for part in image_BCHW.split(settings.block):
        # In blocks of one size, like the search: the last bit could else decide between two.
        image = fill(part, settings.block)
        query = select_levels(features(image, stage, fade), settings.feature_levels)
        pairs = zip(query, candidates.levels, strict=True)
        feature = torch.stack([_mean_distances(a, b) for a, b in pairs]).mean(dim=0)
        residual = _mean_distances(image, candidates.image)
        loss = torch.lerp(residual, feature, settings.feature_weight)
        chosen.append(candidates.latent[loss.argmin(dim=1)][: len(part)])
    return torch.cat(chosen)


def _mean_distances(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference between each of B and each of N maps, float [B, N]."""
    return torch.cdist(a.flatten(1), b.flatten(1), p=1.0) / a[0].numel()
