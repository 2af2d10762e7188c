"""Sliced Wasserstein distance between two sets of images (Karras et al. 2018, section 5).

It tells, scale by scale, how far apart the local structure of two sets is, and no pretrained
network has a say in it. Both sets become Laplacian pyramids (Burt and Adelson 1983); small patches
drawn from each level, normalised per channel, are projected on random directions, and along each
direction the distance between two equally large sets of numbers is the mean difference of both,
sorted. Distances depend on how many images are compared: only those of equal numbers compare.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as nnf
from torch import Tensor

LOWEST_RESOLUTION = 16
"""Side of the pyramid's coarsest level, in pixels; a smaller image is its own only level."""
PATCH_SIDE = 7
NUM_PATCHES = 8
"""Patches drawn from each level of each image."""
NUM_DIRECTIONS = 128
_SCALE = 1e3
_BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)
_SMALLEST_STD = 1e-6


class SlicedWasserstein:
    """Distances of sets of images to one fixed set of as many.

    Args:
        blocks: The fixed set: float [B, C, R, R] in [-1, 1] each, all on one device.
        seed: Seed of patches and directions; sets are cut at the same places.
    """

    def __init__(self, blocks: Iterable[Tensor], *, seed: int) -> None:
        self._seed = seed
        self._reference = self._projections(blocks)

    @torch.no_grad()
    def distances(self, blocks: Iterable[Tensor]) -> dict[int, float]:
        """Distance at each level of the pyramid, times 1000, by the level's side in pixels.

        Args:
            blocks: Another set of as many images of the same size, in blocks of any length.

        Raises:
            ValueError: If number, size or channels differ.
        """
        found = self._projections(blocks)
        shapes, expected = (
            {r: x.shape[-1] for r, x in p.items()} for p in (found, self._reference)
        )
        if shapes != expected:
            raise ValueError(
                f"patches by level are {shapes}, those of the set to compare with {expected}; "
                "give as many images of the same size"
            )
        return {
            resolution: _SCALE * float((projected - self._reference[resolution]).abs().mean())
            for resolution, projected in found.items()
        }

    @torch.no_grad()
    def _projections(self, blocks: Iterable[Tensor]) -> dict[int, Tensor]:
        """Ascending projections of each level's patches, float [directions, patches]."""
        sources: dict[int, torch.Generator] = {}
        patches: dict[int, list[Tensor]] = {}
        for block in blocks:
            for level in laplacian_pyramid(block):
                side = level.shape[-1]
                # A source for each level, so that the draws do not depend on the blocks.
                source = sources.setdefault(side, torch.Generator().manual_seed(self._seed + side))
                patches.setdefault(side, []).append(_draw_patches(level, source))
        return {
            side: _sorted_projections(_normalised(torch.cat(parts)), self._seed + side + 1)
            for side, parts in patches.items()
        }


def laplacian_pyramid(image_BCHW: Tensor) -> list[Tensor]:
    """What each halving of the resolution takes away, then what is left at 16 pixels or fewer.

    Args:
        image_BCHW: Square float images, the side a power of two.

    Returns:
        Levels from fine to coarse, float [B, C, R, R] each, R halved from level to level.
    """
    levels = []
    while image_BCHW.shape[-1] > LOWEST_RESOLUTION:
        smaller = _blur(image_BCHW, stride=2)
        levels.append(image_BCHW - _enlarge(smaller))
        image_BCHW = smaller
    return [*levels, image_BCHW]


def _enlarge(image_BCHW: Tensor) -> Tensor:
    B, C, H, W = image_BCHW.shape
    spread = image_BCHW.new_zeros(B, C, 2 * H, 2 * W)
    # Three of four pixels are zero, so the blur has to weigh four times as much.
    spread[..., ::2, ::2] = 4.0 * image_BCHW
    return _blur(spread)


def _blur(image_BCHW: Tensor, *, stride: int = 1) -> Tensor:
    weights = image_BCHW.new_tensor(_BINOMIAL) / sum(_BINOMIAL)
    channels = image_BCHW.shape[1]
    kernel = torch.outer(weights, weights).expand(channels, 1, -1, -1)
    padded = nnf.pad(image_BCHW, (2, 2, 2, 2), mode="reflect")
    return nnf.conv2d(padded, kernel, stride=stride, groups=channels)


def _draw_patches(level_BCHW: Tensor, source: torch.Generator) -> Tensor:
    """Patches at random places of each image, float [B * patches, C, k, k]."""
    side = min(PATCH_SIDE, level_BCHW.shape[-1])
    windows = level_BCHW.unfold(2, side, 1).unfold(3, side, 1)
    num_images, places = len(level_BCHW), windows.shape[2]
    # One draw for both coordinates of a patch keeps the order of draws that of the images.
    drawn = torch.randint(places**2, (num_images, NUM_PATCHES), generator=source)
    drawn = drawn.to(level_BCHW.device)
    image = torch.arange(num_images, device=level_BCHW.device).unsqueeze(1)
    return windows[image, :, drawn // places, drawn % places].flatten(0, 1)


def _normalised(patch_MCkk: Tensor) -> Tensor:
    """Each channel with mean 0 and standard deviation 1 over all patches of a set."""
    mean = patch_MCkk.mean(dim=(0, 2, 3), keepdim=True)
    std = patch_MCkk.std(dim=(0, 2, 3), keepdim=True, correction=0)
    # A generator that has collapsed to one grey value has no deviation to divide by.
    return (patch_MCkk - mean) / std.clamp_min(_SMALLEST_STD)


def _sorted_projections(patch_MCkk: Tensor, seed: int) -> Tensor:
    patch_MF = patch_MCkk.flatten(1)
    source = torch.Generator().manual_seed(seed)
    direction_DF = torch.randn(NUM_DIRECTIONS, patch_MF.shape[1], generator=source)
    direction_DF = nnf.normalize(direction_DF).to(patch_MF)
    return (direction_DF @ patch_MF.T).sort(dim=1).values
