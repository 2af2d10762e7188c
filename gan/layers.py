"""Building blocks of the progressive GAN (Karras et al. 2018, sections 3 and 4).

Shape suffixes used in gan/: B batch, C channels, H height, W width, Z latent dimension, F features.
"""

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2.0)
LEAST_STD = 1e-4
"""Minibatch deviation of equal images; it keeps the square root's gradient finite there."""


class EqualizedConv2d(nn.Module):
    """Stride-1, same-size convolution whose He constant multiplies the weight at run time.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        kernel_size: Odd side of the square kernel, in pixels.
        gain: Factor on the He constant; sqrt(2) before a leaky ReLU, 1 where none follows.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, gain: float = LEAKY_GAIN
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = gain / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolve float [B, C_in, H, W] to [B, C_out, H, W]."""
        padding = self.weight.shape[-1] // 2
        return nnf.conv2d(x_BCHW, self.weight * self.scale, self.bias, padding=padding)


class EqualizedUpConv2d(EqualizedConv2d):
    """`EqualizedConv2d`, 3x3, on an input enlarged by repeating pixels.

    As one transposed convolution: an output pixel sees no more than 2x2 different input pixels, so
    enlarging first would multiply equal numbers again and again.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Enlarge and convolve float [B, C_in, H, W] to [B, C_out, 2H, 2W]."""
        weight = nnf.pad(self.weight * self.scale, (1, 1, 1, 1))
        shared = weight[:, :, 1:, 1:] + weight[:, :, :-1, 1:]
        shared = shared + weight[:, :, 1:, :-1] + weight[:, :, :-1, :-1]
        kernel = shared.flip(2, 3).transpose(0, 1)
        return nnf.conv_transpose2d(x_BCHW, kernel, self.bias, stride=2, padding=1)


class EqualizedLinear(nn.Module):
    """Dense layer with the same run-time weight scaling as `EqualizedConv2d`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        gain: Factor on the He constant.
    """

    def __init__(self, in_features: int, out_features: int, *, gain: float = LEAKY_GAIN) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = gain / math.sqrt(in_features)

    def forward(self, x_BF: Tensor) -> Tensor:
        """Map float [B, F_in] to [B, F_out]."""
        return nnf.linear(x_BF, self.weight * self.scale, self.bias)


def pixel_norm(x: Tensor) -> Tensor:
    """Divide each feature vector (dimension 1) by its root mean square."""
    # In bfloat16 the constant would be lost beside the mean of the squares, and half the digits.
    square = x.float().square() if x.dtype == torch.bfloat16 else x.square()
    return x * torch.rsqrt(square.mean(dim=1, keepdim=True) + 1e-8).to(x.dtype)


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with the slope the field uses in GANs."""
    return nnf.leaky_relu(x, LEAKY_SLOPE)


def upsample(x_BCHW: Tensor) -> Tensor:
    """Double height and width by repeating pixels."""
    return nnf.interpolate(x_BCHW, scale_factor=2.0, mode="nearest")


def downsample(x_BCHW: Tensor) -> Tensor:
    """Halve height and width by averaging 2x2 boxes."""
    return nnf.avg_pool2d(x_BCHW, 2)


def faded(image_BCHW: Tensor, stage: int, fade: float) -> Tensor:
    """Take from images the detail that those of G still lack while a stage fades in.

    Without this D would know training images by it (Karras et al. 2018, Fig. 2).

    Args:
        image_BCHW: Float images at the stage's resolution.
        stage: The stage; the first has nothing to fade from.
        fade: Weight of the newest block in [0, 1].
    """
    if stage == 0 or fade >= 1.0:
        return image_BCHW
    return torch.lerp(upsample(downsample(image_BCHW)), image_BCHW, fade)


def minibatch_std(x_BCHW: Tensor, group_size: int) -> Tensor:
    """Append one map holding the mean standard deviation across each group of images.

    Groups are runs of `group_size` neighbours in the batch. A batch made of whole groups therefore
    means the same on one rank as spread over several (Karras et al. 2018, section 3).

    Args:
        x_BCHW: Float feature maps; B must be a multiple of `group_size`.
        group_size: Images per group.

    Returns:
        Float [B, C + 1, H, W].

    Raises:
        ValueError: If the batch does not divide into groups.
    """
    B, _, H, W = x_BCHW.shape
    if B % group_size:
        raise ValueError(
            f"batch of {B} images does not divide into minibatch-std groups of {group_size}; "
            "choose batch sizes per rank that are multiples of networks.group_size"
        )
    grouped = x_BCHW.unflatten(0, (B // group_size, group_size))
    std = (grouped.var(dim=1, unbiased=False) + LEAST_STD**2).sqrt().mean(dim=(1, 2, 3))
    map_B1HW = std.repeat_interleave(group_size).view(B, 1, 1, 1).expand(B, 1, H, W)
    return torch.cat([x_BCHW, map_B1HW], dim=1)
