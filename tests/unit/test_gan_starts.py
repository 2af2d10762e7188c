"""Starts of a search: the best proposals first, chosen for each image on its own."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gan.encoder import Encoder
from gan.networks import Discriminator, Generator, ProgressiveFeatures
from gan.search import initial_latents, latent_search
from gan.search_loss import SearchLoss, SearchSettings
from gan.starts import Starts, draw_candidates

STAGE, COUNT, NUM_IMAGES = 2, 40, 7
SETTINGS = SearchSettings(
    steps=5, step_size=0.05, feature_weight=0.3, feature_levels=(0, -1), block=4
)
KEYS = [f"part-{number}" for number in range(NUM_IMAGES)]


def _networks() -> tuple[Generator, Discriminator, Encoder]:
    torch.manual_seed(11)
    sizes = {"resolution": 16, "channels": 1, "fmap_base": 64, "fmap_max": 32}
    generator = Generator(latent_dim=16, **sizes)
    discriminator = Discriminator(ProgressiveFeatures(**sizes), group_size=4)
    networks = generator, discriminator, Encoder(latent_dim=16, **sizes)
    for network in networks:
        network.eval().requires_grad_(False)
    return networks


GENERATOR, DISCRIMINATOR, ENCODER = _networks()
FEATURES = DISCRIMINATOR.features


def _loss(settings: SearchSettings = SETTINGS) -> SearchLoss:
    return SearchLoss(GENERATOR, FEATURES, settings, STAGE)


def _starts(
    restarts: int = 1,
    candidates: int = COUNT,
    encoder: Encoder | None = None,
    settings: SearchSettings = SETTINGS,
) -> Starts:
    return Starts(
        _loss(settings), restarts=restarts, candidates=candidates, seed=3, encoder=encoder
    )


def _queries() -> Tensor:
    """Images near those that the generator makes: each has a nearest candidate of its own."""
    latent = initial_latents([str(number) for number in range(NUM_IMAGES)], 16, seed=12)
    noise = torch.rand(NUM_IMAGES, 1, 16, 16, generator=torch.Generator().manual_seed(12)) - 0.5
    return GENERATOR(latent, STAGE, 1.0) + noise


def _scores(image: Tensor, latents: Tensor, settings: SearchSettings) -> Tensor:
    """L of one image at many latents, as the search itself gives it."""
    repeated = image.expand(len(latents), *image.shape)
    return latent_search(
        GENERATOR, FEATURES, repeated, latents.unsqueeze(1), settings, stage=STAGE
    ).score


@pytest.mark.parametrize("feature_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("with_encoder", [False, True])
def test_starts_are_those_with_the_lowest_loss_that_the_search_gives(
    feature_weight: float, with_encoder: bool
) -> None:
    images = _queries()
    unmoved = replace(SETTINGS, feature_weight=feature_weight, steps=0)
    starts = _starts(3, encoder=ENCODER if with_encoder else None, settings=unmoved)
    assert starts.candidates
    found = starts(KEYS, images)
    assert found.shape == (NUM_IMAGES, 3, 16)
    for number, image in enumerate(images):
        pool = starts.candidates.latent
        if with_encoder:
            pool = torch.cat([pool, ENCODER(images, STAGE)[number : number + 1]])
        lowest = _scores(image, pool, unmoved).argsort()[:3]
        torch.testing.assert_close(found[number], pool[lowest])


def test_the_encoder_s_proposal_goes_to_the_image_it_was_made_for() -> None:
    """An encoder that knows the answer wins against every candidate."""
    answers = initial_latents(KEYS, 16, seed=5)
    images = GENERATOR(answers, STAGE)

    class Knowing(Encoder):
        def forward(self, image_BCHW: Tensor, stage: int) -> Tensor:
            return answers[torch.cdist(image_BCHW.flatten(1), images.flatten(1)).argmin(dim=1)]

    knowing = Knowing(resolution=16, channels=1, latent_dim=16, fmap_base=64, fmap_max=32)
    for candidates in (0, COUNT):
        found = _starts(1, candidates=candidates, encoder=knowing)(KEYS, images)
        assert torch.equal(found[:, 0], answers)


def test_an_image_the_generator_made_starts_where_it_was_made() -> None:
    starts = _starts()
    assert starts.candidates
    rows = [5, 31, 0]
    found = starts(KEYS[:3], starts.candidates.image[rows])
    assert torch.equal(found[:, 0], starts.candidates.latent[rows])


@pytest.mark.parametrize("order", [[3], [6, 2, 4], [4, 5, 6, 0, 1, 2, 3]])
def test_a_start_does_not_depend_on_order_or_neighbours(order: list[int]) -> None:
    images, starts = _queries(), _starts(2, encoder=ENCODER)
    some = starts([KEYS[row] for row in order], images[order])
    assert torch.equal(some, starts(KEYS, images)[order])


def test_random_draws_make_up_the_number_where_proposals_are_few() -> None:
    images = _queries()
    drawn = _starts(2, candidates=0)(KEYS, images)
    assert torch.equal(drawn[:, 0], initial_latents(KEYS, 16, seed=3))
    assert len(torch.unique(drawn.flatten(0, 1), dim=0)) == 2 * NUM_IMAGES
    led = _starts(2, candidates=0, encoder=ENCODER)(KEYS, images)
    torch.testing.assert_close(led[:, 0], ENCODER(images, STAGE))
    assert torch.equal(led[:, 1], drawn[:, 0])
    few = _starts(4, candidates=2)(KEYS, images)
    assert torch.equal(few[:, 2:], drawn)


def test_candidates_come_from_the_seed_alone_and_are_no_image_s_own_start() -> None:
    one, same, other = (draw_candidates(_loss(), count=COUNT, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.latent, same.latent)
    assert not torch.equal(one.latent, other.latent)
    assert len(torch.unique(one.latent, dim=0)) == COUNT
    assert not torch.equal(one.latent[:1], initial_latents(["0"], 16, seed=3))


@pytest.mark.parametrize("feature_weight", [0.0, 0.3, 1.0])
def test_the_nearest_candidate_is_what_a_search_without_steps_finds(feature_weight: float) -> None:
    settings = replace(SETTINGS, feature_weight=feature_weight, steps=0)
    starts, block = _starts(settings=settings), _queries()[: SETTINGS.block]
    found = starts.nearest(block, FEATURES(block, STAGE))
    latents = starts(KEYS[: len(block)], block)
    searched = latent_search(GENERATOR, FEATURES, block, latents, settings, stage=STAGE)
    assert vars(found).keys() == vars(searched).keys()
    for name, tensor in vars(found).items():
        torch.testing.assert_close(tensor, getattr(searched, name), rtol=1e-5, atol=1e-6)


def test_starts_are_ends_only_where_a_search_could_find_nothing_else() -> None:
    unmoved = replace(SETTINGS, steps=0)
    assert _starts(settings=unmoved).are_ends
    assert _starts(COUNT, settings=unmoved).are_ends
    assert not _starts(COUNT + 1, settings=unmoved).are_ends
    assert not _starts().are_ends
    assert not _starts(candidates=0, settings=unmoved).are_ends
    assert not _starts(encoder=ENCODER, settings=unmoved).are_ends
    assert not _starts(settings=replace(unmoved, dtype=torch.bfloat16)).are_ends
