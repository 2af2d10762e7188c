"""Latent search: exact against a plain reference, and each image on its own."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gan.networks import Discriminator, Generator, ProgressiveFeatures
from gan.search import (
    SearchResult,
    SearchSettings,
    feature_loss,
    initial_latents,
    latent_search,
    residual_loss,
)

STAGE = 2
LATENT_DIM = 16
NUM_IMAGES = 7
SETTINGS = SearchSettings(steps=100, step_size=0.05, feature_weight=0.3, feature_levels=(0, -1))
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
    return latent_search(generator, discriminator.features, image, start, settings, stage=STAGE)


def plain_search(row: int, settings: SearchSettings) -> tuple[Tensor, float, int]:
    """Algorithm 1 as written, for one image, in float64: best latent, best loss, its step."""
    generator, discriminator = networks(torch.float64)
    image = queries(torch.float64)[row : row + 1]
    z = initial_latents([KEYS[row]], LATENT_DIM, seed=3).double().requires_grad_()
    adam = torch.optim.Adam([z], lr=settings.step_size)
    best = (z.detach().clone(), float("inf"), -1)
    for step in range(settings.steps + 1):
        adam.zero_grad()
        made = generator(z, STAGE)
        f_image, f_made = discriminator.features(image, STAGE), discriminator.features(made, STAGE)
        feature = sum(
            (f_image[level] - f_made[level]).abs().mean() for level in settings.feature_levels
        ) / len(settings.feature_levels)
        weight = settings.feature_weight
        loss = (1 - weight) * (image - made).abs().mean() + weight * feature
        if loss.item() < best[1]:
            best = (z.detach().clone(), loss.item(), step)
        loss.backward()
        adam.step()
    return best


@pytest.mark.parametrize("feature_levels", [(0,), (0, -1)])
def test_batched_search_is_algorithm_1(feature_levels: tuple[int, ...]) -> None:
    settings = replace(SETTINGS, feature_levels=feature_levels, steps=40)
    found = search(list(range(NUM_IMAGES)), settings, torch.float64)
    for row in range(NUM_IMAGES):
        latent, score, step = plain_search(row, settings)
        assert float(found.score[row]) == pytest.approx(score, rel=1e-9)
        assert int(found.step[row]) == step
        torch.testing.assert_close(found.latent[row], latent[0], rtol=0, atol=1e-8)


def test_search_leaves_the_weights_bit_identical() -> None:
    generator, discriminator = networks()
    before = copy.deepcopy((generator.state_dict(), discriminator.state_dict()))
    start = initial_latents(KEYS, LATENT_DIM, seed=3)
    latent_search(generator, discriminator.features, queries(), start, SETTINGS, stage=STAGE)
    for network, kept in zip((generator, discriminator), before, strict=True):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, kept[name]), name
        assert all(p.grad is None for p in network.parameters())


def test_search_fills_no_gradients_of_trainable_networks() -> None:
    generator, discriminator = networks()
    for network in (generator, discriminator):
        network.requires_grad_(True)
    start = initial_latents(KEYS, LATENT_DIM, seed=3)
    settings = replace(SETTINGS, steps=2)
    found = latent_search(
        generator, discriminator.features, queries(), start, settings, stage=STAGE
    )
    assert all(p.grad is None for n in (generator, discriminator) for p in n.parameters())
    assert not found.score.requires_grad
    assert not found.reconstruction.requires_grad
    assert torch.equal(start, initial_latents(KEYS, LATENT_DIM, seed=3))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_score_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    """Bit for bit: every block has the same size, whatever the batch."""
    settings = replace(SETTINGS, block=4)
    together = search(list(range(NUM_IMAGES)), settings)
    batches = torch.arange(NUM_IMAGES).split(batch_size)
    apart = torch.cat([search(rows.tolist(), settings).score for rows in batches])
    assert torch.equal(apart, together.score)


def test_score_does_not_depend_on_order_or_neighbours() -> None:
    together = search(list(range(NUM_IMAGES)))
    order = [5, 0, 3, 6, 1, 4, 2]
    assert torch.equal(search(order).score, together.score[order])
    assert torch.equal(search([2, 2, 2, 0, 2, 2, 2]).score[4], together.score[2])


def test_same_search_twice_is_bit_identical() -> None:
    first, second = search([0, 1, 2]), search([0, 1, 2])
    assert torch.equal(first.score, second.score)
    assert torch.equal(first.latent, second.latent)


def test_more_steps_never_give_a_worse_score() -> None:
    settings = replace(SETTINGS, step_size=0.3)
    found = [search([0, 1, 2], replace(settings, steps=steps)) for steps in range(0, 30, 3)]
    for fewer, more in pairwise(found):
        assert (more.score <= fewer.score).all()
    assert (found[-1].score < found[0].score).all()


def test_a_start_that_is_already_best_is_kept() -> None:
    """Every step away from the exact latent is worse, the last one too."""
    generator, discriminator = networks()
    start = initial_latents(KEYS, LATENT_DIM, seed=3)
    image = generator(start, STAGE)
    settings = replace(SETTINGS, steps=5, step_size=0.5)
    found = latent_search(generator, discriminator.features, image, start, settings, stage=STAGE)
    assert torch.equal(found.latent, start)
    torch.testing.assert_close(found.score, torch.zeros(NUM_IMAGES), rtol=0, atol=1e-6)
    assert (found.step == 0).all()


def test_no_steps_score_the_start() -> None:
    found = search([0, 1], replace(SETTINGS, steps=0))
    assert torch.equal(found.latent, initial_latents(KEYS[:2], LATENT_DIM, seed=3))


@pytest.mark.parametrize("step_size", [0.05, 1.0])
def test_everything_reported_belongs_to_the_best_latent(step_size: float) -> None:
    generator, discriminator = networks()
    found = search(list(range(NUM_IMAGES)), replace(SETTINGS, step_size=step_size))
    image = queries()
    with torch.no_grad():
        made = generator(found.latent, STAGE)
        maps = [discriminator.features(x, STAGE) for x in (image, made)]
    torch.testing.assert_close(found.reconstruction, made)
    torch.testing.assert_close(found.residual, residual_loss(image, made))
    selected = [[levels[0], levels[-1]] for levels in maps]
    torch.testing.assert_close(found.feature, feature_loss(*selected))
    torch.testing.assert_close(found.score, 0.7 * found.residual + 0.3 * found.feature)


def test_search_finds_an_image_the_generator_made() -> None:
    generator, discriminator = networks()
    target = initial_latents(["target"], LATENT_DIM, seed=0)
    start = target + 0.3 * torch.randn(1, LATENT_DIM)
    image = generator(target, STAGE)
    found = latent_search(generator, discriminator.features, image, start, SETTINGS, stage=STAGE)
    begun = latent_search(
        generator, discriminator.features, image, start, replace(SETTINGS, steps=0), stage=STAGE
    )
    assert float(found.score) < 0.1 * float(begun.score)


def test_gradient_of_the_loss_meets_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, discriminator = networks(torch.float64)
    image = queries(torch.float64)[:2]
    gradients: list[Tensor] = []

    def record(_: object, latent: Tensor, gradient: Tensor) -> Tensor:
        gradients.append(gradient)
        return latent

    monkeypatch.setattr("gan.search._LatentAdam.step", record)

    def loss(latent: Tensor, steps: int = 0) -> Tensor:
        settings = replace(SETTINGS, steps=steps)
        return latent_search(
            generator, discriminator.features, image, latent, settings, stage=STAGE
        ).score

    start = initial_latents(KEYS[:2], LATENT_DIM, seed=3).double()
    loss(start, steps=1)
    for column in range(LATENT_DIM):
        shift = torch.zeros(LATENT_DIM, dtype=torch.float64)
        shift[column] = 1e-6
        slope = (loss(start + shift) - loss(start - shift)) / 2e-6
        torch.testing.assert_close(slope, gradients[0][:2, column], rtol=1e-5, atol=1e-8)


def test_start_comes_from_key_and_seed_alone() -> None:
    latents = initial_latents(KEYS, LATENT_DIM, seed=3)
    assert torch.equal(initial_latents(KEYS[::-1], LATENT_DIM, seed=3), latents.flip(0))
    torch.manual_seed(99)
    assert torch.equal(initial_latents(KEYS[4:5], LATENT_DIM, seed=3)[0], latents[4])
    assert not torch.equal(initial_latents(KEYS, LATENT_DIM, seed=4), latents)
    assert len({tuple(row.tolist()) for row in latents}) == NUM_IMAGES


def test_starts_are_standard_normal() -> None:
    latents = initial_latents([str(number) for number in range(2000)], LATENT_DIM, seed=0)
    assert float(latents.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.02)


def test_losses_are_means_per_image() -> None:
    image = torch.randn(3, 1, 4, 4)
    made = image + torch.tensor([0.5, -1.0, 2.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(residual_loss(image, made), torch.tensor([0.5, 1.0, 2.0]))
    coarse = torch.zeros(3, 8, 2, 2)
    distance = feature_loss([image, coarse], [made, coarse + 3.0])
    torch.testing.assert_close(distance, torch.tensor([1.75, 2.0, 2.5]))
