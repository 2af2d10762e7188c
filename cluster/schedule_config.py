"""When each resolution trains and with how many images: the section `schedule`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from cluster.section import Section
from gan.networks import num_stages, stage_resolution

Resolution = Literal[4, 8, 16, 32, 64, 128, 256, 512, 1024]
Kimg = Annotated[float, Field(ge=0, le=1_000_000)]
Images = Annotated[int, Field(ge=1, le=65_536)]
# JSON has no numbers as keys.
_Key = Annotated[Resolution, BeforeValidator(lambda key: int(key) if str(key).isdecimal() else key)]


class AtResolution(Section):
    """What one resolution does differently; what is left out is as everywhere."""

    batch: Images | None = None
    """Training images per step over all workers, in images."""
    abnormal_batch: Images | None = None
    """Known abnormal images per step over all workers, in images."""
    fade_kimg: Kimg | None = None
    """Length of the fade-in, in kimg."""
    steady_kimg: Kimg | None = None
    """Length of the training after the fade-in, in kimg."""
    lr_factor: float = Field(1.0, gt=0, le=100)
    """Both learning rates are multiplied by it, a factor."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The plan of one resolution, resolved: `AtResolution` and what follows from it.

    Attributes:
        num_parts: Parts that a worker cuts its share of a batch into.
        pass_images: Training images of such a part, which are computed at once.
        least_pass: Those of the smallest part it can be cut into.
    """

    resolution: int
    batch: int
    abnormal_batch: int
    fade_kimg: float
    steady_kimg: float
    lr_factor: float
    num_parts: int
    pass_images: int
    least_pass: int


class Schedule(Section):
    """Progressive growing, counted in thousands of images (kimg) over all workers."""

    batch: Images = 32
    """Training images per step over all workers, in images."""
    abnormal_batch: Images = 16
    """Known abnormal images per step over all workers, in images."""
    fade_kimg: Kimg = 100.0
    """Length of each fade-in, in kimg."""
    steady_kimg: Kimg = 100.0
    """Length of each stage below the last after its fade, in kimg."""
    final_kimg: Annotated[float, Field(ge=0.001, le=1_000_000)] = 400.0
    """Length of the last stage after its fade, in kimg."""
    at: dict[_Key, AtResolution] = Field({}, max_length=9)
    """Other values at a resolution, such as {1024: {batch: 8, abnormal_batch: 4}}, by pixels."""

    def stages(
        self,
        resolution: int,
        *,
        num_workers: int,
        worker_counts: Sequence[int],
        group_size: int,
        limit: int,
        with_abnormal: bool,
    ) -> list[Stage]:
        """The plan of every stage up to a final resolution.

        Args:
            resolution: Side of the final images, in pixels.
            num_workers: Workers that share a batch.
            worker_counts: All numbers of them that must be able to.
            group_size: Images of a minibatch-std group, which no share may cut.
            limit: Most training images that a worker computes at once, 0 for all.
            with_abnormal: Whether known abnormal images are read; otherwise any number will do.

        Raises:
            ValueError: If a batch cannot be shared out, or the last stage trains nothing.
        """
        result = []
        names = ("batch", "abnormal_batch") if with_abnormal else ("batch",)
        for side in map(stage_resolution, range(num_stages(resolution))):
            own = self._at(side).model_dump(exclude_none=True)
            plan = {
                "batch": self.batch,
                "abnormal_batch": self.abnormal_batch,
                "fade_kimg": self.fade_kimg,
                "steady_kimg": self.final_kimg if side == resolution else self.steady_kimg,
            } | own
            for name in names:
                where = f"schedule.at.{side}.{name}" if name in own else f"schedule.{name}"
                _check_shares(where, plan[name], worker_counts, group_size)
            shares = [plan[name] // num_workers for name in names]
            num_groups = math.gcd(*shares) // group_size
            parts = _num_parts(side, shares, num_groups, limit)
            result.append(
                Stage(
                    resolution=side,
                    num_parts=parts,
                    pass_images=shares[0] // parts,
                    least_pass=shares[0] // num_groups,
                    **plan,
                )
            )
        _check_last(result[-1])
        return result

    def _at(self, side: int) -> AtResolution:
        return next((own for key, own in self.at.items() if key == side), AtResolution())


def _check_last(stage: Stage) -> None:
    fade_kimg = stage.fade_kimg if stage.resolution > 4 else 0.0
    if not round(fade_kimg * 1000) + round(stage.steady_kimg * 1000):
        raise ValueError(
            f"schedule.at.{stage.resolution} leaves the last stage without an image to train on; "
            "give it a steady_kimg of at least 0.001"
        )


def _check_shares(where: str, size: int, counts: Sequence[int], group_size: int) -> None:
    each = math.lcm(*counts) * group_size
    if not size % each:
        return
    what = f"cluster.num_workers x networks.group_size = {counts[-1]} x {group_size}"
    if len(counts) > 1:
        what = (
            f"{each}, so that any number of workers from cluster.min_workers={counts[0]} to "
            f"cluster.num_workers={counts[-1]} can share it in groups of {group_size}"
        )
    raise ValueError(f"{where}={size} must be a multiple of {what}; use {-(-size // each) * each}")


def _num_parts(side: int, shares: list[int], num_groups: int, limit: int) -> int:
    """Into how many equal parts, `num_groups` at most, a worker cuts its share of a batch."""
    for parts in range(1, num_groups + 1):
        if num_groups % parts == 0 and (not limit or shares[0] // parts <= limit):
            return parts
    kinds = zip(shares, ("training", "abnormal"), strict=False)
    told = " and ".join(f"{share} {kind}" for share, kind in kinds)
    raise ValueError(
        f"cluster.images_per_pass={limit} cannot be kept at {side} pixels: {told} images a worker, "
        f"whose groups stay whole, can be cut to {shares[0] // num_groups} at least; raise it"
        + (", or bring the batches closer together" if len(shares) > 1 else "")
    )
