"""When each resolution fades in and trains, counted in images (Karras et al. 2018, section 3)."""

from dataclasses import dataclass

from gan.networks import num_stages, stage_resolution


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


def phases(
    *, resolution: int, fade_kimg: float, steady_kimg: float, final_kimg: float
) -> tuple[Phase, ...]:
    """The phases from 4x4 up to `resolution`, without gaps.

    Args:
        resolution: Final side in pixels.
        fade_kimg: Thousands of images to fade a stage in.
        steady_kimg: Thousands of images to train a stage below the last.
        final_kimg: Thousands of images to train the last stage, after its fade.
    """
    result: list[Phase] = []
    start = 0
    last = num_stages(resolution) - 1
    for stage in range(last + 1):
        steady = final_kimg if stage == last else steady_kimg
        for fading, kimg in ((True, fade_kimg if stage else 0.0), (False, steady)):
            length = round(kimg * 1000)
            if length:
                result.append(Phase(stage, fading, start, start + length))
                start += length
    return tuple(result)


def phase_at(schedule: tuple[Phase, ...], images_seen: int) -> Phase | None:
    """The phase that the next image belongs to; None once training is over."""
    return next((phase for phase in schedule if images_seen < phase.end), None)
