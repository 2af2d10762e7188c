"""Searches that end at unequal times: where each ends, what takes its place, which start counts."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from gan.search import SearchResult, initial_latents, latent_search
from gan.search_loss import LossTerms, SearchLoss, SearchSettings
from gan.slots import Slots
from tests.searching import KEYS, LATENT_DIM, NUM_IMAGES, SETTINGS, STAGE, networks, queries, search


def _traces(settings: SearchSettings, rows: list[int]) -> list[list[float]]:
    """L of each image at every step, one image alone at a time, without a plateau stop."""
    traces: list[list[float]] = []
    kept = Slots.keep

    def record(slots: Slots, terms: LossTerms) -> None:
        traces[-1].append(float(terms.loss[0]))
        kept(slots, terms)

    with patch.object(Slots, "keep", record):
        for row in rows:
            traces.append([])
            search([row], replace(settings, patience=0), torch.float64)
    return traces


def _plateau_end(trace: list[float], patience: int, tolerance: float) -> int:
    mark, at = trace[0], 0
    for step, loss in enumerate(trace):
        if loss < mark * (1 - tolerance):
            mark, at = loss, step
        if step - at >= patience:
            return step
    return len(trace) - 1


@pytest.mark.parametrize(("patience", "tolerance"), [(1, 0.0), (2, 0.03), (4, 0.01), (50, 0.01)])
def test_a_search_ends_where_its_loss_has_not_improved_for_long(
    patience: int, tolerance: float
) -> None:
    rows = list(range(NUM_IMAGES))
    settings = replace(
        SETTINGS, steps=25, step_size=0.2, patience=patience, tolerance=tolerance, block=3
    )
    found = search(rows, settings, torch.float64)
    for row, trace in enumerate(_traces(settings, rows)):
        end = _plateau_end(trace, patience, tolerance)
        seen = trace[: end + 1]
        assert int(found.steps[row]) == end
        assert int(found.step[row]) == seen.index(min(seen))
        assert float(found.score[row]) == pytest.approx(min(seen), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_company_and_order_change_nothing_whatever_ends_when(seed: int) -> None:
    """Bit for bit against each image alone: with restarts, plateaus and blocks drawn at random."""
    rng = np.random.default_rng(seed)
    settings = replace(
        SETTINGS,
        steps=int(rng.integers(8, 20)),
        step_size=float(rng.choice([0.1, 0.4])),
        patience=int(rng.integers(1, 4)),
        tolerance=float(rng.choice([0.01, 0.05])),
        block=int(rng.integers(2, 6)),
    )
    generator, discriminator = networks()
    num_starts = int(rng.integers(1, 4))
    keys = [f"{key}/{start}" for key in KEYS for start in range(num_starts)]
    starts = initial_latents(keys, LATENT_DIM, seed=seed).unflatten(0, (NUM_IMAGES, num_starts))

    def found_for(rows: list[int]) -> SearchResult:
        return latent_search(
            generator, discriminator.features, queries()[rows], starts[rows], settings, stage=STAGE
        )

    order = rng.permutation(NUM_IMAGES).tolist()
    together = found_for(order)
    assert len(set(together.steps.tolist())) > 1, "all searches ended at once: nothing was tested"
    for at, row in enumerate(order):
        for name, tensor in vars(found_for([row])).items():
            assert torch.equal(tensor[0], getattr(together, name)[at]), name


def test_blocks_are_full_as_long_as_something_waits() -> None:
    """Searches of unequal length take fewer passes than block after block would."""
    settings = replace(SETTINGS, steps=40, step_size=0.4, patience=2, tolerance=0.02, block=2)
    passes, call = [], SearchLoss.__call__

    def count(loss: SearchLoss, *arguments: Any) -> LossTerms:
        passes.append(len(arguments[2]))
        return call(loss, *arguments)

    with patch.object(SearchLoss, "__call__", count):
        found = search(list(range(NUM_IMAGES)), settings)
    lengths = [steps + 1 for steps in found.steps.tolist()]
    assert set(passes) == {2}
    busy = [0, 0]
    for length in lengths:
        slot = busy.index(min(busy))
        busy[slot] += length
    assert len(passes) == max(busy)
    assert len(passes) < sum(max(lengths[i : i + 2]) for i in range(0, NUM_IMAGES, 2))


def test_the_best_of_several_starts_counts() -> None:
    generator, discriminator = networks()
    keys = [f"{key}/{start}" for key in KEYS for start in range(3)]
    starts = initial_latents(keys, LATENT_DIM, seed=1).unflatten(0, (NUM_IMAGES, 3))
    settings = replace(SETTINGS, steps=6, block=4)

    def found_from(chosen: Tensor) -> SearchResult:
        return latent_search(
            generator, discriminator.features, queries(), chosen, settings, stage=STAGE
        )

    together = found_from(starts)
    apart = [found_from(starts[:, start : start + 1]) for start in range(3)]
    scores = torch.stack([found.score for found in apart])
    assert len(set(scores.argmin(dim=0).tolist())) > 1
    assert torch.equal(together.score, scores.min(dim=0).values)
    for image, start in enumerate(scores.argmin(dim=0).tolist()):
        for name in ("latent", "residual", "feature", "step", "reconstruction"):
            assert torch.equal(getattr(together, name)[image], getattr(apart[start], name)[image])
    assert (together.steps == 18).all()
