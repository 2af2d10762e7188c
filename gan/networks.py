"""Progressive-growing generator and discriminator, 4x4 to 1024x1024 (Karras et al. 2018).

Both networks are built whole. A *stage* s works at resolution 4 * 2**s; `fade` in (0, 1] blends the
newest block in. `activate` leaves gradients on for just the parameters a stage uses, so that a
data-parallel wrapper made afterwards synchronises exactly those.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from gan.features import FeatureNetwork
from gan.layers import (
    LEAST_STD,
    EqualizedConv2d,
    EqualizedLinear,
    EqualizedUpConv2d,
    downsample,
    leaky_relu,
    minibatch_std,
    pixel_norm,
    upsample,
)

BASE_RESOLUTION = 4
MAX_RESOLUTION = 1024


def num_stages(resolution: int) -> int:
    """Number of stages from 4x4 up to `resolution`.

    Raises:
        ValueError: If `resolution` is not a power of two in 4..1024.
    """
    if not BASE_RESOLUTION <= resolution <= MAX_RESOLUTION or resolution & (resolution - 1):
        raise ValueError(f"resolution={resolution} is not a power of two from 4 to 1024")
    return (resolution // BASE_RESOLUTION).bit_length()


def stage_resolution(stage: int) -> int:
    """Side in pixels of the images of a stage."""
    return BASE_RESOLUTION << stage


def num_channels(stage: int, fmap_base: int, fmap_max: int) -> int:
    """Feature maps at a stage: min(fmap_max, fmap_base / 2**stage), at least one."""
    return max(1, min(fmap_max, fmap_base >> stage))


class GrowingBlock(nn.Module):
    """Twice the resolution: enlarge, then two convolutions, each with pixel norm.

    Args:
        in_channels: Feature maps of the stage below.
        out_channels: Feature maps of this stage.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = EqualizedUpConv2d(in_channels, out_channels, 3)
        self.second = EqualizedConv2d(out_channels, out_channels, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map float [B, C_in, H, W] to [B, C_out, 2H, 2W]."""
        x = pixel_norm(leaky_relu(self.first(x_BCHW)))
        return pixel_norm(leaky_relu(self.second(x)))


class ShrinkingBlock(nn.Module):
    """Half the resolution: two convolutions, then a 2x2 average.

    Args:
        in_channels: Feature maps of this stage.
        out_channels: Feature maps of the stage below.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = EqualizedConv2d(in_channels, in_channels, 3)
        self.second = EqualizedConv2d(in_channels, out_channels, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map float [B, C_in, H, W] to [B, C_out, H/2, W/2]."""
        return downsample(leaky_relu(self.second(leaky_relu(self.first(x_BCHW)))))


class Generator(nn.Module):
    """Latent vector to image.

    Args:
        resolution: Side in pixels of the final images, a power of two in 4..1024.
        channels: 1 for grey, 3 for RGB.
        latent_dim: Length of z.
        fmap_base: Numerator of the channel schedule.
        fmap_max: Cap of the channel schedule.
    """

    def __init__(
        self, *, resolution: int, channels: int, latent_dim: int, fmap_base: int, fmap_max: int
    ) -> None:
        super().__init__()
        widths = [num_channels(s, fmap_base, fmap_max) for s in range(num_stages(resolution))]
        self.latent_dim = latent_dim
        self.base_width = widths[0]
        # The gain is the one of Karras et al.: a latent of unit length in, maps of small scale out.
        self.dense = EqualizedLinear(latent_dim, widths[0] * BASE_RESOLUTION**2, gain=2**0.5 / 4)
        self.first = EqualizedConv2d(widths[0], widths[0], 3)
        self.blocks = nn.ModuleList(GrowingBlock(a, b) for a, b in pairwise(widths))
        self.to_image = nn.ModuleList(EqualizedConv2d(w, channels, 1, gain=1.0) for w in widths)

    def forward(self, latent_BZ: Tensor, stage: int, fade: float = 1.0) -> Tensor:
        """Generate images.

        Args:
            latent_BZ: Float [B, latent_dim], standard normal; only its direction matters.
            stage: Stage to generate at.
            fade: Weight of the newest block in [0, 1]; 0 equals the stage below, enlarged.

        Returns:
            Float [B, channels, R, R] with R = 4 * 2**stage, nominally in [-1, 1].
        """
        shape = (self.base_width, BASE_RESOLUTION, BASE_RESOLUTION)
        x = self.dense(pixel_norm(latent_BZ)).unflatten(1, shape)
        x = pixel_norm(leaky_relu(x))
        x = pixel_norm(leaky_relu(self.first(x)))
        below = x
        for block in self.blocks[:stage]:
            below, x = x, block(x)
        image: Tensor = self.to_image[stage](x)
        if stage == 0 or fade >= 1.0:
            return image
        return torch.lerp(upsample(self.to_image[stage - 1](below)), image, fade)

    def activate(self, stage: int, *, fading: bool) -> None:
        """Leave gradients on for just the parameters used at `stage`."""
        used = [self.dense, self.first, *self.blocks[:stage], self.to_image[stage]]
        if fading:
            used.append(self.to_image[stage - 1])
        _activate(self, used)


class ProgressiveFeatures(nn.Module):
    """The discriminator's own convolutional levels, a `gan.features.FeatureNetwork`.

    Args:
        resolution: Side in pixels of the largest images.
        channels: 1 for grey, 3 for RGB.
        fmap_base: Numerator of the channel schedule.
        fmap_max: Cap of the channel schedule.
    """

    def __init__(self, *, resolution: int, channels: int, fmap_base: int, fmap_max: int) -> None:
        super().__init__()
        widths = [num_channels(s, fmap_base, fmap_max) for s in range(num_stages(resolution))]
        self.out_channels = widths[0]
        self.from_image = nn.ModuleList(EqualizedConv2d(channels, w, 1) for w in widths)
        self.blocks = nn.ModuleList(ShrinkingBlock(b, a) for a, b in pairwise(widths))

    def forward(self, image_BCHW: Tensor, stage: int, fade: float = 1.0) -> list[Tensor]:
        """Feature maps from fine to coarse; at stage s there are max(s, 1), the last at 4x4."""
        x = leaky_relu(self.from_image[stage](image_BCHW))
        levels = []
        for level in range(stage, 0, -1):
            x = self.blocks[level - 1](x)
            if level == stage and fade < 1.0:
                skip = leaky_relu(self.from_image[stage - 1](downsample(image_BCHW)))
                x = torch.lerp(skip, x, fade)
            levels.append(x)
        return levels or [x]

    def activate(self, stage: int, *, fading: bool) -> None:
        """Leave gradients on for just the parameters used at `stage`."""
        used = [*self.blocks[:stage], self.from_image[stage]]
        if fading:
            used.append(self.from_image[stage - 1])
        _activate(self, used)


class Discriminator(nn.Module):
    """Logit head on a feature network: positive means "drawn from the training images".

    Args:
        features: What turns an image into feature maps; see `gan.features.FeatureNetwork`.
        group_size: Images per minibatch-std group.
    """

    def __init__(self, features: FeatureNetwork, *, group_size: int) -> None:
        super().__init__()
        self.features = features
        self.group_size = group_size
        width = features.out_channels
        self.conv = EqualizedConv2d(width + 1, width, 3)
        self.dense = EqualizedLinear(width * BASE_RESOLUTION**2, width)
        self.logit = EqualizedLinear(width, 1, gain=1.0)

    def forward(self, image_BCHW: Tensor, stage: int, fade: float = 1.0) -> Tensor:
        """Logits.

        Args:
            image_BCHW: Float images in [-1, 1] at the stage's resolution; B must be a multiple of
                the group size.
            stage: Stage the images belong to.
            fade: Weight of the newest block in [0, 1].

        Returns:
            Float [B].
        """
        x = self.features(image_BCHW, stage, fade)[-1]
        if x.dtype != torch.bfloat16:
            return self._head(minibatch_std(x, self.group_size))
        # The head is small, and its statistics need all digits: never in a lower precision.
        with torch.autocast(x.device.type, enabled=False):
            return self._head(minibatch_std(x.float(), self.group_size))

    def logits(self, levels: list[Tensor]) -> list[Tensor]:
        """Logits of images that do not depend on each other, as a score must not.

        Each is judged as if its group were copies of it: with no deviation.

        Args:
            levels: Feature maps of the images, at full precision.

        Returns:
            One map of a single cell, float [B, 1, 1].
        """
        padded = nnf.pad(levels[-1], (0, 0, 0, 0, 0, 1), value=LEAST_STD)
        return [self._head(padded).view(-1, 1, 1)]

    def _head(self, x: Tensor) -> Tensor:
        x = leaky_relu(self.conv(x))
        x = leaky_relu(self.dense(x.flatten(1)))
        logit_B1: Tensor = self.logit(x)
        return logit_B1.squeeze(1)

    def activate(self, stage: int, *, fading: bool) -> None:
        """Leave gradients on for just the parameters used at `stage`."""
        self.features.activate(stage, fading=fading)


def num_parameters(module: nn.Module, *, active: bool = False) -> int:
    """Number of scalars in all parameters of a module, or in those that are being trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not active)


def _activate(network: nn.Module, used: list[nn.Module]) -> None:
    network.requires_grad_(False)
    for parameter in _parameters(used):
        parameter.requires_grad_(True)


def _parameters(modules: list[nn.Module]) -> Iterator[nn.Parameter]:
    for module in modules:
        yield from module.parameters()
