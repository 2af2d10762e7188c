"""Small networks, queries and a search that the tests of the latent search share."""

import torch
from torch import Tensor

from gan.networks import Discriminator, Generator, ProgressiveFeatures
from gan.search import SearchResult, initial_latents, latent_search
from gan.search_loss import SearchSettings

STAGE = 2
LATENT_DIM = 16
NUM_IMAGES = 7
SETTINGS = SearchSettings(
    steps=60, step_size=0.05, feature_weight=0.3, feature_levels=(0, -1), block=8
)
KEYS = [f"part-{number:03d}" for number in range(NUM_IMAGES)]


def networks(dtype: torch.dtype = torch.float32) -> tuple[Generator, Discriminator]:
    torch.manual_seed(11)
    sizes = {"resolution": 16, "channels": 1, "fmap_base": 64, "fmap_max": 32}
    generator = Generator(latent_dim=LATENT_DIM, **sizes)
    discriminator = Discriminator(ProgressiveFeatures(**sizes), group_size=4)
    for network in (generator, discriminator):
        network.to(dtype).eval().requires_grad_(False)
    return generator, discriminator


def queries(dtype: torch.dtype = torch.float32) -> Tensor:
    source = torch.Generator().manual_seed(12)
    return torch.rand(NUM_IMAGES, 1, 16, 16, generator=source).to(dtype) * 2 - 1


def search(
    rows: list[int], settings: SearchSettings = SETTINGS, dtype: torch.dtype = torch.float32
) -> SearchResult:
    """Search the given images together, each from the start its key gives."""
    generator, discriminator = networks(dtype)
    start = initial_latents([KEYS[row] for row in rows], LATENT_DIM, seed=3).to(dtype)
    image = queries(dtype)[rows]
    return latent_search(
        generator, discriminator.features, image, start.unsqueeze(1), settings, stage=STAGE
    )
