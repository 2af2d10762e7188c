"""The training step equals one written plainly from the papers: separate passes, R1, Adam, average.

In float64, so that only the order of sums differs, which Adam's division by small numbers enlarges.
"""

import pytest
import torch
from torch import nn

from gan.ema import update_ema
from gan.model import Architecture, place
from gan.networks import Discriminator, Generator
from gan.step import Objective, StepInput, training_step
from tests.bench.train.plain_gan import PlainTraining
from tests.bench.train.plain_pair import plain_training, used_parameters

LATENT_DIM = 6
STAGE = 2
HALF_LIFE_KIMG = 0.01
NUM_STEPS = 4
BETAS = (0.0, 0.99)


def _adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=0.002, betas=BETAS, fused=True)


@pytest.fixture(scope="module")
def trained() -> tuple[Generator, Discriminator, Generator, PlainTraining]:
    """Both after the same steps: G, D and the average of G, and the plain ones."""
    torch.manual_seed(3)
    architecture = Architecture(
        resolution=16, channels=1, latent_dim=LATENT_DIM, fmap_base=16, fmap_max=8, group_size=2
    )
    cpu = torch.device("cpu")
    generator = place(architecture.generator().double(), cpu)
    discriminator = place(architecture.discriminator().double(), cpu)
    average = architecture.generator().double()
    average.load_state_dict(generator.state_dict())
    plain = plain_training(generator, discriminator)
    optimizers = _adam(generator), _adam(discriminator)
    objective = Objective(gamma=0.7, alpha=0.3, r1_weight=2.0, r1_interval=1)
    for index in range(NUM_STEPS):
        images = torch.rand(6, 1, 16, 16, dtype=torch.float64) * 2 - 1
        real, abnormal = images[:4], images[4:]
        latent = torch.randn(4, LATENT_DIM, dtype=torch.float64)
        inputs = StepInput(
            real=real, abnormal=abnormal, latent=latent, stage=STAGE, fade=1.0, index=index
        )
        training_step(generator, discriminator, *optimizers, inputs, objective)
        update_ema(average, generator, images=4, half_life_kimg=HALF_LIFE_KIMG)
        plain.step(
            real,
            abnormal,
            latent,
            gamma=0.7,
            alpha=0.3,
            r1_weight=2.0,
            decay=0.5 ** (4 / (HALF_LIFE_KIMG * 1000)),
        )
    return generator, discriminator, average, plain


@pytest.mark.parametrize("network", ["generator", "discriminator", "average"])
def test_the_step_equals_the_plain_one(
    trained: tuple[Generator, Discriminator, Generator, PlainTraining], network: str
) -> None:
    generator, discriminator, average, plain = trained
    ours = {"generator": generator, "discriminator": discriminator, "average": average}[network]
    expected = getattr(plain, network).parameters()
    for found, wanted in zip(used_parameters(ours), expected, strict=True):
        torch.testing.assert_close(found.data, wanted.data, rtol=1e-7, atol=1e-7)
