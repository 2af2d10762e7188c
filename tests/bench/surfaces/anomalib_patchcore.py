"""anomalib's own PatchCore on crops in files; run by anomalib.py with a Python that has anomalib.

Reads the crops [N, 64, 64] uint8 of `train.npy` and `test.npy` in a folder and writes `scores.npy`
[M] and `maps.npy` [M, 64, 64] there. The network is that of the other pretrained rows; memory,
coreset, search, weighed score and blurred map are anomalib's with its defaults, but for the share
that the coreset keeps.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from tests.bench.surfaces.crops import SIDE
from tests.bench.surfaces.pretrained import ENLARGE, levels

_LAYERS = (1, 2)
_BATCH = 32


class _Levels(nn.Module):
    """Levels of strides 8 and 16 of our network in place of anomalib's own extractor."""

    def forward(self, crops_BCHW: Tensor) -> dict[str, Tensor]:
        found = levels(crops_BCHW[:, 0].numpy().astype(np.uint8))
        return {str(number): found[number].contiguous() for number in _LAYERS}


def _model() -> Any:
    # By name: anomalib is not among what the project needs.
    module = importlib.import_module("anomalib.models.image.patchcore.torch_model")
    names = [str(number) for number in _LAYERS]
    model = module.PatchcoreModel(["layer2", "layer3"], backbone="resnet18", pre_trained=False)
    model.layers, model.feature_extractor = names, _Levels()
    return model


def main() -> None:
    """Remember the training crops, score the others."""
    folder, share = Path(sys.argv[1]), float(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(int(sys.argv[3]))
    model = _model().train()
    batches = {
        name: torch.from_numpy(np.load(folder / f"{name}.npy")).float()[:, None].split(_BATCH)
        for name in ("train", "test")
    }
    for batch in batches["train"]:
        model(batch)
    model.subsample_embedding(share)
    model.eval()
    scores, maps = [], []
    for batch in batches["test"]:
        # The map's blur is meant for the size that the network sees.
        found = model(nnf.interpolate(batch, scale_factor=ENLARGE, mode="nearest"))
        scores.append(found.pred_score.flatten())
        maps.append(nnf.interpolate(found.anomaly_map, (SIDE, SIDE), mode="area")[:, 0])
    np.save(folder / "scores.npy", torch.cat(scores).numpy())
    np.save(folder / "maps.npy", torch.cat(maps).numpy())


if __name__ == "__main__":
    main()
