"""One training step of both networks: no files, no cluster, no clock."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gan.layers import faded
from gan.objective import discriminator_loss, generator_loss, r1_penalty


class Augment(Protocol):
    """Random change of images that D is shown, differentiable."""

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Images, each changed or not."""

    def marked(self, image_BCHW: Tensor, mask_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """The same for images with masks, which stay where their defects are."""


class Unaugmented:
    """No change."""

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """The images."""
        return image_BCHW

    def marked(self, image_BCHW: Tensor, mask_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """The images and their masks."""
        return image_BCHW, mask_B1HW


UNAUGMENTED = Unaugmented()


class NonFiniteError(ArithmeticError):
    """A gradient is no longer finite; raised on all ranks alike, before its network changes."""


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
        abnormal_mask: Bool [A, 1, R, R], where their defects are, for a discriminator that judges
            patches; None: not known.
    """

    real: Tensor
    abnormal: Tensor | None
    latent: Tensor
    stage: int
    fade: float
    index: int
    abnormal_mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a step is computed; but for rounding, not what it computes.

    Attributes:
        num_parts: Parts the batch is cut into, one after the other in memory; gradients add up.
            Each part must be made of whole minibatch-std groups. Augmentation draws part by part,
            so with it another number is another draw.
        dtype: float32, or bfloat16 for the convolutions; head of D, losses and the whole of D's
            update where R1 is due stay in float32.
    """

    num_parts: int = 1
    dtype: torch.dtype = torch.float32


WHOLE = Execution()


def training_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer_g: Optimizer,
    optimizer_d: Optimizer,
    inputs: StepInput,
    objective: Objective,
    *,
    augment: Augment = UNAUGMENTED,
    execution: Execution = WHOLE,
) -> dict[str, Tensor]:
    """Update D, then G against the updated D, on the same generated images.

    Either network may be wrapped for data-parallel training; gradients are then averages over
    ranks, which equals one rank with the joint batch because every loss is a mean over equal
    shares.

    Args:
        generator: G, perhaps wrapped.
        discriminator: D, perhaps wrapped.
        optimizer_g: Optimiser of G.
        optimizer_d: Optimiser of D.
        inputs: Images and latents.
        objective: Weights of the losses.
        augment: Random change of every image that D is shown.
        execution: How to compute it.

    Returns:
        Detached scalars: loss_d, loss_g, r1 (only where due), the mean logits logit_real,
        logit_fake, logit_abnormal, sign_real, and the Euclidean norms of the gradients
        grad_norm_d, grad_norm_g. sign_real is the mean sign of logit + log(gamma) on training
        images: D's best logit is -log(gamma) where generated images are as frequent as training
        images, so that, as in Karras et al. 2020, only what D knows by heart makes it positive.

    Raises:
        NonFiniteError: If a gradient is not finite; on all ranks alike.
    """
    parts = _parts(_faded(inputs), execution.num_parts)
    # With one part G's graph serves both updates; with several it is made anew, part by part.
    with torch.set_grad_enabled(len(parts) == 1), _cast(inputs, execution):
        fakes = [_full(generator(part.latent, part.stage, part.fade)) for part in parts]
    pairs = list(zip(parts, fakes, strict=True))

    def loss_d(part: StepInput, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        shown = augment(fake.detach())
        return _discriminator_loss(discriminator, shown, part, objective, augment, execution)

    stats = _descend(discriminator, optimizer_d, pairs, loss_d, "d")
    bare = _bare(discriminator)

    def loss_g(part: StepInput, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with _cast(inputs, execution):
            made = fake if fake.requires_grad else generator(part.latent, part.stage, part.fade)
        # Where pixels are sampled needs all digits, here as in D's update.
        shown = augment(_full(made))
        with _cast(inputs, execution):
            loss = generator_loss(_full(bare(shown, part.stage, part.fade)))
        return loss, {"loss_g": loss.detach()}

    with _frozen(bare):
        return stats | _descend(generator, optimizer_g, pairs, loss_g, "g")


def _descend(
    network: nn.Module,
    optimizer: Optimizer,
    pairs: list[tuple[StepInput, Tensor]],
    loss_of: Callable[[StepInput, Tensor], tuple[Tensor, dict[str, Tensor]]],
    name: str,
) -> dict[str, Tensor]:
    """Add up the gradients of all parts and take one step, unless they are broken."""
    optimizer.zero_grad(set_to_none=True)
    means: dict[str, Tensor] = {}
    for number, pair in enumerate(pairs, start=1):
        with _syncing(network, last=number == len(pairs)):
            loss, stats = loss_of(*pair)
            (loss / len(pairs)).backward()
        for key, value in stats.items():
            share = value / len(pairs)
            means[key] = means[key] + share if key in means else share
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # Gradients are the same on all ranks, so all of them stop here or none does.
    if not norm.isfinite():
        raise NonFiniteError(f"the gradient of {name.upper()} is not finite")
    optimizer.step()
    return means | {f"grad_norm_{name}": norm}


def r1_is_due(objective: Objective, index: int) -> bool:
    """Whether the step of this number evaluates R1."""
    return objective.r1_weight > 0 and index % objective.r1_interval == 0


def _discriminator_loss(
    discriminator: nn.Module,
    fake: Tensor,
    inputs: StepInput,
    objective: Objective,
    augment: Augment,
    execution: Execution,
) -> tuple[Tensor, dict[str, Tensor]]:
    assert (objective.alpha > 0) == (inputs.abnormal is not None), "alpha needs abnormal images"
    r1_due = r1_is_due(objective, inputs.index)
    # R1 is taken at what D is shown, so that nothing has to be differentiated twice but D.
    real = augment(inputs.real).detach().requires_grad_(r1_due)
    abnormal, weight = _abnormal(_bare(discriminator), inputs, augment)
    parts = [real, fake] if abnormal is None else [real, fake, abnormal]
    # One pass over all parts: whole minibatch-std groups keep them apart. Where R1 is due, the
    # training images go alone, because differentiating twice costs more than another pass.
    passes = [parts[:1], parts[1:]] if r1_due else [parts]
    with _cast(inputs, execution, enabled=not r1_due):
        logits = [
            _full(discriminator(torch.cat(together), inputs.stage, inputs.fade))
            for together in passes
        ]
    sizes = [len(part) for part in parts]
    logit_real, logit_fake, *rest = torch.cat(logits).split(sizes)
    logit_abnormal = rest[0] if rest else None
    loss = discriminator_loss(
        logit_real,
        logit_fake,
        logit_abnormal,
        gamma=objective.gamma,
        alpha=objective.alpha,
        abnormal_weight=weight,
    )
    stats = {
        "loss_d": loss.detach(),
        "logit_real": logit_real.detach().mean(),
        "logit_fake": logit_fake.detach().mean(),
        "sign_real": (logit_real.detach() + math.log(objective.gamma)).sign().mean(),
    }
    if logit_abnormal is not None:
        stats["logit_abnormal"] = logit_abnormal.detach().mean()
    if r1_due:
        penalty = r1_penalty(logit_real, real)
        stats["r1"] = penalty.detach()
        loss = loss + penalty * (objective.r1_weight / 2 * objective.r1_interval)
    return loss, stats


def _abnormal(
    discriminator: Any, inputs: StepInput, augment: Augment
) -> tuple[Tensor | None, Tensor | None]:
    """Known abnormal images as D is shown them, and how much each of their cells counts."""
    image, mask = inputs.abnormal, inputs.abnormal_mask
    if image is None or mask is None:
        return None if image is None else augment(image), None
    image, mask = augment.marked(image, mask)
    return image, discriminator.cell_weights(mask)


def _bare(network: nn.Module) -> Any:
    """The network inside a data-parallel wrapper."""
    return getattr(network, "module", network)


def _faded(inputs: StepInput) -> StepInput:
    """The inputs with images that have no more detail than G's can have by now."""
    real = faded(inputs.real, inputs.stage, inputs.fade)
    abnormal = inputs.abnormal
    if abnormal is not None:
        abnormal = faded(abnormal, inputs.stage, inputs.fade)
    return replace(inputs, real=real, abnormal=abnormal)


def _parts(inputs: StepInput, num_parts: int) -> list[StepInput]:
    if num_parts == 1:
        return [inputs]
    cut = {}
    for name in ("real", "abnormal", "latent", "abnormal_mask"):
        tensor = getattr(inputs, name)
        assert tensor is None or len(tensor) % num_parts == 0, "parts would weigh differently"
        cut[name] = [None] * num_parts if tensor is None else tensor.chunk(num_parts)
    return [
        replace(inputs, **dict(zip(cut, tensors, strict=True)))
        for tensors in zip(*cut.values(), strict=True)
    ]


def _full(x: Tensor) -> Tensor:
    """Back from the lower precision of a pass, if there was any."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _syncing(network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Let a data-parallel wrapper average gradients only once they are whole."""
    no_sync = getattr(network, "no_sync", None)
    return nullcontext() if last or no_sync is None else no_sync()


def _cast(
    inputs: StepInput, execution: Execution, *, enabled: bool = True
) -> AbstractContextManager[object]:
    lower = enabled and execution.dtype != torch.float32
    return torch.autocast(inputs.real.device.type, execution.dtype) if lower else nullcontext()


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
