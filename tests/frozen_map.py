"""A feature network of a few frozen weights, for what does not depend on which one it is."""

from collections.abc import Mapping

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


class FrozenMap(nn.Module):
    """Two levels of a fixed random map of images brought to 16 pixels."""

    channels = (6, 5)
    grids = (4, 2)
    out_channels = 5

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, 6, 4, stride=4)
        self.coarse = nn.Conv2d(6, 5, 2, stride=2)
        self.requires_grad_(False)

    def forward(self, image_BCHW: Tensor, stage: int, fade: float = 1.0) -> list[Tensor]:
        fine = torch.tanh(self.fine(nnf.interpolate(image_BCHW, (16, 16), mode="bilinear")))
        return [fine, torch.tanh(self.coarse(fine))]

    def activate(self, stage: int, *, fading: bool) -> None:
        self.requires_grad_(False)

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        raise NotImplementedError
