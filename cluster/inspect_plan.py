"""What an inspection will take, from a short probe on the cluster: `inspect --dry-run`."""

import time
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from rich.console import Console
from rich.table import Table

from cluster.config import Config
from cluster.engine import Engine
from cluster.errors import UserError
from cluster.inputs import Inputs, Inspected, first_units
from cluster.model_store import load_model
from cluster.progress import duration
from cluster.ray_session import living_nodes, ray_session, room_on_nodes
from data.errors import DataError
from data.store import Store


@dataclass(frozen=True)
class InspectProbe:
    """What an actor can do.

    Attributes:
        device: What it computes on.
        input_s: Seconds for one input, reading and pictures left out.
    """

    device: str
    input_s: float


def print_plan(config: Config, inspected: Inspected, done: set[str]) -> None:
    """Print how many inputs there are, and what time and money inspecting them takes.

    Args:
        config: Configuration.
        inspected: What is to be inspected.
        done: Names of the units that are finished.

    Raises:
        UserError: If no actor fits into the cluster.
    """
    wanted = first_units(inspected.units, config.inspect.limit)
    waiting = [unit for unit in wanted if unit.name not in done]
    num_inputs = sum(unit.num_inputs for unit in waiting)
    rows = [
        ("inputs", inspected.uri),
        ("files that are no images", f"{len(inspected.ignored):,}"),
        ("units of work", f"{len(waiting):,} ({len(wanted) - len(waiting):,} more are finished)"),
        ("images to inspect", f"{num_inputs:,}"),
    ]
    if waiting:
        cluster = config.cluster
        with ray_session(min(cluster.num_actors, len(waiting)) * cluster.cpus_per_worker):
            num_actors = min(cluster.num_actors, len(waiting), fitting_actors(config))
            task: Any = ray.remote(
                num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker
            )(probe)
            found = _ask(task, config, waiting[0])
        rows += _costs(config, found, num_inputs, num_actors)
    table = Table("what", "how much", title="Plan of the inspection")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _ask(task: Any, config: Config, inputs: Inputs) -> InspectProbe:
    try:
        found: InspectProbe = ray.get(task.remote(config, inputs))
    except RayTaskError as error:
        raise actionable(error) from error
    return found


def actionable(error: RayTaskError) -> Exception:
    """What failed in an actor, in words that a person can act on where there are any."""
    if isinstance(error.cause, torch.OutOfMemoryError):
        return UserError(
            f"a search does not fit into the GPU's memory ({str(error.cause).splitlines()[0]}); "
            "lower search.batch, and calibrate with the same"
        )
    return error.cause if isinstance(error.cause, UserError | DataError) else error


def _costs(
    config: Config, found: InspectProbe, num_inputs: int, num_actors: int
) -> list[tuple[str, str]]:
    hours = found.input_s * num_inputs / 3600
    rows = [
        ("actors", f"{num_actors}, each on {found.device}"),
        ("images/s", f"{num_actors / found.input_s:.2f}"),
        ("time", duration(3600 * hours / num_actors)),
        ("actor hours", f"{hours:.2f}"),
    ]
    if config.inspect.price_per_hour:
        rows.append(("price", f"{hours * config.inspect.price_per_hour:,.2f}"))
    return rows


def fitting_actors(config: Config) -> int:
    """Actors that the nodes of the cluster have room for.

    Raises:
        UserError: If there is no room for one.
    """
    fitting = num_fitting(config)
    if fitting < 1:
        cluster = config.cluster
        there = sorted({_text(have) for have in living_nodes()}) or ["no CPU"]
        raise UserError(
            f"an inspection actor needs {cluster.cpus_per_worker:g} CPU and "
            f"{cluster.gpus_per_worker:g} GPU, the cluster's nodes have {', or '.join(there)}; "
            "lower cluster.cpus_per_worker or cluster.gpus_per_worker"
        )
    return fitting


def num_fitting(config: Config) -> int:
    """Actors that there is room for now."""
    return sum(room_on_nodes(config.cluster))


def _text(have: dict[str, float]) -> str:
    return f"{have.get('CPU', 0.0):g} CPU and {have.get('GPU', 0.0):g} GPU"


def probe(config: Config, inputs: Inputs) -> InspectProbe:
    """Time the search of one block of samples, after one that warms up.

    Args:
        config: Configuration.
        inputs: A unit of what is to be inspected.
    """
    torch.set_num_threads(config.cluster.num_threads)
    device, model = config.cluster.device, load_model(Store(config.run.dir))
    engine = Engine(model, config.search, seed=config.run.seed, device=device)
    # Of a folder's images some may be unreadable, others many tiles; a shard's inputs are samples.
    samples = [s for s in inputs.read().samples if engine.unfit(s) is None]
    if not samples:
        raise UserError(f"{inputs.source}: nothing in the first unit can be inspected")
    block = [samples[i % len(samples)] for i in range(config.search.batch)]
    engine.score(block[:1])
    started_s = time.monotonic()
    engine.score(block)
    sample_s = (time.monotonic() - started_s) / len(block)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return InspectProbe(name, sample_s * len(samples) / inputs.num_inputs)
