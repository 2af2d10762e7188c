"""Training that repeats bit for bit on a GPU too."""

import os

import torch


def make_deterministic() -> None:
    """Let this process use only algorithms that give the same bits each time.

    Operations that have none raise a RuntimeError. It must come before the first matrix product
    on a GPU, since cuBLAS reads its setting once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
