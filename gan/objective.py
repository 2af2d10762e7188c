"""The gamma/alpha objective: known abnormal images are another kind of fake.

    V(D, G) = E_{x~p_d}[log D(x)] + gamma E_z[log(1 - D(G(z)))] + alpha E_{x~p_a}[log(1 - D(x))]

Equation numbers are those of Kimura & Yanagihara 2018 (arXiv:1807.01136). p_d are the training
images called normal, a fraction c of which is abnormal; p_a the known abnormal images; p_g what G
makes. With m = gamma + alpha, gamma = 1 and alpha = 0 is plain AnoGAN training.
"""

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

Density = NDArray[np.float64]

_MOST_ODDS = 0.2
"""c / alpha, the odds that D gives a known abnormal image, are at most so much by the rule."""


def discriminator_loss(
    real_logit: Tensor,
    fake_logit: Tensor,
    abnormal_logit: Tensor | None,
    *,
    gamma: float,
    alpha: float,
    abnormal_weight: Tensor | None = None,
) -> Tensor:
    """Negated V as D maximises it (Eq. 15), on logits: one of each image, or of each of its cells.

    Args:
        real_logit: Float [B, ...], D on training images.
        fake_logit: Float [B, ...], D on generated images.
        abnormal_logit: Float [A, ...], D on known abnormal images; None when alpha is 0.
        gamma: Weight of the generated images.
        alpha: Weight of the known abnormal images.
        abnormal_weight: Float [A, ...], how much each of their cells counts, with sum 1 in each
            image; None: all alike.

    Returns:
        Scalar loss: E softplus(-D(x)) + gamma E softplus(D(G(z))) + alpha E softplus(D(x_a)).
    """
    loss = nnf.softplus(-real_logit).mean() + gamma * nnf.softplus(fake_logit).mean()
    if abnormal_logit is not None:
        penalty = nnf.softplus(abnormal_logit)
        if abnormal_weight is not None:
            penalty = (penalty * abnormal_weight).flatten(1).sum(dim=1)
        loss = loss + alpha * penalty.mean()
    return loss


def generator_loss(fake_logit: Tensor) -> Tensor:
    """Non-saturating loss of G: E softplus(-D(G(z))), a scalar."""
    return nnf.softplus(-fake_logit).mean()


def r1_penalty(real_logit: Tensor, real_image_BCHW: Tensor) -> Tensor:
    """E |grad_x D(x)|^2 on the training images (Mescheder et al. 2018, Eq. 9, without its factor).

    Args:
        real_logit: Float [B, ...], computed from `real_image_BCHW`; of several cells the mean is D.
        real_image_BCHW: Images that require a gradient.

    Returns:
        Scalar, differentiable with respect to D.
    """
    total = real_logit.sum() * (len(real_logit) / real_logit.numel())
    (gradient,) = torch.autograd.grad(total, real_image_BCHW, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def optimal_discriminator(
    p_d: Density, p_g: Density, p_a: Density, *, gamma: float, alpha: float
) -> Density:
    """D*(x) = p_d / (p_d + gamma p_g + alpha p_a) on a grid of densities."""
    return p_d / (p_d + gamma * p_g + alpha * p_a)


def optimal_generator(
    p_d: Density, p_a: Density, *, gamma: float, alpha: float, cell: float
) -> Density:
    """The density G converges to (Eq. 20-23), where the unclipped form may be negative.

    p_g = max(0, (m p_d / kappa - alpha p_a) / gamma), where kappa makes it integrate to 1.

    Args:
        p_d: Density of the training images on a grid.
        p_a: Density of the known abnormal images on the same grid.
        gamma: Weight of the generated images, above 0.
        alpha: Weight of the known abnormal images.
        cell: Volume of one grid cell.

    Returns:
        Density on the grid.
    """
    m = gamma + alpha

    def density(kappa: float) -> Density:
        return np.maximum(0.0, (m * p_d / kappa - alpha * p_a) / gamma)

    # The integral falls in kappa. At kappa = 1 clipping can only have added mass; at m / gamma
    # m p_d / kappa integrates to gamma, so the clipped density integrates to at most 1.
    low, high = 1.0, m / gamma
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if density(middle).sum() * cell > 1.0 else (low, middle)
    return density((low + high) / 2)


def abnormal_mass(contamination: float, *, gamma: float, alpha: float) -> float:
    """Share of G's mass that stays abnormal where p_n and p_a are apart: (m c - alpha) / gamma."""
    return max(0.0, ((gamma + alpha) * contamination - alpha) / gamma)


def weights_for_contamination(contamination: float, *, margin: float = 0.5) -> tuple[float, float]:
    """Choose (gamma, alpha) for a training set with contamination c.

    The abnormal mass left in G vanishes once alpha / (gamma + alpha) reaches c. More alpha leaves
    p_g unchanged where normal and abnormal are apart, and pulls D's logits of the two further
    apart: log(c / alpha) on known abnormal images, which a score can use. So alpha is 1, as heavy
    as the training images, and above c = 0.2 so much more that this logit stays at log 0.2; its
    share is above c everywhere. gamma is 1 - c, reduced by `margin`: the weight of what is normal
    among the training images.

    Args:
        contamination: Fraction c of abnormal images among the training images, in [0, 0.5).
        margin: Relative excess over c that is taken from gamma, which never is below one half.

    Returns:
        (gamma, alpha).

    Raises:
        ValueError: If `contamination` is outside [0, 0.5).
    """
    if not 0.0 <= contamination < 0.5:
        raise ValueError(f"contamination={contamination} must be at least 0 and below 0.5")
    gamma = 1.0 - min(contamination * (1.0 + margin), 0.5)
    return gamma, max(1.0, contamination / _MOST_ODDS)
