"""The batched search against Algorithm 1 as the paper writes it (plain_search.py), in float64."""

import pytest
import torch

from gan.networks import Discriminator, Generator, ProgressiveFeatures
from gan.search import initial_latents, latent_search
from gan.search_loss import SearchSettings
from tests.numerics.plain_search import plain_search

STAGE, LATENT_DIM, NUM_IMAGES = 2, 16, 7


def _networks(seed: int, channels: int) -> tuple[Generator, Discriminator]:
    torch.manual_seed(seed)
    sizes = {"resolution": 16, "channels": channels, "fmap_base": 64, "fmap_max": 32}
    generator = Generator(latent_dim=LATENT_DIM, **sizes)
    discriminator = Discriminator(ProgressiveFeatures(**sizes), group_size=4)
    for network in (generator, discriminator):
        network.double().eval().requires_grad_(False)
    return generator, discriminator


@pytest.mark.parametrize(
    ("seed", "channels", "block", "levels", "restarts"),
    [(0, 1, 3, (0,), 1), (1, 3, 32, (0, -1), 1), (2, 1, 4, (-1,), 3)],
)
def test_batched_search_is_algorithm_1(
    seed: int, channels: int, block: int, levels: tuple[int, ...], restarts: int
) -> None:
    generator, discriminator = _networks(seed, channels)
    source = torch.Generator().manual_seed(seed)
    shape = (NUM_IMAGES, channels, 16, 16)
    images = torch.rand(shape, generator=source, dtype=torch.float64) * 2 - 1
    keys = [str(number) for number in range(NUM_IMAGES * restarts)]
    starts = initial_latents(keys, LATENT_DIM, seed=seed).double()
    how = {"steps": 15, "step_size": 0.05, "feature_weight": 0.3, "feature_levels": levels}
    found = latent_search(
        generator,
        discriminator.features,
        images,
        starts.unflatten(0, (NUM_IMAGES, restarts)),
        SearchSettings(**how, block=block),
        stage=STAGE,
    )
    for row in range(NUM_IMAGES):
        each = [
            plain_search(generator, discriminator, images[row : row + 1], z, **how, stage=STAGE)
            for z in starts[row * restarts : (row + 1) * restarts].split(1)
        ]
        latent, score, step = min(each, key=lambda one: one[1])
        assert float(found.score[row]) == pytest.approx(score, rel=1e-9)
        assert (int(found.step[row]), int(found.steps[row])) == (step, 15 * restarts)
        torch.testing.assert_close(found.latent[row], latent[0], rtol=0, atol=1e-8)
