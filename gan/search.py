"""Latent search: the z whose generated image comes closest to a query.

AnoGAN (Schlegl et al. 2017), Algorithm 1 of Kimura & Yanagihara 2018, batched. For each image,
with G and D frozen, minimise

    L(z) = (1 - lambda) mean|x - G(z)| + lambda mean|f(x) - f(G(z))|        (Eq. 2-4, 24-25)

by Adam on z and keep the best z seen. Every image has its own z, its own moments and its own best,
and no layer mixes images, so a score does not depend on what else is in the batch.
"""

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gan.features import FeatureNetwork
from gan.networks import Generator


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How to search.

    Attributes:
        steps: Gradient steps per image; 0 scores the starting latent.
        step_size: Adam's step size on z.
        feature_weight: lambda in [0, 1], the share of the feature term.
        feature_levels: Feature maps that enter the feature term, counted from the finest (0);
            negative numbers count from the coarsest (-1).
        block: Images searched at once. Part of the settings because sums run in another order at
            another size, and many steps amplify the last bit to about 1 % of a score.
    """

    steps: int
    step_size: float
    feature_weight: float
    feature_levels: tuple[int, ...]
    block: int = 32


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best latent of each image and what it gives.

    Attributes:
        latent: Float [B, Z].
        score: Float [B], L at the best latent.
        residual: Float [B], mean|x - G(z)|.
        feature: Float [B], mean|f(x) - f(G(z))|.
        step: Integer [B], the step at which the best latent was seen; 0 is the start.
        reconstruction: Float [B, C, H, W], G at the best latent.
    """

    latent: Tensor
    score: Tensor
    residual: Tensor
    feature: Tensor
    step: Tensor
    reconstruction: Tensor


def initial_latents(keys: list[str], latent_dim: int, *, seed: int) -> Tensor:
    """Standard normal starting points, each drawn from its image's key alone.

    Args:
        keys: Image keys.
        latent_dim: Length of z.
        seed: Seed of the search.

    Returns:
        Float [B, Z].
    """
    rows = []
    for key in keys:
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        source = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        rows.append(torch.randn(latent_dim, generator=source))
    return torch.stack(rows)


def latent_search(
    generator: Generator,
    features: FeatureNetwork,
    image_BCHW: Tensor,
    latent_BZ: Tensor,
    settings: SearchSettings,
    *,
    stage: int,
    fade: float = 1.0,
) -> SearchResult:
    """Search the latent of each image, in blocks of one fixed size; the last one is filled up.

    Args:
        generator: Frozen generator.
        features: Frozen feature network, normally the trained discriminator's.
        image_BCHW: Float queries in [-1, 1].
        latent_BZ: Float starting points, see `initial_latents`.
        settings: How to search.
        stage: Stage of both networks.
        fade: Weight of the newest block in [0, 1], below 1 only while training.

    Returns:
        The best latents with their losses, all without gradient.
    """
    parts = [
        _search_block(
            generator,
            features,
            fill(images, settings.block),
            fill(latents, settings.block),
            settings,
            stage,
            fade,
        )
        for images, latents in zip(
            image_BCHW.split(settings.block), latent_BZ.split(settings.block), strict=True
        )
    ]
    num_images = len(image_BCHW)
    joined = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])[:num_images]
        for field in fields(SearchResult)
    }
    return SearchResult(**joined)


def fill(rows: Tensor, size: int) -> Tensor:
    """Repeat the last row until there are `size`."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def _search_block(
    generator: Generator,
    features: FeatureNetwork,
    image_BCHW: Tensor,
    latent_BZ: Tensor,
    settings: SearchSettings,
    stage: int,
    fade: float,
) -> SearchResult:
    with torch.no_grad():
        query = select_levels(features(image_BCHW, stage, fade), settings.feature_levels)
    best = _Best(latent_BZ)
    adam = _LatentAdam(latent_BZ, settings.step_size)
    latent = latent_BZ.clone()
    for step in range(settings.steps + 1):
        last = step == settings.steps
        with torch.set_grad_enabled(not last):
            latent = latent.detach().requires_grad_(not last)
            image = generator(latent, stage, fade)
            levels = select_levels(features(image, stage, fade), settings.feature_levels)
            residual = residual_loss(image_BCHW, image)
            feature = feature_loss(query, levels)
            loss = (1 - settings.feature_weight) * residual + settings.feature_weight * feature
        best.keep(
            step,
            loss.detach(),
            residual.detach(),
            feature.detach(),
            latent.detach(),
            image.detach(),
        )
        if not last:
            # A loss reaches only its image's latent, so the gradient of the sum is each one's own.
            (gradient,) = torch.autograd.grad(loss.sum(), latent)
            latent = adam.step(latent.detach(), gradient)
    return best.result()


def residual_loss(image_BCHW: Tensor, reconstruction_BCHW: Tensor) -> Tensor:
    """Mean absolute pixel difference of each image, float [B] (Eq. 2)."""
    return (image_BCHW - reconstruction_BCHW).abs().flatten(1).mean(dim=1)


def feature_loss(query: list[Tensor], levels: list[Tensor]) -> Tensor:
    """Mean absolute feature difference of each image, averaged over levels, float [B] (Eq. 3)."""
    distances = [residual_loss(a, b) for a, b in zip(query, levels, strict=True)]
    return torch.stack(distances).mean(dim=0)


def select_levels(maps: list[Tensor], levels: tuple[int, ...]) -> list[Tensor]:
    """The feature maps that enter the feature term."""
    return [maps[level] for level in levels]


class _LatentAdam:
    """Adam (Kingma & Ba 2015) on a batch of latents: element-wise, hence independent per image."""

    def __init__(self, latent_BZ: Tensor, step_size: float) -> None:
        self.step_size = step_size
        self.mean = torch.zeros_like(latent_BZ)
        self.square = torch.zeros_like(latent_BZ)
        self.count = 0

    def step(self, latent_BZ: Tensor, gradient_BZ: Tensor) -> Tensor:
        beta1, beta2 = 0.9, 0.999
        self.count += 1
        self.mean.lerp_(gradient_BZ, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient_BZ, gradient_BZ, value=1 - beta2)
        mean = self.mean / (1 - beta1**self.count)
        scale = (self.square / (1 - beta2**self.count)).sqrt() + 1e-8
        return latent_BZ - self.step_size * mean / scale


class _Best:
    """The lowest loss seen for each image and everything that belongs to it."""

    def __init__(self, latent_BZ: Tensor) -> None:
        self.score = torch.full((len(latent_BZ),), torch.inf, device=latent_BZ.device)
        self.step = torch.zeros(len(latent_BZ), dtype=torch.int64, device=latent_BZ.device)
        self.rows: list[Tensor] = []

    def keep(self, step: int, score: Tensor, *rows: Tensor) -> None:
        better = score < self.score
        self.score = torch.where(better, score, self.score)
        self.step = torch.where(better, step, self.step)
        if not self.rows:
            self.rows = [row.clone() for row in rows]
            return
        for kept, row in zip(self.rows, rows, strict=True):
            kept[better] = row[better]

    def result(self) -> SearchResult:
        residual, feature, latent, reconstruction = self.rows
        return SearchResult(
            latent=latent,
            score=self.score,
            residual=residual,
            feature=feature,
            step=self.step,
            reconstruction=reconstruction,
        )
