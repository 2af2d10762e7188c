"""The one interface between an image and its feature maps.

The discriminator's logits, the feature term of the latent search and the pixel maps all read these
maps and nothing else, so a frozen pretrained network can take the place of D's own layers.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class FeatureNetwork(Protocol):
    """Turns images into feature maps, each image on its own (no batch statistics)."""

    out_channels: int
    """Channels of the coarsest map."""

    @abstractmethod
    def __call__(self, image_BCHW: Tensor, stage: int, fade: float = 1.0) -> list[Tensor]:
        """Feature maps of float images in [-1, 1], from fine to coarse, each [B, C, H, W]."""

    @abstractmethod
    def activate(self, stage: int, *, fading: bool) -> None:
        """Leave gradients on for just the parameters a stage uses."""


class FrozenFeatures(FeatureNetwork, Protocol):
    """One that was trained elsewhere, whose levels have the same size at every stage."""

    channels: tuple[int, ...]
    """Channels of the levels, from fine to coarse."""
    grids: tuple[int, ...]
    """Cells on a side of each level; each is a multiple of the next."""

    @abstractmethod
    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of the file that the network is known by.

        Raises:
            ValueError: If they do not belong to it.
        """
