"""A trained pair of networks as plain bytes: architecture in words, weights as safetensors."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from gan.efficientnet import STRIDES, EfficientNetFeatures
from gan.encoder import Encoder
from gan.networks import Discriminator, Generator, ProgressiveFeatures, num_stages
from gan.patches import PatchDiscriminator

Network = TypeVar("Network", bound=nn.Module)
AnyDiscriminator = Discriminator | PatchDiscriminator
Features = Literal["own", "efficientnet-lite0"]


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
        features: What D judges by: its own levels, or a frozen network with heads for patches.
        enlarge: Factor by which final images are enlarged for that network.
        head_width: Channels of each of those heads.
        features_sha256: Digest of the file with the frozen network's weights.
    """

    resolution: int
    channels: int
    latent_dim: int
    fmap_base: int
    fmap_max: int
    group_size: int
    features: Features = "own"
    enlarge: int = 2
    head_width: int = 64
    features_sha256: str = ""

    def generator(self) -> Generator:
        """A generator with fresh weights from torch's global random state."""
        return Generator(
            resolution=self.resolution,
            channels=self.channels,
            latent_dim=self.latent_dim,
            fmap_base=self.fmap_base,
            fmap_max=self.fmap_max,
        )

    def discriminator(self) -> AnyDiscriminator:
        """A discriminator with fresh weights, also where they will be pretrained ones."""
        if self.features != "own":
            frozen = EfficientNetFeatures(resolution=self.resolution, enlarge=self.enlarge)
            return PatchDiscriminator(frozen, width=self.head_width)
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

    @property
    def judges_patches(self) -> bool:
        """Whether D gives a logit for each cell instead of each image."""
        return self.features != "own"

    def num_levels(self, stage: int | None = None) -> int:
        """Levels of D's features at a stage, by default the last one."""
        if self.judges_patches:
            return len(STRIDES)
        return max(1, num_stages(self.resolution) - 1 if stage is None else stage)

    @property
    def num_heads(self) -> int:
        """Maps of logits that D gives."""
        return len(STRIDES) if self.judges_patches else 1

    def to_dict(self) -> dict[str, int | str]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
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
) -> tuple[Generator, AnyDiscriminator]:
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
