"""Exponential moving average of the generator's weights (Karras et al. 2018, section 4)."""

import torch
from torch import nn


@torch.no_grad()
def update_ema(
    average: nn.Module, current: nn.Module, *, images: int, half_life_kimg: float
) -> None:
    """Move `average` towards `current` by as much as `images` new images warrant.

    Args:
        average: Module that holds the average; changed in place.
        current: Module being trained, of the same architecture.
        images: Training images seen since the last call, over all ranks.
        half_life_kimg: Images, in thousands, after which an old weight counts half.
    """
    decay = 0.5 ** (images / (half_life_kimg * 1000.0))
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1.0 - decay)
