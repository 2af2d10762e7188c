"""Our training step against one written plainly from the papers (plain_gan.py), one process.

`PYTHONPATH=. python tests/bench/train/reference.py [--quick]` prints a table and writes
tests/bench/results/train_reference.json. Same networks (the demo's), batch and objective; both take
turns on one thread, and the ratio is the median over the turns. Ours with R1 in every step stands
beside them, to show how much of the gain is lazy regularisation and how much is not. The profile
is of our step, by operator.
"""

import functools
import os
import sys
import time

import torch
from torch import Tensor

from cluster.config import load_config
from gan.networks import num_channels, num_stages
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.step import Objective
from tests.bench.data.common import ROOT, write_results
from tests.bench.data.turns import against_bar, in_turns, rate, ratio
from tests.bench.train.plain_gan import PlainDiscriminator, PlainGenerator, PlainTraining
from tests.bench.train.tables import Row, show

RESOLUTIONS = (32, 64)
BAR = 1.8
STEPS = 8
"""The interval of R1, so that every turn holds one evaluation."""
NUM_OPERATORS = 12
# The plain step has no average of D.
CONFIG = load_config(
    str(ROOT / "cluster/demo.yaml"), {"optimizer.discriminator_half_life_kimg": 0.0}
)


def batches(resolution: int) -> tuple[Tensor, Tensor]:
    """Images called normal and known abnormal ones, as many as a step takes."""
    schedule = CONFIG.schedule
    source = torch.Generator().manual_seed(0)
    sizes = [schedule.batch, schedule.abnormal_batch]
    images = torch.rand(sum(sizes), 1, resolution, resolution, generator=source) * 2 - 1
    real, abnormal = images.split(sizes)
    return real, abnormal


def ours(resolution: int) -> TrainingState:
    """A training state of the demo's settings."""
    networks = CONFIG.networks.model_copy(update={"resolution": resolution})
    return TrainingState(
        networks.architecture(1),
        Rates(**CONFIG.optimizer.model_dump()),
        seed=0,
        rank=0,
        device=torch.device("cpu"),
    )


def our_steps(state: TrainingState, resolution: int, count: int, r1_interval: int) -> None:
    """Take `count` steps at the last resolution, after its fade."""
    real, abnormal = batches(resolution)
    phase = Phase(num_stages(resolution) - 1, False, 0, sys.maxsize)
    state.enter(phase, lambda network: network)
    objective = Objective(**CONFIG.objective.model_dump() | {"r1_interval": r1_interval})
    for _ in range(count):
        state.step(phase, real, abnormal, objective, images=len(real))


def plain(resolution: int) -> PlainTraining:
    """The plain networks of the demo's settings."""
    sizes = CONFIG.networks
    stages = range(num_stages(resolution))
    widths = [num_channels(stage, sizes.fmap_base, sizes.fmap_max) for stage in stages]
    generator, average = (PlainGenerator(sizes.latent_dim, widths, 1) for _ in range(2))
    average.load_state_dict(generator.state_dict())
    return PlainTraining(generator, PlainDiscriminator(widths, 1, sizes.group_size), average)


def plain_steps(training: PlainTraining, resolution: int, count: int) -> None:
    """Take `count` steps."""
    real, abnormal = batches(resolution)
    objective = CONFIG.objective
    half_life = CONFIG.optimizer.ema_half_life_kimg * 1000
    for _ in range(count):
        training.step(
            real,
            abnormal,
            torch.randn(len(real), CONFIG.networks.latent_dim),
            gamma=objective.gamma,
            alpha=objective.alpha,
            r1_weight=objective.r1_weight,
            decay=0.5 ** (len(real) / half_life),
        )


def compare(resolution: int, turns: int) -> list[Row]:
    """Images per second of the three, in turns, and how they compare with the plain one."""
    state, training = ours(resolution), plain(resolution)
    interval = CONFIG.objective.r1_interval
    taken = in_turns(
        {
            "plain": functools.partial(plain_steps, training, resolution, STEPS),
            "ours": functools.partial(our_steps, state, resolution, STEPS, interval),
            "ours, R1 each step": functools.partial(our_steps, state, resolution, STEPS, 1),
        },
        turns,
    )
    images = STEPS * CONFIG.schedule.batch
    rows: list[Row] = []
    for name, seconds in taken.items():
        row = {"resolution": resolution, "step": name, "images_per_s": rate(seconds, images)}
        value = ratio(taken, name, "plain")
        compared = against_bar(value, BAR) if name == "ours" else {"ratio": round(value, 2)}
        rows.append(row | compared)
    return rows


def profile(resolution: int) -> list[Row]:
    """Share of CPU time of the operators that take most of our step."""
    state, interval = ours(resolution), CONFIG.objective.r1_interval
    our_steps(state, resolution, 2, interval)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        our_steps(state, resolution, STEPS, interval)
    events = recorded.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:NUM_OPERATORS]
    return [
        {
            "resolution": resolution,
            "operator": event.key,
            "share": round(event.self_cpu_time_total / total, 3),
            "calls_per_step": round(event.count / STEPS, 1),
        }
        for event in largest
    ]


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    turns = 1 if "--quick" in sys.argv[1:] else 7
    started_s = time.perf_counter()
    rows = [row for resolution in RESOLUTIONS for row in compare(resolution, turns)]
    operators = [row for resolution in RESOLUTIONS for row in profile(resolution)]
    show("one training step on one thread", rows)
    show("where our step spends its time", operators)
    record = {
        "torch": torch.__version__,
        "turns": turns,
        "steps": rows,
        "operators": operators,
        "seconds": round(time.perf_counter() - started_s, 1),
        "load_average": os.getloadavg(),
    }
    write_results("train_reference", record)


if __name__ == "__main__":
    main()
