"""How an image's latent is searched, and the encoder that may propose a start."""

from typing import Literal

from pydantic import Field, model_validator

from cluster.section import Section


class EncoderConfig(Section):
    """The network that proposes a start for the search, trained when G and D are finished."""

    kimg: float = Field(0.0, ge=0, le=1_000_000)
    """Training images it sees, and as many generated ones; 0: there is none, in kimg."""
    lr: float = Field(0.001, gt=0, le=1)
    """Adam's learning rate, per step."""
    batch: int = Field(32, ge=1, le=65_536)
    """Training images in a step, and as many generated ones, in images."""
    feature_weight: float = Field(1.0, ge=0, le=10_000)
    """Weight of the discriminator's features in its loss, a factor."""


class Search(Section):
    """Latent search and the score it gives."""

    steps: int = Field(100, ge=0, le=100_000)
    """Gradient steps from each start, at most; 0 scores the start, in steps."""
    step_size: float = Field(0.05, gt=0, le=10)
    """Adam's step size on z, per step."""
    candidates: int = Field(0, ge=0, le=65_536)
    """Latents tried before the first step, the same for all images; held in memory as images."""
    encoder: bool = False
    """Whether the model's encoder proposes a start as well, yes or no."""
    restarts: int = Field(1, ge=1, le=1024)
    """Starts of each image, the best result counts: nearest ones, then random ones, in starts."""
    patience: int = Field(0, ge=0, le=100_000)
    """Steps without improvement after which a search has ended; 0: all steps, in steps."""
    tolerance: float = Field(0.01, ge=0, lt=1)
    """What L must fall by to count as improvement, a fraction of it."""
    feature_weight: float = Field(0.1, ge=0, le=1)
    """lambda, the share of the feature term in L(z), a fraction."""
    feature_levels: tuple[int, ...] = Field((-1,), min_length=1, max_length=9)
    """Discriminator levels in the feature term: 0 is the finest, -1 the coarsest."""
    statistic: Literal["fused", "mean", "window"] = "fused"
    """The score: maps and D's logit fused as validation says, L itself, or the strongest window."""
    window: int = Field(9, ge=1, le=255)
    """Side of that window, odd, in pixels."""
    local_contrast: int = Field(0, ge=0, le=255)
    """Side, odd, of the surroundings whose contrast is evidence too if fused; 0: not, in pixels."""
    logit_in_map: bool = False
    """Whether D's one logit counts all over the map, for tiles as small as a defect, yes or no."""
    batch: int = Field(32, ge=1, le=4096)
    """Searches at a time, one that ends making room for the next, in searches."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Numbers of the convolutions in the search; the losses are float32 always."""

    @model_validator(mode="after")
    def _odd_sides(self) -> "Search":
        if self.window % 2 == 0:
            raise ValueError(f"window={self.window} must be odd, so that it has a centre pixel")
        if self.local_contrast and (self.local_contrast % 2 == 0 or self.local_contrast < 3):
            raise ValueError(
                f"local_contrast={self.local_contrast} must be 0 or odd and at least 3, so that a "
                "pixel has neighbours on all sides"
            )
        return self
