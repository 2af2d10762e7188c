"""What each rank measures of itself between two rows of metrics, and what that is over all ranks.

Statistics of the steps are means over all ranks, so that they tell of the whole batch. One slow
loader or one GPU that is nearly full shows on no other rank: all of them wait for the slowest. So
the ranks meet for a few numbers whenever a row is due.
"""

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

from gan.step import NonFiniteError


def due(interval_kimg: float, images_seen: int, batch: int) -> bool:
    """Whether the step of `batch` images that led to `images_seen` reached a new interval."""
    interval = max(1, round(interval_kimg * 1000))
    return images_seen // interval > (images_seen - batch) // interval


class RankMeter:
    """Statistics of the steps, time waited for data, speed and memory since the last row.

    Args:
        device: Where this rank trains.
        world_size: Number of ranks.
        images_seen: Images all ranks have seen so far.
    """

    def __init__(self, device: torch.device, world_size: int, images_seen: int) -> None:
        self._device, self._world_size = device, world_size
        self._wait_s = 0.0
        self._stats: dict[str, list[Tensor]] = {}
        self._since = (time.monotonic(), images_seen)

    def note(self, wait_s: float, stats: Mapping[str, Tensor]) -> None:
        """Add a step.

        Args:
            wait_s: How long it waited for its data, in seconds.
            stats: Scalars by name, of the same names on all ranks.
        """
        self._wait_s += wait_s
        for name, value in stats.items():
            self._stats.setdefault(name, []).append(value)

    def measure(self, images_seen: int) -> dict[str, float]:
        """What was measured since the last call; all ranks must call it after the same step.

        Args:
            images_seen: Images all ranks have seen so far.

        Returns:
            Values by name of the metric: means of the statistics over steps and ranks, what else
            was measured of this rank, and with several ranks the extremes over them, under ranks/.

        Raises:
            NonFiniteError: If a statistic is not finite on any rank, on all ranks alike.
        """
        now = time.monotonic()
        elapsed_s = max(now - self._since[0], 1e-9)
        images_per_s = (images_seen - self._since[1]) / elapsed_s
        wait_share, memory_gib = self._wait_s / elapsed_s, _memory_bytes(self._device) / 2**30
        row = self._means() | {
            "train/images_per_s": images_per_s,
            "train/memory_gib": memory_gib,
            "data/wait_s": self._wait_s,
            "data/wait_share": wait_share,
            "ranks/num_workers": float(self._world_size),
        }
        if self._world_size > 1:
            wait_max, wait_negated, memory_max = largest(
                [wait_share, -wait_share, memory_gib], self._device
            )
            row |= {
                "ranks/wait_share_max": wait_max,
                "ranks/wait_share_min": -wait_negated,
                "ranks/memory_gib_max": memory_max,
            }
        self._wait_s, self._stats, self._since = 0.0, {}, (now, images_seen)
        return row

    def _means(self) -> dict[str, float]:
        if not self._stats:
            return {}
        means = [torch.stack(values).mean().to(self._device) for values in self._stats.values()]
        shared = torch.stack(means)
        if self._world_size > 1:
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.SUM)
            shared /= self._world_size
        row = {f"train/{n}": float(v) for n, v in zip(self._stats, shared, strict=True)}
        if wrong := [name for name, value in row.items() if not math.isfinite(value)]:
            raise NonFiniteError(f"{', '.join(wrong)} not finite")
        return row


def largest(values: list[float], device: torch.device) -> list[float]:
    """The largest of each value over all ranks, each of which must call this with as many."""
    # float32, because not every device has more.
    shared = torch.tensor(values, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return [float(value) for value in shared]


def _memory_bytes(device: torch.device) -> int:
    """Most memory so far: of tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage, whose number begins with that of the process that started this one.
    (most_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(most_kib) * 1024
