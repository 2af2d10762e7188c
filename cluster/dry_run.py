"""The plan of a training run, with a short probe on the cluster: what `train --dry-run` prints."""

import sys
from collections.abc import Iterator
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from cluster.config import Config
from cluster.errors import UserError
from cluster.probe import Probe, memory_of, probe
from cluster.progress import duration
from cluster.ray_session import ray_session, room_on_nodes
from cluster.schedule_config import Stage
from cluster.train_loop import architecture_of, schedule_of
from data.dataset import DatasetIndex
from data.sample import Split
from gan.memory import StepMemory, search_memory
from gan.model import Architecture
from gan.networks import num_parameters

_GIB = 2**30
_FEWER_MAPS = "take fewer feature maps (networks.fmap_base, networks.fmap_max)"
_COLUMNS = (
    *("pixels", "fade + steady kimg", "batch", "parts", "weights G + D", "GiB a worker"),
    *("images read", "GB read", "s/kimg", "time"),
)
_WIDTH = 130


def dry_run(config: Config, index: DatasetIndex) -> None:
    """Print stages, parameters, memory, images to read and expected time; train nothing.

    Raises:
        UserError: If a stage does not fit into the memory of a worker.
    """
    with ray_session(config.cluster.num_workers * config.cluster.cpus_per_worker):
        cpus, gpus = config.cluster.cpus_per_worker, config.cluster.gpus_per_worker
        if not workers_on_a_node(config):
            print(_no_room(config), file=sys.stderr)
        task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus)(_probe_on_a_node)
        found = ray.get(task.remote(config.model_dump(), index.channels))
    architecture = architecture_of(config, index)
    memories = memory_of(config, architecture)
    _print(config, index, architecture, memories, found)
    # With fewer workers each of them holds more images.
    fewest = config.cluster.model_copy(update={"num_workers": config.cluster.worker_counts[0]})
    check_memory(config.model_copy(update={"cluster": fewest}), memories, found)
    check_search(config, architecture, found)


def workers_on_a_node(config: Config) -> int:
    """Most workers that a node of the cluster has room for, since Ray packs them; 0 for none."""
    return min(config.cluster.num_workers, max(room_on_nodes(config.cluster), default=0))


def _no_room(config: Config) -> str:
    cluster = config.cluster
    return (
        f"waiting for a node: a worker needs {cluster.cpus_per_worker:g} CPU and "
        f"{cluster.gpus_per_worker:g} GPU, no node of the cluster has that; add one, or stop and "
        "lower cluster.cpus_per_worker or cluster.gpus_per_worker"
    )


def _probe_on_a_node(values: dict[str, Any], channels: int) -> Probe:
    # Asked here, where there is a node for it, even if the cluster had to grow first.
    workers = workers_on_a_node(Config.model_validate(values))
    return probe(values, channels, workers_per_node=max(1, workers))


def check_memory(config: Config, memories: list[StepMemory], found: Probe) -> None:
    """Refuse a stage that a worker's memory cannot hold.

    Raises:
        UserError: Naming the stage and how many images would fit.
    """
    for stage, memory in zip(config.stages(), memories, strict=True):
        images = stage.pass_images
        needed = found.needed_bytes(memory, images)
        if needed <= found.memory_bytes:
            continue
        fitting, least = found.fitting_images(memory), max(s.least_pass for s in config.stages())
        advice = (
            f"set cluster.images_per_pass={fitting} or less" if fitting >= least else _FEWER_MAPS
        )
        raise UserError(
            f"{stage.resolution} pixels need {needed / _GIB:.1f} GiB for "
            f"{images} images a worker at once, a worker on {found.device} has "
            f"{found.memory_bytes / _GIB:.1f} GiB; {advice}"
        )


def check_search(config: Config, architecture: Architecture, found: Probe) -> None:
    """Refuse a latent search, of validation or calibration, that a worker's memory cannot hold.

    Raises:
        UserError: Naming how many images would fit.
    """
    if not config.search.steps:
        return
    memory, images = search_memory(architecture), config.search.batch
    needed = found.needed_bytes(memory, images)
    if needed <= found.memory_bytes:
        return
    fitting = found.fitting_images(memory)
    advice = f"set search.batch={fitting} or less" if fitting else _FEWER_MAPS
    raise UserError(
        f"the latent search of {images} images at once needs {needed / _GIB:.1f} GiB, a worker on "
        f"{found.device} has {found.memory_bytes / _GIB:.1f} GiB; {advice}"
    )


def _print(
    config: Config,
    index: DatasetIndex,
    architecture: Architecture,
    memories: list[StepMemory],
    found: Probe,
) -> None:
    table = Table(title=f"{config.cluster.num_workers} workers, each on {found.device}")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in _rows(config, index, architecture, memories, found):
        table.add_row(*row)
    console = Console()
    # A table that is wrapped or cut off says less than one that runs over the edge.
    console.width = max(console.width, _WIDTH)
    console.print(table)
    total_s = expected_s(config, found)
    shown = "unknown: a stage does not fit" if total_s is None else duration(total_s)
    console.print(
        f"{schedule_of(config)[-1].end / 1000:,.0f} kimg; expected time {shown}, without start, "
        "checkpoints and waiting for data; ~ is extrapolated from the stage below"
    )


def expected_s(config: Config, found: Probe) -> float | None:
    """Seconds of all steps; None if some stage could not be timed."""
    total_s = 0.0
    for stage in config.stages():
        if stage.resolution not in found.step_s:
            return None
        images = 1000 * _kimg(stage)
        total_s += images / stage.batch * abs(found.step_s[stage.resolution])
    return total_s


def _rows(
    config: Config,
    index: DatasetIndex,
    architecture: Architecture,
    memories: list[StepMemory],
    found: Probe,
) -> Iterator[list[str]]:
    networks = architecture.generator(), architecture.discriminator()
    for number, (stage, memory) in enumerate(zip(config.stages(), memories, strict=True)):
        for network in networks:
            network.activate(number, fading=False)
        weights = [num_parameters(network, active=True) for network in networks]
        needed = found.needed_bytes(memory, stage.pass_images) / _GIB
        step_s = found.step_s.get(stage.resolution)
        kimg_s = abs(step_s) * 1000 / stage.batch if step_s else None
        mark = "~" if step_s and step_s < 0 else ""
        images, read_bytes = _to_read(config, index, stage)
        yield [
            str(stage.resolution),
            f"{stage.fade_kimg if number else 0:g} + {stage.steady_kimg:g}",
            f"{stage.batch} + {stage.abnormal_batch if config.objective.alpha else 0}",
            str(stage.num_parts),
            f"{weights[0] / 1e6:.2f} + {weights[1] / 1e6:.2f} M",
            f"{needed:.2f}",
            f"{images:,}",
            f"{read_bytes / 1e9:.2f}",
            "-" if kimg_s is None else f"{mark}{kimg_s:.1f}",
            "-" if kimg_s is None else mark + duration(kimg_s * _kimg(stage)),
        ]


def _to_read(config: Config, index: DatasetIndex, stage: Stage) -> tuple[int, float]:
    """Images that a stage reads, and their bytes in the shards."""
    normal = round(1000 * _kimg(stage))
    wanted: dict[Split, int] = {"train-normal": normal}
    if config.objective.alpha:
        wanted["train-abnormal"] = normal * stage.abnormal_batch // stage.batch
    total = 0.0
    for split, images in wanted.items():
        shards = index.shards_of(split, stage.resolution)
        total += images * sum(s.bytes for s in shards) / max(1, sum(s.samples for s in shards))
    return sum(wanted.values()), total


def _kimg(stage: Stage) -> float:
    return stage.steady_kimg + (stage.fade_kimg if stage.resolution > 4 else 0.0)
