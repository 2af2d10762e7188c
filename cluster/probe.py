"""What a worker's machine can do: its memory, and the seconds of a step at each stage."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.config import Config
from gan.memory import StepMemory, step_memory
from gan.model import Architecture
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.step import Execution, Objective

_PROBE_S = 30.0
_NUM_TIMED = 4
# Four times the pixels, about half the channels, two networks more: from stage to stage never
# less work than this, so a stage that would not end in time is extrapolated instead.
_GROWTH = 4.0
# What a process on the CPU takes for the tensors of a step, fitted to its growth at 32, 64 and 128
# pixels: convolutions keep code and blocked copies, and freed memory lies in pieces. On a GPU the
# work space of convolutions is not measured.
_CPU_FACTOR, _CPU_BYTES = 1.2, 140 * 2**20
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a worker's machine can do.

    Attributes:
        device: Its name.
        memory_bytes: Memory that one worker may use.
        step_s: Seconds of one step, by resolution; negative where it is extrapolated, absent where
            the step does not fit into memory.
        own_bytes: Memory that a worker takes whatever it trains.
        factor: Memory taken for each byte of a step's tensors.
    """

    device: str
    memory_bytes: int
    step_s: dict[int, float]
    own_bytes: int = 0
    factor: float = 1.0

    def needed_bytes(self, memory: StepMemory, images: int) -> int:
        """Memory of a worker that trains on so many images at once."""
        return self.own_bytes + round(self.factor * memory.total_bytes(images))

    def fitting_images(self, memory: StepMemory) -> int:
        """Most images at once that its memory holds."""
        room = (self.memory_bytes - self.own_bytes) / self.factor - memory.fixed_bytes
        return max(0, int(room // memory.image_bytes))


def memory_of(config: Config, architecture: Architecture) -> list[StepMemory]:
    """The memory of a step at every stage."""
    stages = config.stages()
    alpha, average_d = config.objective.alpha, config.optimizer.discriminator_half_life_kimg > 0
    shares = [stage.abnormal_batch / stage.batch if alpha else 0.0 for stage in stages]
    return [
        step_memory(architecture, number, abnormal_share=share, average_d=average_d)
        for number, share in enumerate(shares)
    ]


def probe(values: dict[str, Any], channels: int, workers_per_node: int) -> Probe:
    """Time steps on random images, small stages first, for about half a minute.

    Args:
        values: Plain values of the configuration.
        channels: Channels of the images.
        workers_per_node: Workers that share a machine's memory.
    """
    config = Config.model_validate(values)
    torch.set_num_threads(config.cluster.num_threads)
    device = config.cluster.device
    # Training workers share no GPU, see `Cluster.check_training`.
    found = _machine(device, 1 if device.type == "cuda" else workers_per_node)
    architecture = config.networks.architecture(channels)
    memories = memory_of(config, architecture)
    rates = Rates(generator_lr=1e-9, discriminator_lr=1e-9, ema_half_life_kimg=1.0)
    state = TrainingState(architecture, rates, seed=0, rank=0, device=device)
    deadline, last_s = time.monotonic() + _PROBE_S, 0.0
    for number, (stage, memory) in enumerate(zip(config.stages(), memories, strict=True)):
        if found.needed_bytes(memory, stage.pass_images) > found.memory_bytes:
            break
        if _GROWTH * last_s * _NUM_TIMED > deadline - time.monotonic():
            last_s *= _GROWTH
            found.step_s[stage.resolution] = -last_s
        else:
            last_s = found.step_s[stage.resolution] = _step_s(config, state, number, channels)
    return found


def _machine(device: torch.device, sharing: int) -> Probe:
    """The machine, of which so many workers share the memory, with no step timed yet."""
    memory_bytes = _memory_bytes(device) // sharing
    if device.type == "cuda":
        return Probe(device=torch.cuda.get_device_name(), memory_bytes=memory_bytes, step_s={})
    # So far this process holds Python and the libraries.
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Probe(
        device="CPU",
        memory_bytes=memory_bytes,
        step_s={},
        own_bytes=pages * os.sysconf("SC_PAGE_SIZE") + _CPU_BYTES,
        factor=_CPU_FACTOR,
    )


def _step_s(config: Config, state: TrainingState, number: int, channels: int) -> float:
    """Seconds of a worker's step at a stage, the mean over the steps with and without R1."""
    workers, stage = config.cluster.num_workers, config.stages()[number]
    shape = (channels, stage.resolution, stage.resolution)
    real = torch.rand(stage.batch // workers, *shape, device=state.device)
    abnormal = torch.rand(stage.abnormal_batch // workers, *shape, device=state.device)
    objective = Objective(**config.objective.model_dump())
    phase = Phase(number, False, 0, 1)
    dtype = getattr(torch, config.cluster.precision)
    state.enter(phase, lambda net: net, execution=Execution(num_parts=stage.num_parts, dtype=dtype))
    times = []
    # The first step warms up; the second has R1, the others have not.
    for index in (0, 0, 1, 1):
        state.num_steps = index
        started_s = time.perf_counter()
        state.step(phase, real, abnormal if objective.alpha else None, objective, images=0)
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started_s)
    _, with_r1, *without = times
    plain = min(without)
    if not objective.r1_weight:
        return plain
    return (with_r1 + (objective.r1_interval - 1) * plain) / objective.r1_interval


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return total if limit == "max" else min(total, int(limit))
