"""What rank 0 draws of a model in training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from cluster.assessment import Assessor
from cluster.config import load_config
from cluster.observer import Observer
from cluster.tracking import Tracker
from data.sample import decode_png
from data.store import Store
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from tests.jobs import TINY
from tests.one_rank import Board

PHASE = Phase(stage=2, fading=False, start=0, end=100)
SIDE = 8 * 16 + 7 * 2


def _drawn(run: Path, **cluster: Any) -> tuple[set[int], np.ndarray[Any, Any]]:
    """How many images were made at once, and the picture."""
    chosen = {f"cluster.{name}": value for name, value in cluster.items()}
    config = load_config(None, TINY | {"run.dir": str(run)} | chosen)
    state = TrainingState(
        config.networks.architecture(1),
        Rates(**config.optimizer.model_dump()),
        seed=0,
        rank=0,
        device=torch.device("cpu"),
    )
    made: set[int] = set()
    state.average.register_forward_pre_hook(lambda _, arguments: made.add(len(arguments[0])))
    tracker = cast("Tracker", SimpleNamespace(picture=lambda _: None))
    store, nobody = Store(config.run.dir), cast("Assessor", None)
    Observer(config, store, tracker, Board(), state, nobody)._draw(PHASE)
    (path,) = store.list("samples/")
    return made, decode_png(store.read_bytes(path), (SIDE, SIDE, 1))


def test_a_grid_needs_no_more_memory_than_a_training_pass(tmp_path: Path) -> None:
    made, picture = _drawn(tmp_path / "cut", images_per_pass=4)
    assert made == {4}
    whole, same = _drawn(tmp_path / "whole", num_workers=1)
    assert whole == {16}
    # Sums of floats may differ in the last bit.
    assert np.abs(picture.astype(int) - same.astype(int)).max() <= 1
    assert len(np.unique(picture)) > 2
