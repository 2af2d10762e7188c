"""AnoGAN's search, written down as the papers have it and no cleverer: Algorithm 1, image by image.

Nothing of gan/search*.py or gan/slots.py is used, so this checks them as well as it times them.
"""

import torch
from torch import Tensor

from gan.model import AnyDiscriminator
from gan.networks import Generator


def plain_search(
    generator: Generator,
    discriminator: AnyDiscriminator,
    image: Tensor,
    start: Tensor,
    *,
    steps: int,
    step_size: float,
    feature_weight: float,
    feature_levels: tuple[int, ...],
    stage: int,
) -> tuple[Tensor, float, int]:
    """Search one image [1, C, H, W] from one start [1, Z]: best latent, best loss, its step."""
    z = start.clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=step_size)
    best = (start, float("inf"), -1)
    for step in range(steps + 1):
        adam.zero_grad()
        made = generator(z, stage)
        f_image, f_made = discriminator.features(image, stage), discriminator.features(made, stage)
        distances = [(f_image[i] - f_made[i]).abs().mean() for i in feature_levels]
        feature = torch.stack(distances).mean()
        residual = (image - made).abs().mean()
        loss = (1 - feature_weight) * residual + feature_weight * feature
        if loss.item() < best[1]:
            best = (z.detach().clone(), loss.item(), step)
        loss.backward()
        adam.step()
    return best
