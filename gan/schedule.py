"""When each resolution fades in and trains, counted in images (Karras et al. 2018, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from gan.networks import stage_resolution


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one stage, either fading its newest block in or steady.

    Attributes:
        stage: Stage of both networks.
        fading: Whether the newest block is being blended in.
        start: Images seen, over all ranks, when the phase begins.
        end: Images seen when it is over.
    """

    stage: int
    fading: bool
    start: int
    end: int

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return stage_resolution(self.stage)

    def fade(self, images_seen: int) -> float:
        """Weight of the newest block in [0, 1] after `images_seen` images; 1 in a steady phase."""
        if not self.fading:
            return 1.0
        return (images_seen - self.start) / (self.end - self.start)


def phases(lengths_kimg: Sequence[tuple[float, float]]) -> tuple[Phase, ...]:
    """The phases from 4x4 up, without gaps.

    Args:
        lengths_kimg: For each stage, thousands of images to fade it in and to train it after that.
            The first stage has nothing to fade from.
    """
    result: list[Phase] = []
    start = 0
    for stage, (fade_kimg, steady_kimg) in enumerate(lengths_kimg):
        for fading, kimg in ((True, fade_kimg if stage else 0.0), (False, steady_kimg)):
            length = round(kimg * 1000)
            if length:
                result.append(Phase(stage, fading, start, start + length))
                start += length
    return tuple(result)


def phase_at(schedule: tuple[Phase, ...], images_seen: int) -> Phase | None:
    """The phase that the next image belongs to; None once training is over."""
    return next((phase for phase in schedule if images_seen < phase.end), None)
