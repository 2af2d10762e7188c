"""The objective's theory on known densities: what D and G converge to (Eq. 15 and 20-23).

Normal and abnormal samples are Gaussians two apart with deviation 0.25, so that less than 1e-4 of
either lies on the other's side of zero; `CONTAMINATION` of the training samples are abnormal.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from scipy.optimize import minimize
from scipy.stats import norm
from torch import Tensor, nn

from gan.objective import (
    Density,
    abnormal_mass,
    discriminator_loss,
    optimal_discriminator,
    optimal_generator,
    weights_for_contamination,
)
from gan.step import Objective, StepInput, training_step

CONTAMINATION = 0.2
DEVIATION = 0.25
NUM_SEEDS = 3
BATCH = 256
LATENT_DIM = 4
NUM_STEPS = 1600
WEIGHTS = [(1.0, 0.0), (0.9, 0.1), (0.8, 0.2)]


class StackedMLP(nn.Module):
    """`NUM_SEEDS` separate networks side by side: [B, NUM_SEEDS, F_in] to [B, NUM_SEEDS, F_out].

    No weight is shared and Adam is element-wise, so each pair trains as if it were alone.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList(
            torch.randn(NUM_SEEDS, before, after) * math.sqrt(2 / before) for before, after in pairs
        )
        self.biases = nn.ParameterList(torch.zeros(NUM_SEEDS, 1, after) for _, after in pairs)

    def forward(self, x: Tensor, stage: int, fade: float) -> Tensor:
        x = x.transpose(0, 1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, nnf.leaky_relu(x, 0.2) if layer else x, weight)
        return x.transpose(0, 1)


class StackedDiscriminator(StackedMLP):
    def forward(self, x: Tensor, stage: int, fade: float) -> Tensor:
        return super().forward(x, stage, fade).squeeze(2)


def _samples(dim: int, abnormal_share: float) -> Tensor:
    """[BATCH, NUM_SEEDS, dim]: normal around -1 on the first axis, abnormal around +1."""
    abnormal = torch.rand(BATCH, NUM_SEEDS) < abnormal_share
    x = DEVIATION * torch.randn(BATCH, NUM_SEEDS, dim)
    x[..., 0] += torch.where(abnormal, 1.0, -1.0)
    return x


def _step_share(index: int) -> float:
    """Whole steps for half the training, then falling to zero: GANs circle their equilibrium."""
    return min(1.0, 2 * (1 - index / NUM_STEPS))


def _train(dim: int, gamma: float, alpha: float) -> Iterator[Tensor]:
    """Train with the product's own step; yield samples of G from the last quarter.

    R1 does not move the equilibrium: with gamma + alpha = 1 the best D is constant there.
    """
    generator = StackedMLP(LATENT_DIM, 64, 64, dim)
    discriminator = StackedDiscriminator(dim, 64, 64, 1)
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=lr, betas=(0.0, 0.99))
        for network, lr in ((generator, 1e-3), (discriminator, 2e-3))
    ]
    decays = [torch.optim.lr_scheduler.LambdaLR(optimizer, _step_share) for optimizer in optimizers]
    # The logit is the mean over the seeds: the penalty of each is divided by their square.
    objective = Objective(gamma=gamma, alpha=alpha, r1_weight=0.5 * NUM_SEEDS, r1_interval=2)
    for index in range(NUM_STEPS):
        inputs = StepInput(
            real=_samples(dim, CONTAMINATION),
            abnormal=_samples(dim, 1.0) if alpha else None,
            latent=torch.randn(BATCH, NUM_SEEDS, LATENT_DIM),
            stage=0,
            fade=1.0,
            index=index,
        )
        training_step(generator, discriminator, *optimizers, inputs, objective)
        for decay in decays:
            decay.step()
        if index >= 3 * NUM_STEPS // 4 and index % 10 == 0:
            with torch.no_grad():
                yield generator(torch.randn(1024, NUM_SEEDS, LATENT_DIM), 0, 1.0)


@pytest.mark.parametrize(
    ("dim", "gamma", "alpha"), [(1, 0.8, 0.2), *((2, *weights) for weights in WEIGHTS)]
)
def test_trained_generator_keeps_the_predicted_abnormal_mass(
    dim: int, gamma: float, alpha: float
) -> None:
    samples = torch.stack(list(_train(dim, gamma, alpha)))  # [snapshots, 1024, NUM_SEEDS, dim]
    masses = (samples[..., 0] > 0).double().mean(dim=(0, 1))
    expected = abnormal_mass(CONTAMINATION, gamma=gamma, alpha=alpha)
    # Each seed must hold by itself.
    assert (masses - expected).abs().max() < 0.04, f"masses {masses.tolist()}, expected {expected}"
    for seed in range(NUM_SEEDS):
        x = samples[:, :, seed].flatten(0, 1)
        normal = x[x[:, 0] < 0]
        centre = torch.tensor([-1.0, 0.0])[:dim]
        # A generator stuck on one point would also keep little abnormal mass.
        torch.testing.assert_close(normal.mean(dim=0), centre, atol=0.1, rtol=0)
        spread = normal.std(dim=0)
        assert (spread > 0.6 * DEVIATION).all(), f"seed {seed} collapsed: {spread.tolist()}"
        assert (spread < 1.6 * DEVIATION).all(), f"seed {seed} is too wide: {spread.tolist()}"


@pytest.mark.parametrize(("gamma", "alpha"), WEIGHTS)
def test_trained_discriminator_meets_the_closed_form(gamma: float, alpha: float) -> None:
    """D alone against fixed densities: quantiles in place of random samples, hence no noise."""
    levels = (np.arange(1000) + 0.5) / 1000
    normal, abnormal = (norm(centre, 0.5) for centre in (-1.0, 1.0))
    fake = norm(0.0, 0.8)
    real_x = np.concatenate([np.repeat(normal.ppf(levels), 4), abnormal.ppf(levels)])
    parts = [
        torch.tensor(x, dtype=torch.float32).unsqueeze(1)
        for x in (real_x, fake.ppf(levels), abnormal.ppf(levels))
    ]
    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = [net(part) for part in parts]
        loss = discriminator_loss(*logits, gamma=gamma, alpha=alpha)
        loss.backward()
        return loss

    optimizer.step(closure)
    grid = np.linspace(-2.0, 2.0, 81)
    p_d = (1 - CONTAMINATION) * normal.pdf(grid) + CONTAMINATION * abnormal.pdf(grid)
    expected = optimal_discriminator(
        p_d, fake.pdf(grid), abnormal.pdf(grid), gamma=gamma, alpha=alpha
    )
    with torch.no_grad():
        found = net(torch.tensor(grid, dtype=torch.float32).unsqueeze(1)).sigmoid().squeeze(1)
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)


@pytest.mark.parametrize(("gamma", "alpha"), [*WEIGHTS, (1.0, 0.5)])
def test_loss_is_stationary_at_the_closed_form(gamma: float, alpha: float) -> None:
    counts = {"real": [1, 4, 2, 3], "fake": [4, 1, 3, 2], "abnormal": [1, 1, 3, 5]}
    p_d, p_g, p_a = (np.array(n) / 10 for n in counts.values())
    best = optimal_discriminator(p_d, p_g, p_a, gamma=gamma, alpha=alpha)
    logit = torch.tensor(np.log(best / (1 - best)), requires_grad=True)
    cells = [torch.repeat_interleave(torch.arange(4), torch.tensor(n)) for n in counts.values()]
    loss = discriminator_loss(*(logit[index] for index in cells), gamma=gamma, alpha=alpha)
    loss.backward()
    assert logit.grad is not None
    assert logit.grad.abs().max() < 1e-15


def _grid_densities(distance: float) -> tuple[Density, Density, float]:
    x, cell = np.linspace(-3.0, 3.0, 31, retstep=True)
    p_n, p_a = norm.pdf(x, -distance / 2, 0.5), norm.pdf(x, distance / 2, 0.5)
    p_n, p_a = p_n / (p_n.sum() * cell), p_a / (p_a.sum() * cell)
    return (1 - CONTAMINATION) * p_n + CONTAMINATION * p_a, p_a, float(cell)


def _brute_force(p_d: Density, p_a: Density, gamma: float, alpha: float, cell: float) -> Density:
    """Minimise V(D*, G) over all densities on the grid, knowing nothing of the closed form."""

    def value(p_g: Density) -> float:
        fake = gamma * p_g + alpha * p_a
        return float((p_d * np.log(p_d / (p_d + fake)) + fake * np.log(fake / (p_d + fake))).sum())

    result = minimize(
        value,
        np.full_like(p_d, 1 / (cell * len(p_d))),
        method="SLSQP",
        bounds=[(1e-9, None)] * len(p_d),
        constraints={"type": "eq", "fun": lambda p_g: p_g.sum() * cell - 1.0},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert result.success, result.message
    return np.asarray(result.x)


@pytest.mark.parametrize("distance", [0.8, 2.0])
@pytest.mark.parametrize(("gamma", "alpha"), [*WEIGHTS, (0.5, 0.5), (1.0, 0.5)])
def test_optimal_generator_is_the_brute_force_minimum(
    distance: float, gamma: float, alpha: float
) -> None:
    p_d, p_a, cell = _grid_densities(distance)
    p_g = optimal_generator(p_d, p_a, gamma=gamma, alpha=alpha, cell=cell)
    assert p_g.sum() * cell == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(p_g, _brute_force(p_d, p_a, gamma, alpha, cell), atol=2e-3)


def test_optimal_generator_is_the_plain_formula_where_that_is_positive() -> None:
    p_d, p_a, cell = _grid_densities(0.8)
    formula = (1.0 * p_d - 0.1 * p_a) / 0.9
    assert formula.min() > 0
    p_g = optimal_generator(p_d, p_a, gamma=0.9, alpha=0.1, cell=cell)
    np.testing.assert_allclose(p_g, formula, rtol=1e-12)


def test_one_constant_relates_the_densities_wherever_the_generator_is_positive() -> None:
    p_d, p_a, cell = _grid_densities(2.0)
    gamma, alpha = 0.5, 0.5
    p_g = optimal_generator(p_d, p_a, gamma=gamma, alpha=alpha, cell=cell)
    assert (p_g == 0).any()
    mixture = (gamma * p_g + alpha * p_a) / (gamma + alpha)
    kappa = (p_d / mixture)[p_g > 0]
    assert kappa[0] > 1.0
    np.testing.assert_allclose(kappa, kappa[0], rtol=1e-12)
    # Zero where even no generated sample leaves the mixture too heavy.
    assert (p_d <= kappa[0] * mixture * (1 + 1e-12))[p_g == 0].all()


@pytest.mark.parametrize(("gamma", "alpha"), [*WEIGHTS, (0.6, 0.4), (1.0, 0.5), (1.0, 0.1)])
def test_abnormal_mass_is_the_mass_of_the_optimal_generator(gamma: float, alpha: float) -> None:
    p_n, p_a = np.array([0.3, 0.7, 0.0, 0.0]), np.array([0.0, 0.0, 0.5, 0.5])
    p_d = (1 - CONTAMINATION) * p_n + CONTAMINATION * p_a
    p_g = optimal_generator(p_d, p_a, gamma=gamma, alpha=alpha, cell=1.0)
    expected = abnormal_mass(CONTAMINATION, gamma=gamma, alpha=alpha)
    assert p_g[2:].sum() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("contamination", [0.0, 0.05, 0.2, 0.4, 0.499])
def test_suggested_weights_leave_no_abnormal_mass(contamination: float) -> None:
    gamma, alpha = weights_for_contamination(contamination)
    assert 0.5 <= gamma <= 1
    assert alpha == pytest.approx(max(1, 5 * contamination)), (
        "D's logit on known defects is log 0.2 or below"
    )
    assert abnormal_mass(contamination, gamma=gamma, alpha=alpha) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("contamination", [-0.1, 0.5, float("nan")])
def test_suggested_weights_refuse_an_impossible_contamination(contamination: float) -> None:
    with pytest.raises(ValueError, match="contamination="):
        weights_for_contamination(contamination)
