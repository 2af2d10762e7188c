"""Saving and restoring a rank's state, with as many ranks as before or with others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoint import Progress, restore_checkpoint, save_checkpoint
from cluster.checkpoint_store import CheckpointStore
from cluster.claims import check_same_run
from cluster.config import load_config
from cluster.errors import UserError
from cluster.ranks import Ranks
from data.store import Store
from gan.model import Architecture
from gan.state import Rates, TrainingState
from gan.step import NonFiniteError

SEED = 3
POSITION = {"normal": 96, "abnormal": 48}


class Gathered(Ranks):
    """A rank that is told what the others say; dataclass fields stay `rank` and `world_size`."""

    others: tuple[Any, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        object.__setattr__(self, "said", value)
        return [*self.others, value] if self.rank else [value, *self.others]


def _told(rank: int, world_size: int, *others: object) -> Gathered:
    ranks = Gathered(rank, world_size)
    object.__setattr__(ranks, "others", others)
    return ranks


def _state(rank: int) -> TrainingState:
    architecture = Architecture(
        resolution=8, channels=1, latent_dim=4, fmap_base=8, fmap_max=4, group_size=2
    )
    rates = Rates(generator_lr=0.002, discriminator_lr=0.001, ema_half_life_kimg=1.0)
    return TrainingState(architecture, rates, seed=SEED, rank=rank, device=torch.device("cpu"))


def _store(run: Path) -> CheckpointStore:
    return CheckpointStore(Store(str(run)), keep=2, identity={"seed": SEED})


def _save(run: Path, *, world_size: int, images_seen: int = 96) -> list[TrainingState]:
    """Save as `world_size` ranks; returns the state of each."""
    states, said = [], []
    for rank in reversed(range(world_size)):
        state = _state(rank)
        state.images_seen = images_seen
        torch.randn(5, generator=state.latents)
        ranks = _told(rank, world_size, *said[::-1])
        progress = Progress(dict(POSITION), num_cuts=1, last_cut=32)
        save_checkpoint(_store(run), state, progress, {}, ranks=ranks, note=pytest.fail)
        states.append(state)
        said.append(vars(ranks)["said"])
    return states[::-1]


def _restore(run: Path, *, rank: int, world_size: int) -> tuple[TrainingState, Progress, list[str]]:
    state, notes = _state(rank), list[str]()
    found = _store(run).newest(notes.append)
    ranks = _told(rank, world_size, *([found] if rank else []))
    progress = restore_checkpoint(_store(run), state, ranks=ranks, seed=SEED, note=notes.append)
    return state, progress, notes


def test_as_many_ranks_draw_what_they_would_have_drawn(tmp_path: Path) -> None:
    saved = _save(tmp_path, world_size=2)
    for rank in range(2):
        state, progress, notes = _restore(tmp_path, rank=rank, world_size=2)
        assert torch.equal(state.latent_state(), saved[rank].latent_state())
        assert progress == Progress(POSITION, num_cuts=1, last_cut=32)
        assert state.images_seen == 96
        assert notes == []


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_another_number_of_ranks_reads_on_and_draws_anew(
    tmp_path: Path, before: int, after: int
) -> None:
    saved = _save(tmp_path, world_size=before)
    drawn = [state.latent_state() for state in saved] + [_state(r).latent_state() for r in range(4)]
    for rank in range(after):
        state, progress, notes = _restore(tmp_path, rank=rank, world_size=after)
        assert progress.position == POSITION
        assert not any(torch.equal(state.latent_state(), other) for other in drawn)
        drawn.append(state.latent_state())
        assert len(notes) == (rank == 0)
        if notes:
            assert f"resumed with {after} instead of {before} workers" in notes[0]
            assert "bit for bit" in notes[0]
        again, _, _ = _restore(tmp_path, rank=rank, world_size=after)
        assert torch.equal(again.latent_state(), state.latent_state())


def test_another_number_of_workers_is_the_same_run() -> None:
    before, after = (load_config(None, {"cluster.num_workers": number}) for number in (2, 1))
    check_same_run(after, before)
    with pytest.raises(UserError, match=r"run\.seed=0, not 1"):
        check_same_run(load_config(None, {"run.seed": 1}), before)


def test_a_run_keeps_its_precision_and_may_cut_its_batches_otherwise() -> None:
    before = load_config()
    check_same_run(load_config(None, {"cluster.images_per_pass": 8}), before)
    with pytest.raises(UserError, match=r"cluster\.precision='float32', not 'bfloat16'"):
        check_same_run(load_config(None, {"cluster.precision": "bfloat16"}), before)


def test_latents_drawn_anew_depend_on_where(tmp_path: Path) -> None:
    states = []
    for images_seen in (96, 128):
        _save(tmp_path, world_size=2, images_seen=images_seen)
        states.append(_restore(tmp_path, rank=0, world_size=1)[0].latent_state())
    assert not torch.equal(*states)


def test_without_a_checkpoint_a_run_begins(tmp_path: Path) -> None:
    state, progress, notes = _restore(tmp_path, rank=0, world_size=1)
    assert progress == Progress({"normal": 0, "abnormal": 0})
    assert torch.equal(state.latent_state(), _state(0).latent_state())
    assert notes == []


@pytest.mark.parametrize("name", ["generator", "discriminator", "average"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, name: str) -> None:
    state = _state(0)
    with torch.no_grad():
        next(getattr(state, name).parameters()).view(-1)[0] = float("inf")
    with pytest.raises(NonFiniteError, match="not finite after 0 images"):
        save_checkpoint(
            _store(tmp_path), state, Progress(), {}, ranks=Ranks(0, 1), note=pytest.fail
        )
    assert _store(tmp_path).names() == []


def test_halved_rates_outlive_a_restart(tmp_path: Path) -> None:
    state = _state(0)
    state.scale_rates(0.5)
    save_checkpoint(_store(tmp_path), state, Progress(), {}, ranks=Ranks(0, 1), note=pytest.fail)
    restored, _, _ = _restore(tmp_path, rank=0, world_size=1)
    assert restored.lr_factor == 0.5
    assert restored.optimizer_d.param_groups[0]["lr"] == 0.0005
