"""Three ranks that go on from a saved state end with the very bits of three that never stopped."""

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from cluster.ranks import wrap_network
from gan.model import Architecture
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.step import Objective

WORLD_SIZE = 3
SIDE, STAGE = 32, 3
ARCHITECTURE = Architecture(
    resolution=SIDE, channels=1, latent_dim=16, fmap_base=256, fmap_max=32, group_size=2
)
OBJECTIVE = Objective(gamma=0.7, alpha=0.3, r1_weight=1.0, r1_interval=2)
PHASE = Phase(STAGE, True, 0, 1000)
"""Never left: the resumed ranks begin in the middle of a fade."""


def _state(rank: int) -> TrainingState:
    rates = Rates(generator_lr=0.002, discriminator_lr=0.002, ema_half_life_kimg=1.0)
    return TrainingState(ARCHITECTURE, rates, seed=5, rank=rank, device=torch.device("cpu"))


def _train(state: TrainingState, rank: int, steps: range) -> None:
    state.enter(PHASE, lambda net: wrap_network(net, WORLD_SIZE, state.device))
    _go_on(state, rank, steps)


def _go_on(state: TrainingState, rank: int, steps: range) -> None:
    for step in steps:
        source = torch.Generator().manual_seed(100 * step + rank)
        images = torch.rand(8, 1, SIDE, SIDE, generator=source) * 2 - 1
        state.step(PHASE, images[:4], images[4:], OBJECTIVE, images=4 * WORLD_SIZE)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD_SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE)
    slope = nn.Linear(1, 1, bias=False)
    wrapped = wrap_network(slope, WORLD_SIZE, torch.device("cpu"))
    wrapped(torch.full((1, 1), rank + 1.0)).backward()
    straight, resumed = _state(rank), _state(rank)
    _train(straight, rank, range(3))
    saved, latents = copy.deepcopy(straight.state_dict()), straight.latent_state()
    _go_on(straight, rank, range(3, 6))
    resumed.load_state_dict(saved)
    resumed.load_latent_state(latents)
    _train(resumed, rank, range(3, 6))
    torch.save(
        [slope.weight.grad, straight.state_dict(), resumed.state_dict()], f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


def test_three_ranks_resume_bit_for_bit(tmp_path: Path) -> None:
    spawn(_rank, args=(str(tmp_path),), nprocs=WORLD_SIZE)
    for rank in range(WORLD_SIZE):
        mean, straight, resumed = torch.load(tmp_path / f"{rank}.pt")
        assert mean.item() == 2, "of gradients 1, 2 and 3"
        assert straight["images_seen"] == resumed["images_seen"] == 6 * 4 * WORLD_SIZE
        for network in ("generator", "discriminator", "average"):
            for name, value in straight[network].items():
                assert torch.equal(value, resumed[network][name]), f"{network} {name}"
