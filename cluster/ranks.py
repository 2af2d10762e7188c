"""The training workers as a group."""

from dataclasses import dataclass
from typing import TypeVar

import torch.distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One worker's place among all.

    Attributes:
        rank: This one, from 0.
        world_size: Number of workers.
    """

    rank: int
    world_size: int

    def gather(self, value: T) -> list[T]:
        """Values of all ranks, in their order; every rank must call it, and waits for all."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]
