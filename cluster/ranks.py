"""The training workers as a group."""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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


def wrap_network(network: nn.Module, world_size: int, device: torch.device) -> nn.Module:
    """Make a network average its gradients over ranks; a single rank needs no wrapper."""
    if world_size == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
    # Two terms have one sum, and GPUs promise no bits.
    if device.type == "cpu" and world_size > 2:
        wrapped.register_comm_hook(None, _mean_in_rank_order)
    return wrapped


# PyTorch insists on just this annotation, which its own type hints do not have.
def _mean_in_rank_order(
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
