"""A trained pair of networks as plain bytes: architecture in words, weights as safetensors."""

from dataclasses import asdict, dataclass
from typing import Self, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from gan.encoder import Encoder
from gan.networks import Discriminator, Generator, ProgressiveFeatures

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that is needed to build both networks.

    Attributes:
        resolution: Side of the images in pixels.
        channels: 1 for grey, 3 for RGB.
        latent_dim: Length of z.
        fmap_base: Numerator of the channel schedule min(fmap_max, fmap_base / 2**stage).
        fmap_max: Cap of the channel schedule.
        group_size: Images per minibatch-std group.
    """

    resolution: int
    channels: int
    latent_dim: int
    fmap_base: int
    fmap_max: int
    group_size: int

    def generator(self) -> Generator:
        """A generator with fresh weights from torch's global random state."""
        return Generator(
            resolution=self.resolution,
            channels=self.channels,
            latent_dim=self.latent_dim,
            fmap_base=self.fmap_base,
            fmap_max=self.fmap_max,
        )

    def discriminator(self) -> Discriminator:
        """A discriminator on its own feature levels, with fresh weights."""
        features = ProgressiveFeatures(
            resolution=self.resolution,
            channels=self.channels,
            fmap_base=self.fmap_base,
            fmap_max=self.fmap_max,
        )
        return Discriminator(features, group_size=self.group_size)

    def encoder(self) -> Encoder:
        """An encoder with fresh weights."""
        return Encoder(
            resolution=self.resolution,
            channels=self.channels,
            latent_dim=self.latent_dim,
            fmap_base=self.fmap_base,
            fmap_max=self.fmap_max,
        )

    def to_dict(self) -> dict[str, int]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, int]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ValueError: If a value is missing or unknown.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"architecture {values} does not fit this version: {error}") from None


def place(network: Network, device: torch.device) -> Network:
    """Move a network to a device, channels innermost: convolutions on CPU and GPU run faster so."""
    network.to(device)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def weights_to_bytes(**networks: nn.Module) -> bytes:
    """Weights of networks in one safetensors file, each under its name."""
    return safetensors.torch.save(
        {
            f"{name}.{key}": tensor.contiguous()
            for name, network in networks.items()
            for key, tensor in network.state_dict().items()
        }
    )


def networks_from_bytes(
    architecture: Architecture, payload: bytes
) -> tuple[Generator, Discriminator]:
    """Frozen networks in evaluation mode with the weights of a safetensors file.

    Raises:
        ValueError: If the file is damaged or belongs to another architecture.
    """
    networks = architecture.generator(), architecture.discriminator()
    _load(payload, generator=networks[0], discriminator=networks[1])
    return networks


def encoder_from_bytes(architecture: Architecture, payload: bytes) -> Encoder:
    """A frozen encoder in evaluation mode with the weights of a safetensors file.

    Raises:
        ValueError: If the file is damaged or belongs to another architecture.
    """
    encoder = architecture.encoder()
    _load(payload, encoder=encoder)
    return encoder


def _load(payload: bytes, **networks: nn.Module) -> None:
    try:
        tensors = safetensors.torch.load(payload)
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights are damaged: {error}") from None
    for name, network in networks.items():
        _load_one(network, name, tensors)
        network.eval().requires_grad_(False)


def _load_one(network: nn.Module, name: str, tensors: dict[str, Tensor]) -> None:
    own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit the {name}: {str(error).splitlines()[-1]}") from None
