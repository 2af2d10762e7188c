"""The plain networks of plain_gan.py with the weights of ours, and back."""

from collections.abc import Iterator

import torch
from torch import nn

from gan.model import AnyDiscriminator
from gan.networks import Discriminator, Generator, ProgressiveFeatures
from tests.bench.train.plain_gan import PlainDiscriminator, PlainGenerator, PlainTraining


def plain_training(generator: Generator, discriminator: AnyDiscriminator) -> PlainTraining:
    """The plain networks of the last resolution with the same weights, and their optimisers."""
    assert isinstance(discriminator, Discriminator)
    kernels = [weight for weight in used_parameters(generator) if weight.dim() == 4]
    *pairs, to_image = kernels
    widths, channels = [weight.shape[0] for weight in pairs[::2]], to_image.shape[0]
    dtype = to_image.dtype
    made, average = (
        PlainGenerator(generator.latent_dim, widths, channels).to(dtype) for _ in range(2)
    )
    judge = PlainDiscriminator(widths, channels, discriminator.group_size).to(dtype)
    copy_weights(generator, made)
    copy_weights(generator, average)
    copy_weights(discriminator, judge)
    return PlainTraining(made, judge, average)


def copy_weights(ours: nn.Module, plain: nn.Module, *, back: bool = False) -> None:
    """Give a plain network the weights of ours; with `back` the other way."""
    for own, other in zip(used_parameters(ours), plain.parameters(), strict=True):
        target, source = (own, other) if back else (other, own)
        with torch.no_grad():
            target.copy_(source)


def used_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that work at the last resolution after its fade, in the order of plain_gan.py."""
    for layer in _layers(network):
        yield from layer.parameters()


def _layers(network: nn.Module) -> list[nn.Module]:
    if isinstance(network, Generator):
        blocks = [layer for block in network.blocks for layer in block.children()]
        return [network.dense, network.first, *blocks, network.to_image[-1]]
    assert isinstance(network, Discriminator)
    features = network.features
    assert isinstance(features, ProgressiveFeatures)
    blocks = [layer for block in reversed(features.blocks) for layer in block.children()]
    head = [network.conv, network.dense, network.logit]
    return [features.from_image[-1], *blocks, *head]
