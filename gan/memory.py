"""How much memory a step of training or of the latent search needs, found without running it.

A step is traced on tensors that have shapes but no content, and every tensor that autograd keeps
for a backward pass is counted once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gan.model import AnyDiscriminator, Architecture
from gan.networks import Generator, num_parameters, num_stages, stage_resolution
from gan.objective import r1_penalty

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class StepMemory:
    """Memory of a step in float32.

    Attributes:
        fixed_bytes: What does not depend on the batch: both networks and, in training, the average
            of G, gradients, Adam's moments.
        image_bytes: What each image of a pass adds; in training the generated and the known
            abnormal images that go with it included.
    """

    fixed_bytes: int
    image_bytes: int

    def total_bytes(self, images: int) -> int:
        """Memory of a pass with so many images."""
        return self.fixed_bytes + images * self.image_bytes


def step_memory(
    architecture: Architecture, stage: int, *, abnormal_share: float, average_d: bool = False
) -> StepMemory:
    """Estimate the memory of a step with R1 at a stage, the largest there is.

    Args:
        architecture: What is trained.
        stage: Stage of both networks, faded in half: both paths are kept then.
        abnormal_share: Known abnormal images for each training image.
        average_d: Whether an average of D is kept.
    """
    with torch.device("meta"):
        networks = architecture.generator(), architecture.discriminator()
    small, large = (
        _kept_bytes(networks, architecture, stage, images=groups * architecture.group_size)
        for groups in (1, 2)
    )
    # Scaled weights are kept as well, but only once: two sizes of batch tell them apart.
    by_image = [(b - a) / architecture.group_size for a, b in zip(small, large, strict=True)]
    once = [2 * a - b for a, b in zip(small, large, strict=True)]
    penalised, judged, made = by_image
    weights_g, weights_d = map(num_parameters, networks)
    trained_d = num_parameters(networks[1], active=True)
    # G: weights, average, gradient, two moments. D: an average only if asked for; what is frozen
    # has neither gradient nor moments.
    copies_d = 2 if average_d else 1
    fixed = _FLOAT_BYTES * (5 * weights_g + copies_d * weights_d + 3 * trained_d)
    return StepMemory(
        fixed_bytes=fixed + once[0] + once[2],
        image_bytes=round(penalised + (1 + abnormal_share) * judged + made),
    )


def search_memory(architecture: Architecture) -> StepMemory:
    """Estimate the memory of a step of the latent search at full size.

    Args:
        architecture: What searches.
    """
    with torch.device("meta"):
        generator, discriminator = architecture.generator(), architecture.discriminator()
    stage = num_stages(architecture.resolution) - 1
    for network in (generator, discriminator):
        network.requires_grad_(False)

    def kept_bytes(images: int) -> int:
        kept: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: _keep(kept, x), lambda x: x):
            shape = (images, architecture.latent_dim)
            image = generator(torch.empty(shape, device="meta", requires_grad=True), stage)
            # The loss keeps the differences of the image and of all levels.
            for made in (image, *discriminator.features(image, stage)):
                (made - torch.empty_like(made)).square()
        return _num_bytes(kept)

    one, two = kept_bytes(1), kept_bytes(2)
    weights = sum(map(num_parameters, (generator, discriminator)))
    return StepMemory(
        fixed_bytes=_FLOAT_BYTES * weights + 2 * one - two,
        image_bytes=two - one,
    )


def _kept_bytes(
    networks: tuple[Generator, AnyDiscriminator],
    architecture: Architecture,
    stage: int,
    *,
    images: int,
) -> tuple[int, int, int]:
    """What autograd keeps for R1 on some images, for judging them, and for making them."""
    generator, discriminator = networks
    side, fade = stage_resolution(stage), 0.5 if stage else 1.0
    kept: dict[int, Tensor] = {}
    result = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: _keep(kept, x), lambda x: x):
        shape = (images, architecture.channels, side, side)
        real = torch.empty(shape, device="meta", requires_grad=True)
        latent = torch.empty((images, architecture.latent_dim), device="meta")
        for trace in (
            lambda: r1_penalty(discriminator(real, stage, fade), real),
            lambda: discriminator(real, stage, fade),
            lambda: generator(latent, stage, fade),
        ):
            trace()
            result.append(_num_bytes(kept))
            kept.clear()
    return result[0], result[1], result[2]


def _num_bytes(kept: dict[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _keep(kept: dict[int, Tensor], tensor: Tensor) -> Tensor:
    # Weights as they are take no more memory for being kept, and are counted already.
    if isinstance(tensor, nn.Parameter):
        return tensor
    # By storage, because views share it; holding the tensor keeps the key from being used again.
    kept[tensor.untyped_storage()._cdata] = tensor
    return tensor
