"""Adaptive discriminator augmentation: less overfitting on few images (Karras et al. 2020).

Every image that D is shown, training, generated or known abnormal, is changed at random, so that D
sees more than the few there are. G never learns the changes as long as they are rarer than
certain, because an image left alone then stays the likeliest (section 2.2 of that paper). A
transform must not turn a normal image into what counts as a defect: which ones are allowed is for
the user to say.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import Tensor

Transform = Literal["translate", "zoom", "rotate", "brightness", "contrast"]
MOVING: tuple[Transform, ...] = ("translate", "zoom", "rotate")
"""Those that sample the image anew."""
LARGEST_PROBABILITY = 0.8
"""Above it changes begin to leak into what G makes (Karras et al. 2020, section 3)."""
_SHIFT = 1 / 8
_ZOOM_STD = 0.2
_ANGLE_RAD = math.radians(10)
_BRIGHTNESS_STD = 0.2
_CONTRAST_STD = 0.5
_TOUCHED = 1e-3


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """What may be changed, and how often.

    Attributes:
        transforms: `translate` by up to an eighth of the side in whole pixels, `zoom` by
            2^N(0, 0.2), `rotate` by up to 10 degrees, all three with the picture mirrored at its
            rims; `brightness` plus N(0, 0.2) on a scale of -1..1; `contrast` times 2^N(0, 0.5).
        start: Probability of each transform at the beginning, in [0, 0.8].
        target: Value of sign_real (see `gan.step.training_step`) that the probability is steered
            to.
        adapt_kimg: Thousands of images in which the probability can rise by 1.
    """

    transforms: tuple[Transform, ...] = ()
    start: float = 0.0
    target: float = 0.6
    adapt_kimg: float = 500.0


UNCHANGED = AugmentSettings()


class AdaptiveAugment:
    """Changes images at random; its probability follows how sure D is of its training images.

    Args:
        settings: What and how often.
        source: Where the chances come from, on the CPU; consumed whether or not they come true.
    """

    def __init__(self, settings: AugmentSettings, source: torch.Generator) -> None:
        self.settings = settings
        self.probability = settings.start
        self._source = source

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Return the images, float [B, C, H, W], each changed or not; differentiable once."""
        if set(MOVING) & set(self.settings.transforms):
            image_BCHW = self._moved(image_BCHW)
        return self._recoloured(image_BCHW)

    def marked(self, image_BCHW: Tensor, mask_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """The same for images with masks, bool [B, 1, H, W], which stay where their defects are.

        An image whose defect would leave it is not moved: what is left would be a normal image.
        """
        if set(MOVING) & set(self.settings.transforms):
            before = torch.cat([image_BCHW, mask_B1HW.to(image_BCHW)], dim=1)
            after = self._moved(before)
            marked_B, left_B = (_mask(both).any(dim=(2, 3)) for both in (before, after))
            both = torch.where((marked_B & ~left_B)[..., None, None], before, after)
            image_BCHW, mask_B1HW = both[:, :-1], _mask(both)
        return self._recoloured(image_BCHW), mask_B1HW

    def _recoloured(self, image_BCHW: Tensor) -> Tensor:
        """Shift brightness and contrast."""
        chosen = self.settings.transforms
        if "brightness" in chosen:
            image_BCHW = image_BCHW + self._normal(image_BCHW, _BRIGHTNESS_STD)
        if "contrast" in chosen:
            image_BCHW = image_BCHW * 2 ** self._normal(image_BCHW, _CONTRAST_STD)
        return image_BCHW

    def adapt(self, sign_real: Tensor, *, images: int) -> None:
        """Steer the probability after a step.

        D that calls nearly all training images real has begun to know them by heart.

        Args:
            sign_real: Scalar, see `gan.step.training_step`, of this rank's training images.
            images: Training images of the step over all ranks.
        """
        if not self.settings.transforms:
            return
        sign = sign_real.clone()
        if dist.is_initialized():
            dist.all_reduce(sign)
            sign /= dist.get_world_size()
        by = images / (self.settings.adapt_kimg * 1000)
        direction = 1 if float(sign) > self.settings.target else -1
        self.probability = min(max(self.probability + by * direction, 0.0), LARGEST_PROBABILITY)

    def _moved(self, image_BCHW: Tensor) -> Tensor:
        """Translate, zoom and rotate in one sampling."""
        B, _, H, W = image_BCHW.shape
        chosen = self.settings.transforms
        zoom, angle = torch.ones(B), torch.zeros(B)
        shift_B2 = torch.zeros(B, 2)
        if "translate" in chosen:
            size = torch.tensor([W, H])
            pixels = (self._uniform(B, 2) * _SHIFT * size).round()
            shift_B2 = pixels * 2 / size * self._come_true(B)[:, None]
        if "zoom" in chosen:
            zoom = 2 ** (self._randn(B) * _ZOOM_STD * self._come_true(B))
        if "rotate" in chosen:
            angle = self._uniform(B) * _ANGLE_RAD * self._come_true(B)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        rows = [torch.stack([cos, -sin, shift_B2[:, 0]], 1)]
        rows.append(torch.stack([sin, cos, shift_B2[:, 1]], 1))
        theta = torch.stack(rows, 1).to(image_BCHW)
        grid = nnf.affine_grid(theta, list(image_BCHW.shape), align_corners=False)
        return nnf.grid_sample(image_BCHW, grid, padding_mode="reflection", align_corners=False)

    def _normal(self, image_BCHW: Tensor, std: float) -> Tensor:
        B = len(image_BCHW)
        return (self._randn(B) * std * self._come_true(B)).view(B, 1, 1, 1).to(image_BCHW)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._source) * 2 - 1

    def _randn(self, B: int) -> Tensor:
        return torch.randn(B, generator=self._source)

    def _come_true(self, B: int) -> Tensor:
        return (torch.rand(B, generator=self._source) < self.probability).float()


def _mask(both_BCHW: Tensor) -> Tensor:
    """Where the last channel, a mask sampled anew, shows something.

    Sampling where a pixel lies is off by a millionth of one, and so touches its neighbours.
    """
    return both_BCHW[:, -1:] > _TOUCHED
