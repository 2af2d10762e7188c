"""One training step of both networks: no files, no cluster, no clock."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gan.objective import discriminator_loss, generator_loss, r1_penalty


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights of the training objective.

    Attributes:
        gamma: Weight of generated images in D's loss, in (0, 1].
        alpha: Weight of known abnormal images in D's loss, 0 for plain AnoGAN training.
        r1_weight: Factor r1 of (r1 / 2) E|grad D(x)|^2.
        r1_interval: Steps between two evaluations of R1; each is scaled by this number.
    """

    gamma: float
    alpha: float
    r1_weight: float
    r1_interval: int


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """What one rank feeds into one step.

    Attributes:
        real: Float [B, C, R, R] training images in [-1, 1].
        abnormal: Float [A, C, R, R] known abnormal images, or None when alpha is 0.
        latent: Float [B, Z] standard normal.
        stage: Stage of both networks.
        fade: Weight of the newest block in [0, 1].
        index: Number of this step since training began; decides when R1 is due.
    """

    real: Tensor
    abnormal: Tensor | None
    latent: Tensor
    stage: int
    fade: float
    index: int


def training_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer_g: Optimizer,
    optimizer_d: Optimizer,
    inputs: StepInput,
    objective: Objective,
) -> dict[str, Tensor]:
    """Update D, then G against the updated D, on the same generated images.

    Either network may be wrapped for data-parallel training; gradients are then averages over
    ranks, which equals one rank with the joint batch because every loss is a mean over equal
    shares.

    Returns:
        Detached scalars: loss_d, loss_g, r1 (only where due) and the mean logits
        logit_real, logit_fake, logit_abnormal.
    """
    fake = generator(inputs.latent, inputs.stage, inputs.fade)
    stats = _discriminator_step(discriminator, optimizer_d, fake.detach(), inputs, objective)
    bare: nn.Module = getattr(discriminator, "module", discriminator)
    with _frozen(bare):
        loss_g = generator_loss(bare(fake, inputs.stage, inputs.fade))
        optimizer_g.zero_grad(set_to_none=True)
        loss_g.backward()
    optimizer_g.step()
    return stats | {"loss_g": loss_g.detach()}


def _discriminator_step(
    discriminator: nn.Module,
    optimizer: Optimizer,
    fake: Tensor,
    inputs: StepInput,
    objective: Objective,
) -> dict[str, Tensor]:
    assert (objective.alpha > 0) == (inputs.abnormal is not None), "alpha needs abnormal images"
    r1_due = objective.r1_weight > 0 and inputs.index % objective.r1_interval == 0
    real = inputs.real.detach().requires_grad_(r1_due)
    parts = [real, fake] if inputs.abnormal is None else [real, fake, inputs.abnormal]
    # One forward pass over all parts: whole minibatch-std groups keep them apart.
    logits = discriminator(torch.cat(parts), inputs.stage, inputs.fade)
    logit_real, logit_fake, *rest = logits.split([len(part) for part in parts])
    logit_abnormal = rest[0] if rest else None
    loss = discriminator_loss(
        logit_real, logit_fake, logit_abnormal, gamma=objective.gamma, alpha=objective.alpha
    )
    stats = {
        "loss_d": loss.detach(),
        "logit_real": logit_real.detach().mean(),
        "logit_fake": logit_fake.detach().mean(),
    }
    if logit_abnormal is not None:
        stats["logit_abnormal"] = logit_abnormal.detach().mean()
    if r1_due:
        penalty = r1_penalty(logit_real, real)
        stats["r1"] = penalty.detach()
        loss = loss + penalty * (objective.r1_weight / 2 * objective.r1_interval)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return stats


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    trainable = [p for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
