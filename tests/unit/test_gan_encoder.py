"""The encoder: what it is trained on, that it learns, and that it leaves G and D alone."""

import copy

import pytest
import torch
import torch.nn.functional as nnf

from gan.encoder import Encoder, EncoderTraining
from gan.layers import pixel_norm
from gan.model import Architecture, encoder_from_bytes, weights_to_bytes
from gan.networks import Discriminator, Generator

ARCHITECTURE = Architecture(
    resolution=16, channels=1, latent_dim=8, fmap_base=64, fmap_max=32, group_size=4
)
STAGE, BATCH = 2, 16


def _networks() -> tuple[Encoder, Generator, Discriminator]:
    torch.manual_seed(3)
    generator, discriminator = ARCHITECTURE.generator(), ARCHITECTURE.discriminator()
    for network in (generator, discriminator):
        network.eval().requires_grad_(False)
    return ARCHITECTURE.encoder(), generator, discriminator


def _training(
    encoder: Encoder, generator: Generator, discriminator: Discriminator, num_steps: int
) -> EncoderTraining:
    return EncoderTraining(
        encoder,
        generator,
        discriminator.features,
        lr=0.003,
        feature_weight=0.5,
        num_steps=num_steps,
        seed=1,
        stage=STAGE,
    )


def test_a_latent_has_unit_size_and_depends_on_its_own_image_only() -> None:
    encoder, *_ = _networks()
    images = torch.rand(5, 1, 16, 16) * 2 - 1
    latent = encoder(images, STAGE)
    torch.testing.assert_close(latent.square().mean(dim=1), torch.ones(5))
    changed = images.clone()
    changed[1:] = 0
    torch.testing.assert_close(encoder(changed, STAGE)[0], latent[0])


def test_the_first_step_goes_down_the_gradient_of_the_three_terms() -> None:
    """Against the loss written out; the first step of Adam is the sign of the gradient."""
    encoder, generator, discriminator = _networks()
    real = torch.rand(BATCH, 1, 16, 16) * 2 - 1
    plain = copy.deepcopy(encoder)
    z = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(1))
    again = generator(plain(real, STAGE), STAGE)
    features = [discriminator.features(x, STAGE)[-1] for x in (again, real)]
    parts = {
        "latent": (pixel_norm(z) - plain(generator(z, STAGE), STAGE)).abs().mean(),
        "residual": (real - again).square().mean(),
        "feature": (features[0] - features[1]).square().mean(),
    }
    (parts["latent"] + parts["residual"] + 0.5 * parts["feature"]).backward()
    told = _training(encoder, generator, discriminator, 100).step(real)
    for name, value in parts.items():
        torch.testing.assert_close(told[name], value.detach())
    used = [(p, q) for p, q in zip(plain.parameters(), encoder.parameters(), strict=True)]
    moved = [(p, q) for p, q in used if p.grad is not None]
    assert len(moved) > 10
    for before, after in moved:
        assert before.grad is not None
        clear = before.grad.abs() > 1e-5
        step = (after - before)[clear]
        torch.testing.assert_close(step, -0.003 * before.grad[clear].sign(), rtol=0.02, atol=1e-6)


def test_the_encoder_finds_latents_of_generated_images_and_nothing_else_changes() -> None:
    encoder, generator, discriminator = _networks()
    before = copy.deepcopy((generator.state_dict(), discriminator.state_dict()))
    source = torch.Generator().manual_seed(8)
    z = torch.randn(2 * BATCH, 8, generator=source)
    images = generator(z, STAGE)

    def distance() -> float:
        with torch.no_grad():
            return float(nnf.l1_loss(encoder(images, STAGE), pixel_norm(z)))

    at_first = distance()
    training = _training(encoder, generator, discriminator, 60)
    for _ in range(60):
        rows = torch.randint(len(images), (BATCH,), generator=source)
        training.step(images[rows])
    assert distance() < 0.5 * at_first
    for network, kept in zip((generator, discriminator), before, strict=True):
        assert all(p.grad is None for p in network.parameters())
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, kept[name]), name


def test_weights_survive_their_file_and_no_other_architecture_takes_them() -> None:
    encoder, *_ = _networks()
    images = torch.rand(2, 1, 16, 16)
    payload = weights_to_bytes(encoder=encoder)
    restored = encoder_from_bytes(ARCHITECTURE, payload)
    assert torch.equal(restored(images, STAGE), encoder(images, STAGE))
    assert not any(p.requires_grad for p in restored.parameters())
    other = Architecture(**ARCHITECTURE.to_dict() | {"latent_dim": 9})
    with pytest.raises(ValueError, match="do not fit the encoder"):
        encoder_from_bytes(other, payload)
