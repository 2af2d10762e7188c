"""anomalib's own PatchCore as a row; BLEMISH_ANOMALIB names a Python that has anomalib.

It needs torch and what gan/ and data/ import beside anomalib, best in an environment of its own.
Its greedy coreset of all patches would take days: it is given those of `_NUM_CROPS` random crops.
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sample import Image8
from tests.bench.data.common import ROOT
from tests.bench.surfaces.cells import Cell, CellData
from tests.bench.surfaces.crops import SIDE, Crops
from tests.bench.surfaces.pretrained import OUTPUTS
from tests.bench.surfaces.stored import Stored

_NUM_CROPS = 256
_SHARE = 0.05
_SCRIPT = Path(__file__).with_name("anomalib_patchcore.py")


class AnomalibPatchCore:
    """Score and map of anomalib's PatchCore; nothing is chosen.

    Args:
        cell: its seed draws the crops and the coreset.

    Raises:
        SystemExit: if $BLEMISH_ANOMALIB is not set.
    """

    def __init__(self, cell: Cell) -> None:
        self.told: dict[str, Any] = {"chosen": None}
        self._seed = cell.seed
        self._python = os.environ.get("BLEMISH_ANOMALIB", "")
        if not self._python:
            raise SystemExit("the row of anomalib needs BLEMISH_ANOMALIB, a Python that has it")

    def fit(self, data: CellData) -> None:
        """Score all test crops in the other Python, once for all settings of a cell."""
        order = np.random.default_rng(self._seed).permutation(len(data.normal))[:_NUM_CROPS]
        train = data.normal.pixels[np.sort(order)]
        digest = hashlib.sha256(train.tobytes()).hexdigest()[:12]

        def compute(pixels: Image8) -> NDArray[np.floating]:
            return self._run(train, pixels)

        path, shape = OUTPUTS / "anomalib" / digest, (1 + SIDE * SIDE,)
        # In one go: each run builds the memory anew.
        self._found = Stored(path, shape, np.float32, compute, chunk=len(data.test))
        self._found(data.test.pixels)

    def score(self, crops: Crops) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """What was found."""
        found = self._found(crops.pixels)
        return found[:, 0], found[:, 1:].reshape(-1, SIDE, SIDE)

    def _run(self, train: Image8, test: Image8) -> NDArray[np.floating]:
        with tempfile.TemporaryDirectory() as folder:
            for name, pixels in (("train", train), ("test", test)):
                np.save(Path(folder) / f"{name}.npy", pixels)
            words = [self._python, str(_SCRIPT), folder, str(_SHARE), str(self._seed)]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            subprocess.run(words, check=True, env=environment, cwd=ROOT)
            scores = np.load(Path(folder) / "scores.npy")
            maps = np.load(Path(folder) / "maps.npy")
        return np.concatenate([scores[:, None], maps.reshape(len(maps), -1)], axis=1)
