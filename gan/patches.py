"""A discriminator that judges patches: a small head on each level of a frozen feature network.

After "Projected GANs" (Sauer et al. 2021): each level is mixed by a fixed random 1x1 projection, so
that no head can rest on a few channels, and its head has convolutions of spectral norm 1. A head
gives one logit for each cell of its level's grid. The objective then holds for patches: p_d, p_g
and p_a are the densities of a cell drawn at random from an image drawn at random, p_a of one that
the mask of a known defect touches; see docs/method.md.
"""

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from gan.features import FrozenFeatures
from gan.layers import leaky_relu


class SpectralConv2d(nn.Module):
    """Same-size convolution whose weight is divided by its largest singular value.

    That is computed exactly instead of tracked by power iterations (Miyato et al. 2018): there is
    no state for ranks, restarts or parts of a batch to differ in.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        kernel_size: Odd side of the square kernel, in cells.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolve float [B, C_in, H, W] to [B, C_out, H, W]."""
        rows = self.weight.flatten(1)
        norm = torch.linalg.eigvalsh(rows @ rows.T)[-1].sqrt()
        padding = self.weight.shape[-1] // 2
        return nnf.conv2d(x_BCHW, self.weight / norm, self.bias, padding=padding)


class PatchHead(nn.Module):
    """Logits of the cells of one level.

    Args:
        in_channels: Channels of the level.
        width: Channels after the projection.
    """

    projection: Tensor

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        fixed = torch.randn(width, in_channels, 1, 1) / math.sqrt(in_channels)
        self.register_buffer("projection", fixed)
        self.conv = SpectralConv2d(width, width, 3)
        self.logit = SpectralConv2d(width, 1, 1)

    def forward(self, level_BCHW: Tensor) -> Tensor:
        """Logits, float [B, H, W], of feature maps at full precision."""
        x = nnf.conv2d(level_BCHW, self.projection)
        logit_B1HW: Tensor = self.logit(leaky_relu(self.conv(x)))
        return logit_B1HW.squeeze(1)


class PatchDiscriminator(nn.Module):
    """Heads on the levels of a frozen network; positive means "drawn from the training images".

    Args:
        features: Frozen feature network.
        width: Channels of each head.
    """

    def __init__(self, features: FrozenFeatures, *, width: int) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ModuleList(PatchHead(channels, width) for channels in features.channels)

    def forward(self, image_BCHW: Tensor, stage: int, fade: float = 1.0) -> Tensor:
        """Logits of all cells.

        Args:
            image_BCHW: Float images in [-1, 1] at the stage's resolution.
            stage: Stage the images belong to.
            fade: Weight of the newest block in [0, 1].

        Returns:
            Float [B, L, h, w] on the grid of the finest of L levels. Cells of coarser levels are
            repeated, so that a mean over everything is the mean of the heads' means.
        """
        grids = self.logits(self.features(image_BCHW, stage, fade))
        size = grids[0].shape[-2:]
        return torch.cat([nnf.interpolate(grid.unsqueeze(1), size) for grid in grids], dim=1)

    def logits(self, levels: list[Tensor]) -> list[Tensor]:
        """Logits of each head on its own grid, float [B, h, w]; images stay apart."""
        if levels[0].dtype != torch.bfloat16:
            return self._judged(levels)
        # The heads are small, and a norm needs all digits: never in a lower precision.
        with torch.autocast(levels[0].device.type, enabled=False):
            return self._judged([level.float() for level in levels])

    def _judged(self, levels: list[Tensor]) -> list[Tensor]:
        return [head(x) for head, x in zip(self.heads, levels, strict=True)]

    def cell_weights(self, mask_A1RR: Tensor) -> Tensor:
        """How much each cell of known abnormal images counts: those a mask touches, all alike.

        Args:
            mask_A1RR: Bool [A, 1, R, R], set on the pixels of the defect; an image with nothing
                marked counts as a whole.

        Returns:
            See `cell_weights`.
        """
        return cell_weights(mask_A1RR, self.features.grids)

    def activate(self, stage: int, *, fading: bool) -> None:
        """Heads are trained at every stage, what they rest on never."""


def cell_weights(mask_A1RR: Tensor, grids: tuple[int, ...]) -> Tensor:
    """How much each cell counts of those on L levels that a mask touches.

    Args:
        mask_A1RR: Bool [A, 1, R, R]; an image with nothing marked counts as a whole.
        grids: Cells on a side of each level, the first the finest.

    Returns:
        Float [A, L, H, W]. For each image and level the touched cells sum to 1 / L, so each image
        weighs the same whatever the size of its defect, and N ranks do what one would.
    """
    marked, size = mask_A1RR.float(), (grids[0], grids[0])
    touched = torch.cat(
        [nnf.interpolate(nnf.adaptive_max_pool2d(marked, grid), size) for grid in grids], dim=1
    )
    touched = torch.where(touched.amax(dim=(2, 3), keepdim=True) > 0, touched, 1.0)
    return touched / (touched.sum(dim=(2, 3), keepdim=True) * len(grids))
