"""Everything that training changes, and how one batch changes it."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gan.augment import UNCHANGED, AdaptiveAugment, AugmentSettings
from gan.ema import update_ema
from gan.model import Architecture, place
from gan.patches import PatchDiscriminator
from gan.schedule import Phase
from gan.step import WHOLE, Execution, Objective, StepInput, training_step

ADAM_BETAS = (0.0, 0.99)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates and averaging.

    Attributes:
        generator_lr: Adam's step size for G.
        discriminator_lr: Adam's step size for D.
        ema_half_life_kimg: Half-life of the average of G, in thousands of images.
        discriminator_half_life_kimg: The same for D; 0: D as it is judges.
    """

    generator_lr: float
    discriminator_lr: float
    ema_half_life_kimg: float
    discriminator_half_life_kimg: float = 0.0


class TrainingState:
    """Networks, average, optimisers, latent randomness and counters of one rank.

    What `state_dict` returns is the same on every rank but for the random state, which is why that
    one stands apart: `latent_state` belongs to a single rank.

    Args:
        architecture: What to build.
        rates: Learning rates and averaging.
        seed: Seed of the weights, equal on all ranks.
        rank: This rank; with `seed` it decides the latents drawn.
        device: Where to train.
        augment: What may be changed in the images that D is shown.
        pretrained: Weights of the frozen feature network; None: D has its own levels.
    """

    def __init__(
        self,
        architecture: Architecture,
        rates: Rates,
        *,
        seed: int,
        rank: int,
        device: torch.device,
        augment: AugmentSettings = UNCHANGED,
        pretrained: Mapping[str, Tensor] | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.rates = rates
        self.device = device
        self.generator = place(architecture.generator(), device)
        self.discriminator = architecture.discriminator()
        if pretrained is not None:
            assert isinstance(self.discriminator, PatchDiscriminator)
            self.discriminator.features.load_pretrained(pretrained)
        place(self.discriminator, device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.judge = self.discriminator
        """The discriminator that scores: the average of D where one is taken."""
        if rates.discriminator_half_life_kimg:
            self.judge = copy.deepcopy(self.discriminator).requires_grad_(False)
        self.optimizer_g = _adam(self.generator, rates.generator_lr)
        self.optimizer_d = _adam(self.discriminator, rates.discriminator_lr)
        self.latents = torch.Generator().manual_seed(_rank_seed(seed, rank))
        self.augment = AdaptiveAugment(augment, self.latents)
        self.rate_cut = 1.0
        self.images_seen = 0
        self.num_steps = 0
        self._execution = WHOLE
        self._wrapped: tuple[nn.Module, nn.Module] = (self.generator, self.discriminator)

    def enter(
        self,
        phase: Phase,
        wrap: Callable[[nn.Module], nn.Module],
        *,
        lr_factor: float = 1.0,
        execution: Execution = WHOLE,
    ) -> None:
        """Prepare for a phase: activate its parameters, then wrap for data-parallel training.

        A wrapper only synchronises parameters that were active when it was made, so every phase
        needs a new one.

        Args:
            phase: The phase.
            wrap: Makes a network average its gradients over ranks.
            lr_factor: Factor on both learning rates.
            execution: How its steps are computed.
        """
        self._execution = execution
        rates = self.rates
        for network, optimizer, lr in (
            (self.generator, self.optimizer_g, rates.generator_lr),
            (self.discriminator, self.optimizer_d, rates.discriminator_lr),
        ):
            network.activate(phase.stage, fading=phase.fading)
            optimizer.param_groups[0]["lr"] = lr * lr_factor * self.rate_cut
        self._wrapped = (wrap(self.generator), wrap(self.discriminator))

    def step(
        self,
        phase: Phase,
        real: Tensor,
        abnormal: Tensor | None,
        objective: Objective,
        *,
        images: int,
        abnormal_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            phase: Current phase, entered before.
            real: Float [B, C, R, R] training images in [-1, 1] of this rank.
            abnormal: Float [A, C, R, R] known abnormal images of this rank, or None.
            objective: Weights of the losses.
            images: Training images in this step over all ranks.
            abnormal_mask: Bool [A, 1, R, R], where their defects are, for a D that judges patches.

        Returns:
            The statistics of `gan.step.training_step`, and augment_probability.
        """
        used = self.augment.probability
        latent = torch.randn(len(real), self.generator.latent_dim, generator=self.latents)
        inputs = StepInput(
            real=real,
            abnormal=abnormal,
            latent=latent.to(self.device),
            stage=phase.stage,
            fade=phase.fade(self.images_seen),
            index=self.num_steps,
            abnormal_mask=abnormal_mask,
        )
        stats = training_step(
            *self._wrapped,
            self.optimizer_g,
            self.optimizer_d,
            inputs,
            objective,
            augment=self.augment,
            execution=self._execution,
        )
        self.augment.adapt(stats["sign_real"], images=images)
        update_ema(
            self.average,
            self.generator,
            images=images,
            half_life_kimg=self.rates.ema_half_life_kimg,
        )
        if self.rates.discriminator_half_life_kimg:
            update_ema(
                self.judge,
                self.discriminator,
                images=images,
                half_life_kimg=self.rates.discriminator_half_life_kimg,
            )
        self.images_seen += images
        self.num_steps += 1
        return stats | {"augment_probability": torch.tensor(used)}

    def state_dict(self) -> dict[str, Any]:
        """All that ranks share, as tensors and plain values."""
        modules = {name: each.state_dict() for name, each in self._stateful().items()}
        return modules | {
            "images_seen": self.images_seen,
            "num_steps": self.num_steps,
            "augment_probability": self.augment.probability,
            "rate_cut": self.rate_cut,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name, each in self._stateful().items():
            # A run that averages D only from here on has no average yet.
            each.load_state_dict(state["discriminator" if name not in state else name])
        self.images_seen = state["images_seen"]
        self.num_steps = state["num_steps"]
        self.augment.probability = state["augment_probability"]
        self.rate_cut = state["rate_cut"]

    def _stateful(self) -> dict[str, Any]:
        names = ["generator", "discriminator", "average", "optimizer_g", "optimizer_d"]
        if self.judge is not self.discriminator:
            names.append("judge")
        return {name: getattr(self, name) for name in names}

    @property
    def lr_factor(self) -> float:
        """By what the learning rates differ from those training began with."""
        return float(self.optimizer_g.param_groups[0]["lr"]) / self.rates.generator_lr

    def scale_rates(self, factor: float) -> None:
        """Multiply the learning rates of both networks from here on."""
        self.rate_cut *= factor
        for optimizer in (self.optimizer_g, self.optimizer_d):
            for group in optimizer.param_groups:
                group["lr"] *= factor

    def latent_state(self) -> Tensor:
        """Random state of this rank's latents and augmentation, an uint8 tensor."""
        return self.latents.get_state()

    def load_latent_state(self, state: Tensor) -> None:
        """Continue this rank's latents from what `latent_state` returned."""
        self.latents.set_state(state)

    def renew_latents(self, seed: int, rank: int) -> None:
        """Draw this rank's latents from a seed of its own from here on.

        Args:
            seed: Seed of the weights.
            rank: This rank.
        """
        self.latents.manual_seed(_rank_seed(seed, rank, self.images_seen))


def _rank_seed(*numbers: int) -> int:
    # torch's CPU generator keeps the low 32 bits only, so all numbers must reach those.
    digest = hashlib.sha256(":".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _adam(network: nn.Module, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=lr, betas=ADAM_BETAS, fused=True)
