"""From an image straight to its latent, so that a search begins close to its end.

The encoder of f-AnoGAN (Schlegl et al. 2019), trained when G and D are finished, both frozen. Of
generated images the latent is known; of training images it is known what G should make of it:

    mean|z - E(G(z))|  +  mean|x - G(E(x))|^2 + k mean|f(x) - f(G(E(x)))|^2        (ziz, izi_f)
"""

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from gan.features import FeatureNetwork
from gan.layers import EqualizedConv2d, EqualizedLinear, leaky_relu, pixel_norm
from gan.networks import BASE_RESOLUTION, Generator, ProgressiveFeatures


class Encoder(nn.Module):
    """The levels of the discriminator, then a latent in the place of its logit.

    Without minibatch-std: what it says of an image must not depend on others.

    Args:
        resolution: Side in pixels of the images.
        channels: 1 for grey, 3 for RGB.
        latent_dim: Length of z.
        fmap_base: Numerator of the channel schedule.
        fmap_max: Cap of the channel schedule.
    """

    def __init__(
        self, *, resolution: int, channels: int, latent_dim: int, fmap_base: int, fmap_max: int
    ) -> None:
        super().__init__()
        self.features = ProgressiveFeatures(
            resolution=resolution, channels=channels, fmap_base=fmap_base, fmap_max=fmap_max
        )
        width = self.features.out_channels
        self.conv = EqualizedConv2d(width, width, 3)
        self.dense = EqualizedLinear(width * BASE_RESOLUTION**2, width)
        self.latent = EqualizedLinear(width, latent_dim, gain=1.0)

    def forward(self, image_BCHW: Tensor, stage: int) -> Tensor:
        """Latents.

        Args:
            image_BCHW: Float images in [-1, 1] at the stage's resolution.
            stage: Stage the images belong to.

        Returns:
            Float [B, latent_dim] of root mean square 1, the length of most standard normal ones;
            for G only the direction matters.
        """
        x = leaky_relu(self.conv(self.features(image_BCHW, stage)[-1]))
        x = leaky_relu(self.dense(x.flatten(1)))
        return pixel_norm(self.latent(x))


class EncoderTraining:
    """Trains an encoder for a fixed number of steps; G and D stay as they are.

    The learning rate is constant for the first half and sinks linearly to zero in the second.

    Args:
        encoder: E, changed in place.
        generator: Frozen G.
        features: Frozen feature network of D; its coarsest level is f.
        lr: Adam's learning rate.
        feature_weight: k.
        num_steps: Steps in all.
        seed: Seed of the latents.
        stage: Stage of all networks.
    """

    def __init__(
        self,
        encoder: Encoder,
        generator: Generator,
        features: FeatureNetwork,
        *,
        lr: float,
        feature_weight: float,
        num_steps: int,
        seed: int,
        stage: int,
    ) -> None:
        assert not any(parameter.requires_grad for parameter in generator.parameters())
        self._encoder, self._generator, self._features = encoder, generator, features
        self._feature_weight, self._stage = feature_weight, stage
        self._optimizer = torch.optim.Adam(encoder.parameters(), lr=lr, betas=(0.9, 0.99))
        self._rate = LambdaLR(self._optimizer, lambda step: min(1.0, 2 - 2 * step / num_steps))
        self._latents = torch.Generator().manual_seed(seed)

    def step(self, real_BCHW: Tensor) -> dict[str, Tensor]:
        """Learn from a batch of training images and from as many generated ones.

        Args:
            real_BCHW: Float training images in [-1, 1].

        Returns:
            Detached scalars: latent, residual and feature, the three terms of the loss.
        """
        G, f, stage = self._generator, self._features, self._stage
        size = (len(real_BCHW), G.latent_dim)
        latent = torch.randn(size, generator=self._latents).to(real_BCHW.device)
        with torch.no_grad():
            made = G(latent, stage)
            wanted = f(real_BCHW, stage)[-1]
        known, guessed = self._encoder(torch.cat([made, real_BCHW]), stage).chunk(2)
        again = G(guessed, stage)
        terms = {
            "latent": nnf.l1_loss(known, pixel_norm(latent)),
            "residual": nnf.mse_loss(again, real_BCHW),
            "feature": nnf.mse_loss(f(again, stage)[-1], wanted),
        }
        loss = terms["latent"] + terms["residual"] + self._feature_weight * terms["feature"]
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._rate.step()
        return {name: term.detach() for name, term in terms.items()}
