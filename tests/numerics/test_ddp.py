"""Two data-parallel ranks equal one rank with the joint batch, through R1, a fade and a new stage.

In float64, where the order of a sum costs about 1e-13 of a gradient over all the steps: a real
difference cannot hide in rounding. In float32 rounding alone grows to 4e-5 over the same steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from cluster.ranks import wrap_network
from gan.model import AnyDiscriminator
from gan.networks import Discriminator, Generator, ProgressiveFeatures
from gan.patches import PatchDiscriminator
from gan.step import Execution, Objective, StepInput, training_step
from tests.frozen_map import FrozenMap

Gradients = dict[str, Tensor]
Share = Callable[[StepInput], StepInput]

WORLD_SIZE = 2
GROUP_SIZE = 2
PER_RANK = 4
LATENT_DIM = 6
TOLERANCE = 1e-10
# (stage, fading), entered one after the other.
PHASES = [(1, True), (1, False), (2, True), (2, False)]


@dataclass(frozen=True)
class Case:
    """Weight of R1, parts that each rank cuts its share into, and whether D judges patches."""

    r1_weight: float
    num_parts: int = 1
    patches: bool = False


CASES = {
    "no_r1": Case(0.0),
    "r1": Case(5.0),
    "r1_in_parts": Case(5.0, num_parts=2),
    "patches_no_r1": Case(0.0, patches=True),
    "patches_r1": Case(5.0, patches=True),
    "patches_r1_in_parts": Case(5.0, num_parts=2, patches=True),
}


class Recorder(torch.optim.SGD):
    """SGD that keeps each gradient it was given, by parameter name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network.parameters(), lr=0.05)
        self.names = [name for name, _ in network.named_parameters()]
        self.seen: list[Gradients] = []

    def step(self, closure: None = None) -> None:
        parameters = self.param_groups[0]["params"]
        named = zip(self.names, parameters, strict=True)
        self.seen.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        super().step()


def _networks(patches: bool) -> tuple[Generator, AnyDiscriminator]:
    torch.manual_seed(7)
    sizes = {"resolution": 16, "channels": 1, "fmap_base": 16, "fmap_max": 8}
    generator = Generator(latent_dim=LATENT_DIM, **sizes).double()
    if patches:
        return generator, PatchDiscriminator(FrozenMap(), width=4).double()
    own = Discriminator(ProgressiveFeatures(**sizes), group_size=GROUP_SIZE)
    return generator, own.double()


def _batch(stage: int, fading: bool, index: int, patches: bool) -> StepInput:
    """The joint batch of all ranks, the same whoever asks."""
    source = torch.Generator().manual_seed(index)
    num_images, side = WORLD_SIZE * PER_RANK, 4 * 2**stage
    shape = (2, num_images, 1, side, side)
    images = torch.rand(shape, generator=source, dtype=torch.float64) * 2 - 1
    latent = torch.randn(num_images, LATENT_DIM, generator=source, dtype=torch.float64)
    # Defects of other sizes on each image, and one that nobody marked.
    shares = torch.arange(num_images).view(-1, 1, 1, 1) / (2 * num_images)
    masks = torch.rand(shape[1:], generator=source) < shares
    return StepInput(
        real=images[0],
        abnormal=images[1],
        latent=latent,
        stage=stage,
        fade=0.3 if fading else 1.0,
        index=index,
        abnormal_mask=masks if patches else None,
    )


def _share(inputs: StepInput, rank: int) -> StepInput:
    part = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    assert inputs.abnormal is not None
    return replace(
        inputs,
        real=inputs.real[part],
        abnormal=inputs.abnormal[part],
        latent=inputs.latent[part],
        abnormal_mask=None if inputs.abnormal_mask is None else inputs.abnormal_mask[part],
    )


def _run(world_size: int, share: Share, case: Case) -> list[Gradients]:
    """Gradients of D, then of G, of every step: two steps in each phase, R1 due in the first."""
    generator, discriminator = _networks(case.patches)
    optimizer_g, optimizer_d = Recorder(generator), Recorder(discriminator)
    objective = Objective(gamma=0.7, alpha=0.3, r1_weight=case.r1_weight, r1_interval=2)
    for number, (stage, fading) in enumerate(PHASES):
        for network in (generator, discriminator):
            network.activate(stage, fading=fading)
        cpu = torch.device("cpu")
        wrapped = [wrap_network(net, world_size, cpu) for net in (generator, discriminator)]
        for index in (2 * number, 2 * number + 1):
            inputs = share(_batch(stage, fading, index, case.patches))
            execution = Execution(num_parts=case.num_parts)
            optimizers = optimizer_g, optimizer_d
            training_step(*wrapped, *optimizers, inputs, objective, execution=execution)
    return optimizer_d.seen + optimizer_g.seen


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD_SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE)
    for name, case in CASES.items():
        seen = _run(WORLD_SIZE, lambda inputs: _share(inputs, rank), case)
        torch.save(seen, f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gradients of both ranks for every case."""
    path = tmp_path_factory.mktemp("ranks")
    spawn(_rank, args=(str(path),), nprocs=WORLD_SIZE)
    return path


def _largest_difference(found: list[Gradients], expected: list[Gradients]) -> float:
    """Largest |a - b| / |b| in the Euclidean norm, over steps and parameters."""
    assert len(found) == len(expected) == 2 * 2 * len(PHASES)
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        assert all(b[name].norm() > 0 for name in b), "a gradient of zero compares nothing"
        worst = max(worst, *(float((a[n] - b[n]).norm() / b[n].norm()) for n in b))
    return worst


@pytest.mark.parametrize("rank", range(WORLD_SIZE))
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_with_the_joint_batch(folder: Path, name: str, rank: int) -> None:
    one = _run(1, lambda inputs: inputs, replace(CASES[name], num_parts=1))
    found = torch.load(folder / f"{name}-{rank}.pt")
    assert _largest_difference(found, one) < TOLERANCE


def test_a_share_that_cuts_a_group_is_refused() -> None:
    """Groups across two ranks would silently change D; no share that cuts one gets through."""

    def cut(inputs: StepInput) -> StepInput:
        return replace(inputs, real=inputs.real[:3], latent=inputs.latent[:3])

    with pytest.raises(ValueError, match="groups of 2"):
        _run(1, cut, CASES["no_r1"])
