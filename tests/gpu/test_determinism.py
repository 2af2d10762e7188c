"""On a GPU: a deterministic run repeats bit for bit."""

from collections.abc import Iterator

import pytest
import torch

from gan.determinism import make_deterministic
from gan.model import Architecture
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.step import Execution, Objective

pytestmark = pytest.mark.gpu

ARCHITECTURE = Architecture(
    resolution=64, channels=1, latent_dim=32, fmap_base=1024, fmap_max=128, group_size=4
)
RATES = Rates(generator_lr=0.002, discriminator_lr=0.002, ema_half_life_kimg=1.0)
OBJECTIVE = Objective(gamma=0.7, alpha=0.3, r1_weight=1.0, r1_interval=4)
NUM_STEPS = 12


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)


def _weights(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights after a dozen steps, in a fade, with R1 in three of them."""
    state = TrainingState(ARCHITECTURE, RATES, seed=1, rank=0, device=torch.device("cuda"))
    phase = Phase(4, True, 0, 1000)
    state.enter(phase, lambda network: network, execution=Execution(num_parts=2, dtype=dtype))
    source = torch.Generator().manual_seed(2)
    for _ in range(NUM_STEPS):
        real, abnormal = (
            torch.rand(n, 1, 64, 64, generator=source).cuda() * 2 - 1 for n in (16, 8)
        )
        state.step(phase, real, abnormal, OBJECTIVE, images=16)
    networks = {"g": state.generator, "d": state.discriminator, "average": state.average}
    return {
        f"{name}.{key}": value.cpu()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_end_with_the_same_bits(dtype: torch.dtype) -> None:
    first, second = _weights(dtype), _weights(dtype)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
