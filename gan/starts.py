"""Where a latent search starts.

From a random start a search often ends in a poor local minimum, and a normal image then looks
abnormal. Better ones are proposed by an encoder (`gan.encoder`), and by candidates: images that the
generator made beforehand, the same for all, with a few hundred of which an image is compared for
less than a single step costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gan.encoder import Encoder
from gan.search import SearchResult, initial_latents
from gan.search_loss import SearchLoss, fill


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Latents that any image may start from, and what they give.

    Attributes:
        latent: Float [N, Z].
        image: Float [N, C, H, W], G at each.
        maps: Their feature maps that enter the feature term, each [N, C, H, W].
    """

    latent: Tensor
    image: Tensor
    maps: list[Tensor]


@torch.no_grad()
def draw_candidates(loss: SearchLoss, *, count: int, seed: int) -> Candidates:
    """Draw candidates from the seed alone.

    Args:
        loss: What is searched with.
        count: Number of candidates, at least 1.
        seed: Seed of the search.
    """
    keys = [f"candidate/{number}" for number in range(count)]
    latent = initial_latents(keys, loss.generator.latent_dim, seed=seed).to(loss.device)
    images, maps = [], []
    for part in latent.split(loss.settings.block):
        images.append(loss.generate(part))
        maps.append(loss.maps(images[-1]))
    joined = [torch.cat(level) for level in zip(*maps, strict=True)]
    return Candidates(latent=latent, image=torch.cat(images), maps=joined)


class Starts:
    """The starts of each image, which depend on nothing but the image, its key and the seed.

    Args:
        loss: What is searched with.
        restarts: Starts of an image: those proposals with the lowest L; where there are fewer
            proposals, latents drawn from the key make up the number.
        candidates: Candidates to draw, each of them a proposal for every image.
        seed: Seed of the search.
        encoder: Makes one more proposal for each image; None: nobody does.
    """

    def __init__(
        self,
        loss: SearchLoss,
        *,
        restarts: int,
        candidates: int,
        seed: int,
        encoder: Encoder | None = None,
    ) -> None:
        self._loss, self._restarts, self._seed, self._encoder = loss, restarts, seed, encoder
        self.candidates = draw_candidates(loss, count=candidates, seed=seed) if candidates else None

    @torch.no_grad()
    def __call__(self, keys: Sequence[str], image_BCHW: Tensor) -> Tensor:
        """Starts of images, float [B, K, Z] with K restarts.

        Args:
            keys: Keys of the images.
            image_BCHW: Float queries in [-1, 1].
        """
        size, device = self._loss.settings.block, self._loss.device
        # In blocks of one size, like the search: the last bit could else decide between two.
        blocks = image_BCHW.split(size)
        proposed = [self._proposals(fill(b.to(device), size))[: len(b)] for b in blocks]
        drawn = [
            initial_latents(
                [f"{key}/{number}" if number else key for key in keys],
                self._loss.generator.latent_dim,
                seed=self._seed,
            ).unsqueeze(1)
            for number in range(self._restarts - proposed[0].shape[1])
        ]
        return torch.cat([torch.cat(proposed), *(latent.to(device) for latent in drawn)], dim=1)

    @property
    def are_ends(self) -> bool:
        """Whether every start is a candidate and the search takes no step from it."""
        settings = self._loss.settings
        if self._encoder or self.candidates is None or settings.dtype != torch.float32:
            return False
        return settings.steps == 0 and self._restarts <= len(self.candidates.latent)

    @torch.no_grad()
    def nearest(self, image_BCHW: Tensor, levels: list[Tensor]) -> SearchResult:
        """What a search without steps finds where starts `are_ends`, without G.

        Args:
            image_BCHW: A block of queries on the device of the networks.
            levels: Their feature levels.
        """
        assert self.candidates
        candidates = self.candidates
        terms = self._distances(image_BCHW, self._loss.chosen(levels), candidates)
        rows = terms.loss.argmin(dim=1, keepdim=True)
        score, residual, feature = (term.gather(1, rows).squeeze(1) for term in terms)
        chosen, none = rows.squeeze(1), torch.zeros_like(rows).squeeze(1)
        return SearchResult(
            latent=candidates.latent[chosen],
            score=score,
            residual=residual,
            feature=feature,
            step=none,
            steps=none,
            reconstruction=candidates.image[chosen],
        )

    def _proposals(self, image: Tensor) -> Tensor:
        """The proposals with the lowest L, the lowest first, at most as many as restarts."""
        own = self._encoder(image, self._loss.stage) if self._encoder else None
        if self.candidates is None:
            nothing = image.new_empty(len(image), 0, self._loss.generator.latent_dim)
            return nothing if own is None else own.unsqueeze(1)
        maps, latent = self._loss.maps(image), self.candidates.latent
        losses = self._distances(image, maps, self.candidates).loss
        if own is not None:
            losses = torch.cat([losses, self._loss(image, maps, own).loss.unsqueeze(1)], dim=1)
            latent = torch.cat([latent, own])
        count = min(self._restarts, losses.shape[1])
        chosen = losses.topk(count, dim=1, largest=False).indices
        # The column behind the candidates stands for each image's own proposal.
        behind = torch.arange(len(image), device=image.device).unsqueeze(1)
        return latent[torch.where(chosen == len(self.candidates.latent), chosen + behind, chosen)]

    def _distances(self, image: Tensor, maps: list[Tensor], candidates: Candidates) -> "_Distances":
        pairs = zip(maps, candidates.maps, strict=True)
        feature = torch.stack([_mean_distances(a, b) for a, b in pairs]).mean(dim=0)
        residual = _mean_distances(image, candidates.image)
        loss = torch.lerp(residual, feature, self._loss.settings.feature_weight)
        return _Distances(loss, residual, feature)


class _Distances(NamedTuple):
    """L between each of B images and each of N candidates with its two terms, float [B, N]."""

    loss: Tensor
    residual: Tensor
    feature: Tensor


def _mean_distances(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference between each of B and each of N maps, float [B, N]."""
    return torch.cdist(a.flatten(1), b.flatten(1), p=1.0) / a[0].numel()
