"""What to do when a loss or gradient is no longer finite."""

from cluster.errors import UserError
from gan.step import NonFiniteError

RATE_CUT = 0.5


def check_second(
    error: NonFiniteError, *, images_seen: int, last_cut: int | None, interval: int
) -> None:
    """Refuse to go back a second time where halved learning rates did not help.

    Args:
        error: What is not finite.
        images_seen: Images seen when it happened.
        last_cut: Images seen where training went on after the last cut; None before any.
        interval: Images between two checkpoints.

    Raises:
        UserError: If no such interval has passed since the last cut.
    """
    if last_cut is not None and images_seen < last_cut + interval:
        raise UserError(
            f"training diverged again, {(images_seen - last_cut) / 1000:g} kimg after the learning "
            f"rates were halved: {error}; lower optimizer.generator_lr and discriminator_lr, or "
            "raise objective.r1_weight, and start in another run.dir"
        ) from error


def rollback_note(error: NonFiniteError, *, images_seen: int, back_to: int, factor: float) -> str:
    """The line for the person who waits.

    Args:
        error: What is not finite.
        images_seen: Images seen when it happened.
        back_to: Images seen where training goes on.
        factor: Learning rates from now on, as a share of those configured.
    """
    return (
        f"training diverged at {images_seen / 1000:g} kimg: {error}; it goes on from "
        f"{back_to / 1000:g} kimg with {factor:g} times the configured learning rates"
    )
