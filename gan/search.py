"""Latent search: the z whose generated image comes closest to a query.

AnoGAN (Schlegl et al. 2017), Algorithm 1 of Kimura & Yanagihara 2018, batched. For each image,
with G and D frozen, minimise

    L(z) = (1 - lambda) mean|x - G(z)| + lambda mean|f(x) - f(G(z))|        (Eq. 2-4, 24-25)

by Adam on z and keep the best z seen. A search is one image with one start. As many as a block
holds are under way at once, each with its own z, moments, age and best; one that is done makes room
for the next. No layer mixes images and a block always has the same size, so a score depends neither
on what else is in the block nor on when its search began.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gan.features import FeatureNetwork
from gan.networks import Generator
from gan.search_loss import SearchLoss, SearchSettings
from gan.slots import Found, Slots, Waiting


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best latent of each image and what it gives.

    Attributes:
        latent: Float [B, Z].
        score: Float [B], L at the best latent.
        residual: Float [B], mean|x - G(z)|.
        feature: Float [B], mean|f(x) - f(G(z))|.
        step: Integer [B], the step at which the best latent was seen; 0 is the start.
        steps: Integer [B], gradient steps taken, over all starts of the image.
        reconstruction: Float [B, C, H, W], G at the best latent.
    """

    latent: Tensor
    score: Tensor
    residual: Tensor
    feature: Tensor
    step: Tensor
    steps: Tensor
    reconstruction: Tensor

    def part(self, rows: slice) -> "SearchResult":
        """The result of some of the images."""
        return SearchResult(**{name: tensor[rows] for name, tensor in vars(self).items()})

    def to(self, device: torch.device) -> "SearchResult":
        """The same in the memory of a device."""
        return SearchResult(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def initial_latents(keys: Sequence[str], latent_dim: int, *, seed: int) -> Tensor:
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
    start_BKZ: Tensor,
    settings: SearchSettings,
    *,
    stage: int,
    fade: float = 1.0,
) -> SearchResult:
    """Search from K starts for each image; the best of them counts, the first where they tie.

    Give it as many images as there are: blocks are full as long as something waits. Images may lie
    in the memory of the host, where results then lie too; a few blocks at a time go to the device.

    Args:
        generator: Frozen generator.
        features: Frozen feature network, normally the trained discriminator's.
        image_BCHW: Float queries in [-1, 1].
        start_BKZ: Float starting points, see `gan.starts`.
        settings: How to search.
        stage: Stage of both networks.
        fade: Weight of the newest block in [0, 1], below 1 only while training.

    Returns:
        The best latents with their losses, all without gradient.
    """
    loss = SearchLoss(generator, features, settings, stage, fade)
    waiting = Waiting(loss, image_BCHW, start_BKZ)
    found = Found(image_BCHW, start_BKZ)
    slots = Slots(*waiting.take(settings.block), settings)
    while slots.busy():
        last = slots.at_last_step()
        latent = slots.latent.requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            terms = loss(slots.image, slots.maps, latent)
        slots.keep(terms.detach())
        done = slots.done()
        found.note(slots, done)
        if not last:
            # A loss reaches only its image's latent, so the gradient of the sum is each one's own.
            (gradient,) = torch.autograd.grad(terms.loss.sum(), latent)
            slots.step(gradient)
        slots.load(done, *waiting.take(len(done)))
    return SearchResult(
        latent=found.latent,
        score=found.terms.loss,
        residual=found.terms.residual,
        feature=found.terms.feature,
        step=found.step,
        steps=found.steps,
        reconstruction=found.terms.reconstruction,
    )
