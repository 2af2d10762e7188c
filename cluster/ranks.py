"""The training workers as a group."""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

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
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]


def mean_in_rank_order(
    _: None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Mean of a bucket of gradients over ranks, each number summed in the order of the ranks.

    A hook of DistributedDataParallel. What it does by itself adds up three ranks and more in an
    order that depends on a gradient's place in its bucket, and those places change after the first
    step: a resumed run would differ in the last bit.
    """
    own = bucket.buffer()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    total, *others = parts
    for part in others:
        total += part
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(total / len(parts))
    return future
