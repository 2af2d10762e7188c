"""The networks and one training step, written down as the papers have them and no cleverer.

Karras et al. 2018 for the networks, at one resolution and after its fade; Kimura & Yanagihara 2018,
Eq. 15, for the objective; Mescheder et al. 2018 for R1, which is due in every step. Nothing here
comes from gan/, so it serves to check what is there as well as to time it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


class Scaled(nn.Module):
    """A convolution, or with `side` 0 a dense layer, whose weights are scaled at run time."""

    def __init__(self, num_in: int, num_out: int, side: int, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in, *([side, side] if side else [])))
        self.bias = nn.Parameter(torch.zeros(num_out))
        self.scale = gain / math.sqrt(num_in * max(side, 1) ** 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if weight.dim() == 2:
            return nnf.linear(x, weight, self.bias)
        return nnf.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


def pixel_norm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + 1e-8)


def minibatch_std(x: Tensor, group_size: int) -> Tensor:
    maps = []
    for group in x.split(group_size):
        std = torch.sqrt(((group - group.mean(dim=0)) ** 2).mean(dim=0) + 1e-8).mean()
        maps.append(std * torch.ones(len(group), 1, *x.shape[2:]))
    return torch.cat([x, torch.cat(maps)], dim=1)


class PlainGenerator(nn.Module):
    """Latents [B, Z] to images [B, C, R, R]; `widths` are the channels from 4x4 up."""

    def __init__(self, latent_dim: int, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.dense = Scaled(latent_dim, 16 * widths[0], 0, gain=math.sqrt(2) / 4)
        self.first = Scaled(widths[0], widths[0], 3)
        convolutions = []
        for below, width in pairwise(widths):
            convolutions += [Scaled(below, width, 3), Scaled(width, width, 3)]
        self.convolutions = nn.ModuleList(convolutions)
        self.to_image = Scaled(widths[-1], channels, 1, gain=1.0)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.dense(pixel_norm(latent)).reshape(len(latent), -1, 4, 4)
        x = pixel_norm(nnf.leaky_relu(x, 0.2))
        x = pixel_norm(nnf.leaky_relu(self.first(x), 0.2))
        for number, convolution in enumerate(self.convolutions):
            if number % 2 == 0:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = pixel_norm(nnf.leaky_relu(convolution(x), 0.2))
        image: Tensor = self.to_image(x)
        return image


class PlainDiscriminator(nn.Module):
    """Images [B, C, R, R] to logits [B]."""

    def __init__(self, widths: Sequence[int], channels: int, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.from_image = Scaled(channels, widths[-1], 1)
        convolutions = []
        for width, below in pairwise(reversed(widths)):
            convolutions += [Scaled(width, width, 3), Scaled(width, below, 3)]
        self.convolutions = nn.ModuleList(convolutions)
        self.last = Scaled(widths[0] + 1, widths[0], 3)
        self.dense = Scaled(16 * widths[0], widths[0], 0)
        self.logit = Scaled(widths[0], 1, 0, gain=1.0)

    def forward(self, image: Tensor) -> Tensor:
        x = nnf.leaky_relu(self.from_image(image), 0.2)
        for number, convolution in enumerate(self.convolutions):
            x = nnf.leaky_relu(convolution(x), 0.2)
            if number % 2 == 1:
                x = nnf.avg_pool2d(x, 2)
        x = nnf.leaky_relu(self.last(minibatch_std(x, self.group_size)), 0.2)
        x = nnf.leaky_relu(self.dense(x.flatten(1)), 0.2)
        logit: Tensor = self.logit(x)
        return logit.squeeze(1)


class PlainTraining:
    """Both networks, Adam for each, an average of G, and the step that changes them."""

    def __init__(
        self, generator: PlainGenerator, discriminator: PlainDiscriminator, average: PlainGenerator
    ) -> None:
        self.generator, self.discriminator, self.average = generator, discriminator, average
        self.adam_g = torch.optim.Adam(generator.parameters(), lr=0.002, betas=(0.0, 0.99))
        self.adam_d = torch.optim.Adam(discriminator.parameters(), lr=0.002, betas=(0.0, 0.99))

    def step(
        self,
        real: Tensor,
        abnormal: Tensor,
        latent: Tensor,
        *,
        gamma: float,
        alpha: float,
        r1_weight: float,
        decay: float,
    ) -> tuple[float, float]:
        """Update D, then G, then the average; returns both losses."""
        real = real.clone().requires_grad_(True)
        fake = self.generator(latent)
        logit_real = self.discriminator(real)
        loss_d = nnf.softplus(-logit_real).mean()
        loss_d = loss_d + gamma * nnf.softplus(self.discriminator(fake.detach())).mean()
        loss_d = loss_d + alpha * nnf.softplus(self.discriminator(abnormal)).mean()
        (gradient,) = torch.autograd.grad(logit_real.sum(), real, create_graph=True)
        penalty = (gradient**2).sum(dim=(1, 2, 3)).mean()
        self.adam_d.zero_grad()
        (loss_d + r1_weight / 2 * penalty).backward()
        self.adam_d.step()

        loss_g = nnf.softplus(-self.discriminator(fake)).mean()
        self.adam_g.zero_grad()
        loss_g.backward()
        self.adam_g.step()
        with torch.no_grad():
            parameters = zip(self.average.parameters(), self.generator.parameters(), strict=True)
            for average, current in parameters:
                average.copy_(decay * average + (1 - decay) * current)
        return loss_d.item(), loss_g.item()
