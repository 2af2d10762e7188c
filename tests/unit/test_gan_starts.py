"""Starts of a search: the nearest candidate, chosen for each image on its own."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gan.networks import Discriminator, Generator, ProgressiveFeatures
from gan.search import SearchSettings, initial_latents, latent_search
from gan.starts import Candidates, draw_candidates, nearest_starts

STAGE, COUNT, NUM_IMAGES = 2, 40, 7
SETTINGS = SearchSettings(
    steps=5, step_size=0.05, feature_weight=0.3, feature_levels=(0, -1), block=4
)


def _networks() -> tuple[Generator, Discriminator]:
    torch.manual_seed(11)
    sizes = {"resolution": 16, "channels": 1, "fmap_base": 64, "fmap_max": 32}
    generator = Generator(latent_dim=16, **sizes)
    discriminator = Discriminator(ProgressiveFeatures(**sizes), group_size=4)
    for network in (generator, discriminator):
        network.eval().requires_grad_(False)
    return generator, discriminator


GENERATOR, DISCRIMINATOR = _networks()
FEATURES = DISCRIMINATOR.features


def _draw(count: int = COUNT, seed: int = 3) -> Candidates | None:
    return draw_candidates(GENERATOR, FEATURES, SETTINGS, count=count, seed=seed, stage=STAGE)


def _queries() -> Tensor:
    """Images near those that the generator makes: each has a nearest candidate of its own."""
    latent = initial_latents([str(number) for number in range(NUM_IMAGES)], 16, seed=12)
    noise = torch.rand(NUM_IMAGES, 1, 16, 16, generator=torch.Generator().manual_seed(12)) - 0.5
    return GENERATOR(latent, STAGE, 1.0) + noise


def _starts(image: Tensor) -> Tensor:
    candidates = _draw()
    assert candidates
    return nearest_starts(FEATURES, image, candidates, SETTINGS, stage=STAGE)


@pytest.mark.parametrize("feature_weight", [0.0, 0.3, 1.0])
def test_the_start_has_the_lowest_loss_that_the_search_itself_gives(feature_weight: float) -> None:
    images, candidates = _queries(), _draw()
    assert candidates
    unmoved = replace(SETTINGS, feature_weight=feature_weight, steps=0)
    starts = nearest_starts(FEATURES, images, candidates, unmoved, stage=STAGE)
    for image, start in zip(images, starts, strict=True):
        repeated = image.expand(COUNT, *image.shape)
        scores = latent_search(
            GENERATOR, FEATURES, repeated, candidates.latent, unmoved, stage=STAGE
        ).score
        assert torch.equal(start, candidates.latent[scores.argmin()])


def test_an_image_the_generator_made_starts_where_it_was_made() -> None:
    candidates = _draw()
    assert candidates
    assert torch.equal(_starts(candidates.image[[5, 31, 0]]), candidates.latent[[5, 31, 0]])


@pytest.mark.parametrize("order", [[3], [6, 2, 4], [4, 5, 6, 0, 1, 2, 3]])
def test_a_start_does_not_depend_on_order_or_neighbours(order: list[int]) -> None:
    images = _queries()
    assert torch.equal(_starts(images[order]), _starts(images)[order])


def test_candidates_come_from_the_seed_alone_and_are_no_image_s_own_start() -> None:
    one, same, other = _draw(), _draw(), _draw(seed=4)
    assert one
    assert same
    assert other
    assert torch.equal(one.latent, same.latent)
    assert not torch.equal(one.latent, other.latent)
    assert len(torch.unique(one.latent, dim=0)) == COUNT
    assert not torch.equal(one.latent[:1], initial_latents(["0"], 16, seed=3))


def test_no_candidates_are_none() -> None:
    assert _draw(count=0) is None
