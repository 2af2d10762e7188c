"""PyOD's AnoGAN on digits in a file; run by search.py with a Python that has pyod, outside our own.

Reads an .npz with `train` [N, F] and `test` [M, F] in [0, 1]; prints scores and CPU seconds: JSON.
"""

import importlib
import importlib.metadata
import json
import sys
import time

import numpy as np
import torch


def main() -> None:
    """Fit, score, print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with np.load(sys.argv[1]) as images:
        train, test = images["train"], images["test"]
    # By name: pyod is not among what the project needs.
    model = importlib.import_module("pyod.models.anogan").AnoGAN(
        latent_dim_G=16,
        G_layers=[64, 256],
        D_layers=[256, 64],
        epochs=int(sys.argv[2]),
        output_activation="sigmoid",
    )
    model.fit(train)
    started_s = time.process_time()
    scores = model.decision_function(test)
    spent_s = time.process_time() - started_s
    told = {
        "scores": scores.tolist(),
        "test_s": spent_s,
        "version": importlib.metadata.version("pyod"),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
