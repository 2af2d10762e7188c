"""Latent search: each image on its own, the best seen kept, nothing else touched."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gan.layers import EqualizedConv2d
from gan.model import place
from gan.search import initial_latents, latent_search
from gan.search_loss import feature_loss, residual_loss
from gan.slots import Slots
from tests.searching import KEYS, LATENT_DIM, NUM_IMAGES, SETTINGS, STAGE, networks, queries, search


def test_search_leaves_the_weights_bit_identical() -> None:
    generator, discriminator = networks()
    before = copy.deepcopy((generator.state_dict(), discriminator.state_dict()))
    start = initial_latents(KEYS, LATENT_DIM, seed=3)
    latent_search(
        generator, discriminator.features, queries(), start.unsqueeze(1), SETTINGS, stage=STAGE
    )
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
        generator, discriminator.features, queries(), start.unsqueeze(1), settings, stage=STAGE
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
    found = latent_search(
        generator, discriminator.features, image, start.unsqueeze(1), settings, stage=STAGE
    )
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
    start = (target + 0.3 * torch.randn(1, LATENT_DIM)).unsqueeze(1)
    image = generator(target, STAGE)
    found, begun = (
        latent_search(generator, discriminator.features, image, start, settings, stage=STAGE)
        for settings in (SETTINGS, replace(SETTINGS, steps=0))
    )
    assert float(found.score) < 0.1 * float(begun.score)


def test_no_steps_build_no_graph_and_run_each_network_once() -> None:
    generator, discriminator = networks()
    for network in (generator, discriminator):
        network.requires_grad_(True)
    made: list[Tensor] = []
    generator.register_forward_hook(lambda _module, _inputs, image: made.append(image))
    settings = replace(SETTINGS, steps=0, block=4)
    starts = initial_latents(KEYS, LATENT_DIM, seed=3).unsqueeze(1)
    latent_search(generator, discriminator.features, queries(), starts, settings, stage=STAGE)
    assert [len(image) for image in made] == [4, 4]
    assert not any(image.requires_grad for image in made)


def test_bfloat16_is_close_and_its_losses_are_float32() -> None:
    rows = list(range(NUM_IMAGES))
    exact, rough = (
        search(rows, replace(SETTINGS, steps=10, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.score.dtype == rough.reconstruction.dtype == torch.float32
    torch.testing.assert_close(rough.score, exact.score, rtol=0.03, atol=0)
    assert not torch.equal(rough.score, exact.score)


def test_channels_are_innermost_in_all_convolutions_but_that_of_one_grey_channel() -> None:
    generator, discriminator = (place(n, torch.device("cpu")) for n in networks())
    outer: list[str] = []

    def check(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not output.is_contiguous(memory_format=torch.channels_last):
                outer.append(name)

        return hook

    num_hooks = 0
    for network in (generator, discriminator.features):
        for name, module in network.named_modules():
            if isinstance(module, EqualizedConv2d):
                module.register_forward_hook(check(name))
                num_hooks += 1
    starts = initial_latents(KEYS, LATENT_DIM, seed=3).unsqueeze(1)
    settings = replace(SETTINGS, steps=1)
    latent_search(generator, discriminator.features, queries(), starts, settings, stage=STAGE)
    assert num_hooks > 10
    # One grey channel has no order; what is made of it is put in order by the next convolution.
    assert set(outer) <= {f"from_image.{STAGE}"}


def test_gradient_of_the_loss_meets_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, discriminator = networks(torch.float64)
    image = queries(torch.float64)[:2]
    gradients: list[Tensor] = []

    def record(slots: Slots, gradient: Tensor) -> None:
        gradients.append(gradient)
        slots.age += 1

    monkeypatch.setattr(Slots, "step", record)

    def loss(latent: Tensor, steps: int = 0) -> Tensor:
        settings = replace(SETTINGS, steps=steps)
        return latent_search(
            generator, discriminator.features, image, latent.unsqueeze(1), settings, stage=STAGE
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
