"""A discriminator on patches: its layers, how much each cell counts, and the objective's theory."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from scipy.stats import norm
from torch import Tensor, nn

from gan.objective import discriminator_loss, optimal_discriminator, r1_penalty
from gan.patches import PatchDiscriminator, SpectralConv2d, cell_weights
from tests.frozen_map import FrozenMap

CONTAMINATION = 0.2
WEIGHTS = [(1.0, 0.0), (0.8, 0.2), (0.7, 1.0)]
LAYERS = [(5, 1, 1), (4, 4, 3), (2, 7, 3)]


@pytest.mark.parametrize(("before", "after", "kernel"), LAYERS)
def test_a_convolution_is_divided_by_its_largest_singular_value(
    before: int, after: int, kernel: int
) -> None:
    layer = SpectralConv2d(before, after, kernel).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, before, 5, 5, dtype=torch.float64)
    largest = torch.linalg.svdvals(layer.weight.flatten(1))[0]
    expected = nnf.conv2d(x, layer.weight / largest, layer.bias, padding="same")
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("before", "after", "kernel"), LAYERS)
def test_gradients_of_the_convolution_and_of_r1_through_it(
    before: int, after: int, kernel: int
) -> None:
    layer = SpectralConv2d(before, after, kernel).double()
    x = torch.randn(2, before, 3, 3, dtype=torch.float64, requires_grad=True)

    def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, values, (x,))

    def penalty(weight: Tensor) -> Tensor:
        return r1_penalty(convolved(x, weight, layer.bias).square(), x)

    assert torch.autograd.gradcheck(convolved, (x, layer.weight, layer.bias))
    assert torch.autograd.gradcheck(penalty, (layer.weight,))


def _discriminator() -> PatchDiscriminator:
    return PatchDiscriminator(FrozenMap(), width=8)


def test_the_mean_of_all_cells_is_the_mean_of_the_heads_means() -> None:
    discriminator, image = _discriminator(), torch.rand(3, 1, 8, 8)
    logits, grids = discriminator(image, 1), discriminator.logits(discriminator.features(image, 1))
    assert logits.shape == (3, 2, 4, 4)
    assert [grid.shape for grid in grids] == [(3, 4, 4), (3, 2, 2)]
    means = torch.stack([grid.mean(dim=(1, 2)) for grid in grids]).mean(dim=0)
    torch.testing.assert_close(logits.mean(dim=(1, 2, 3)), means)
    for y in range(4):
        for x in range(4):
            assert torch.equal(logits[:, 0, y, x], grids[0][:, y, x])
            assert torch.equal(logits[:, 1, y, x], grids[1][:, y // 2, x // 2])


def test_r1_on_cells_is_that_of_the_mean_logit() -> None:
    discriminator = _discriminator().double()
    image = torch.rand(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    mean = discriminator(image, 1).mean(dim=(1, 2, 3))
    found = r1_penalty(discriminator(image, 1), image)
    torch.testing.assert_close(found, r1_penalty(mean, image))
    assert found > 0


def test_heads_alone_are_trained_and_images_stay_apart() -> None:
    discriminator = _discriminator()
    discriminator.activate(1, fading=True)
    trained = {name for name, p in discriminator.named_parameters() if p.requires_grad}
    parts = [f"{layer}.{part}" for layer in ("conv", "logit") for part in ("weight", "bias")]
    assert trained == {f"heads.{head}.{part}" for head in range(2) for part in parts}
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(discriminator(images, 1)[:1], discriminator(images[:1], 1))


def _masks(side: int, number: int = 6) -> Tensor:
    """Sparse masks; the first is empty, the second has one pixel, the last is full."""
    masks = torch.rand(number, 1, side, side) < 0.08
    masks[0], masks[1], masks[-1] = False, False, True
    masks[1, 0, side // 3, side - 1] = True
    return masks


def _touched(mask_RR: Tensor, grid: int) -> Tensor:
    """Bool [grid, grid]: cells that share area with a marked pixel, one by one; all if none."""
    side = len(mask_RR)
    touched = torch.zeros(grid, grid, dtype=torch.bool)
    for y, x in mask_RR.nonzero().tolist():
        for row in range(grid):
            for column in range(grid):
                shares = [
                    pixel * grid < (cell + 1) * side and (pixel + 1) * grid > cell * side
                    for pixel, cell in ((y, row), (x, column))
                ]
                touched[row, column] |= all(shares)
    return touched if touched.any() else ~touched


@pytest.mark.parametrize("side", [4, 8, 16])
def test_touched_cells_count_alike_as_a_slow_loop_has_it(side: int) -> None:
    masks, grids = _masks(side), (8, 4, 1)
    found = cell_weights(masks, grids)
    assert found.shape == (6, 3, 8, 8)
    for image in range(6):
        for level, grid in enumerate(grids):
            times = 8 // grid
            touched = _touched(masks[image, 0], grid).float()
            expected = touched.repeat_interleave(times, 0).repeat_interleave(times, 1)
            expected /= expected.sum() * len(grids)
            torch.testing.assert_close(found[image, level], expected)


def test_an_image_weighs_one_whatever_the_size_of_its_defect() -> None:
    weights = cell_weights(_masks(16), (8, 4, 1))
    torch.testing.assert_close(weights.sum(dim=(2, 3)), torch.full((6, 3), 1 / 3))
    torch.testing.assert_close(weights[0], torch.full((3, 8, 8), 1 / 192))
    torch.testing.assert_close(weights[0], weights[-1])


def test_the_loss_of_a_defect_does_not_depend_on_its_size() -> None:
    masks = _masks(8)[1:]
    logit = torch.where(masks, 2.0, -1.0)
    weight = cell_weights(masks, (8,))
    assert len(set(masks.sum(dim=(1, 2, 3)).tolist())) > 2
    for size in range(1, 6):
        real = fake = torch.full((1,), -math.inf)
        part = {"gamma": 1.0, "alpha": 0.3, "abnormal_weight": weight[:size]}
        loss = discriminator_loss(-real, fake, logit[:size], **part)
        assert float(loss) == pytest.approx(0.3 * math.log1p(math.exp(2)), rel=1e-5)


def test_the_weight_of_an_image_does_not_depend_on_the_others() -> None:
    masks = _masks(16)
    for number in range(6):
        alone = cell_weights(masks[number : number + 1], (8, 4, 1))
        assert torch.equal(alone[0], cell_weights(masks, (8, 4, 1))[number])


@pytest.mark.parametrize(("gamma", "alpha"), WEIGHTS[1:])
def test_loss_on_cells_is_stationary_at_the_closed_form(gamma: float, alpha: float) -> None:
    """Each head by itself; cells are of four kinds, and D has a logit for each kind and head.

    p_a is the density of a touched cell drawn at random from an image drawn at random.
    """
    masks, grids = _masks(8), (4, 2)
    kinds = {"real": 5, "fake": 5, "abnormal": len(masks)}
    drawn = {
        name: [torch.randint(4, (number, grid, grid)) for grid in grids]
        for name, number in kinds.items()
    }
    logit = torch.empty(2, 4, dtype=torch.float64)
    for head, grid in enumerate(grids):
        p_d, p_g = (_density(list(drawn[name][head])) for name in ("real", "fake"))
        touched = [_touched(mask[0], grid) for mask in masks]
        pairs = zip(drawn["abnormal"][head], touched, strict=True)
        p_a = _density([cells[marks] for cells, marks in pairs])
        best = optimal_discriminator(p_d, p_g, p_a, gamma=gamma, alpha=alpha)
        logit[head] = torch.tensor(np.log(best / (1 - best)))
    logit.requires_grad_()
    shown = {}
    for name, levels in drawn.items():
        finest = [
            level.repeat_interleave(4 // grid, 1).repeat_interleave(4 // grid, 2)
            for level, grid in zip(levels, grids, strict=True)
        ]
        shown[name] = torch.stack([logit[head][cells] for head, cells in enumerate(finest)], dim=1)
    loss = discriminator_loss(
        *shown.values(), gamma=gamma, alpha=alpha, abnormal_weight=cell_weights(masks, grids)
    )
    loss.backward()
    assert logit.grad is not None
    # The weights of cells have single precision.
    assert logit.grad.abs().max() < 1e-7


def _density(images: list[Tensor]) -> np.ndarray:
    """Share of each of four kinds in a cell drawn at random from an image drawn at random."""
    shares = [np.bincount(cells.flatten().numpy(), minlength=4) / cells.numel() for cells in images]
    return np.mean(shares, axis=0)


class FixedWaves(nn.Module):
    """A number as two levels of one cell: waves of it, of fixed random length and phase."""

    channels = (16, 16)
    grids = (1, 1)
    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.waves = [torch.randn(2, 16, 1, 1, dtype=torch.float64) for _ in self.channels]

    def forward(self, x_B111: Tensor, stage: int, fade: float = 1.0) -> list[Tensor]:
        # Norms are 1, so that only long vectors lead to the logits of a sharp verdict.
        return [20 * torch.sin(0.7 * length * x_B111 + 2 * phase) for length, phase in self.waves]

    def activate(self, stage: int, *, fading: bool) -> None:
        raise NotImplementedError

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(("gamma", "alpha"), WEIGHTS)
def test_trained_heads_meet_the_closed_form(gamma: float, alpha: float) -> None:
    """On quantiles in place of random samples, hence without noise; each head by itself."""
    levels = (np.arange(100) + 0.5) / 100
    normal, abnormal, fake = norm(-1.0, 0.5), norm(1.0, 0.5), norm(0.0, 0.8)
    sizes, part = [500, 100, 100], abnormal.ppf(levels)
    x = np.concatenate([np.repeat(normal.ppf(levels), 4), part, fake.ppf(levels), part])
    shown = torch.tensor(x).view(-1, 1, 1, 1)
    discriminator = PatchDiscriminator(FixedWaves(), width=8).double()
    optimizer = torch.optim.LBFGS(
        discriminator.parameters(), max_iter=60, line_search_fn="strong_wolfe"
    )
    weight = cell_weights(torch.ones(100, 1, 1, 1, dtype=torch.bool), (1, 1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = discriminator(shown, 0).split(sizes)
        loss = discriminator_loss(*logits, gamma=gamma, alpha=alpha, abnormal_weight=weight)
        loss.backward()
        return loss

    optimizer.step(closure)
    grid = np.linspace(-1.8, 1.8, 73)
    p_d = (1 - CONTAMINATION) * normal.pdf(grid) + CONTAMINATION * abnormal.pdf(grid)
    expected = optimal_discriminator(
        p_d, fake.pdf(grid), abnormal.pdf(grid), gamma=gamma, alpha=alpha
    )
    with torch.no_grad():
        found = discriminator(torch.tensor(grid).view(-1, 1, 1, 1), 0).sigmoid()
    for head in range(2):
        np.testing.assert_allclose(found[:, head, 0, 0].numpy(), expected, atol=0.03)
