"""The command `pack`: images of a source become a packed data set, on all cores of the cluster."""

import io
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pandas as pd
import ray

from cluster.claims import check_apart
from cluster.config import Config
from cluster.errors import UserError
from cluster.pack_config import BUILT_IN, DIGITS, SURFACES
from cluster.preview import write_preview
from cluster.progress import progress_bar
from cluster.ray_session import ray_session
from data.dataset import DatasetIndex
from data.errors import DataError, StoreUnavailableError
from data.importers import import_items, mnist_subset
from data.importers.surfaces import synthetic_surfaces
from data.intensity_fit import fitted
from data.item import ImportOptions, Item
from data.pack import pack_unit
from data.pack_finish import common_channels, finish
from data.pack_records import (
    DUPLICATES_NAME,
    PLAN_NAME,
    QUARANTINE_NAME,
    UnitRecord,
    check_free,
    drop_records,
    load_records,
    open_plan,
    pending,
)
from data.plan import PackSettings, Plan, Unit, assign_splits, call_abnormal, contaminate, make_plan
from data.store import Store

CONTAMINATION = 0.2
"""Share of abnormal images among the normal training images of the two built-in sets."""

RAY_PAYS_S = 20.0
"""Work left, on one core, from which on starting Ray (about 8 s) is paid back by two cores."""
_MAX_RETRIES = 3
_OF_OWN_IMAGES = (
    "format",
    "channels",
    "black_level",
    "white_level",
    "normal_kinds",
    "num_inliers",
    "labelled_fraction",
    "train_fraction",
    "validation_fraction",
)
"""What a built-in set would ignore."""


def pack_dataset(config: Config) -> int:
    """Pack `pack.source` into `data.uri`, or only preview it; the command `pack`.

    Raises:
        DataError: If the source does not make a data set.
        UserError: If settings contradict each other.
    """
    if config.pack.preview:
        print(f"preview: {write_preview(Store(config.data.uri), plan_for(config))}")
        return 0
    index = write_dataset(config)
    store = Store(config.data.uri)
    for split, labels in index.labels.items():
        counts = ", ".join(f"{count} {label}" for label, count in labels.items())
        print(f"{split}: {counts}")
    if index.num_quarantined:
        print(f"left out: {index.num_quarantined} images, see {store.url(QUARANTINE_NAME)}")
    if num := store.read_bytes(DUPLICATES_NAME).count(b"\n"):
        print(f"near-duplicates in different splits: {num}, see {store.url(DUPLICATES_NAME)}")
    print(f"data set: {store.uri}, {len(index.shards)} shards")
    return 0


def write_dataset(config: Config) -> DatasetIndex:
    """Pack `pack.source` into `data.uri` and return the index.

    What a stopped run of the same images and settings has packed is not packed again.

    Raises:
        DataError: If the source does not make a data set, or another lies at `data.uri`.
        UserError: If settings contradict each other.
    """
    store = Store(config.data.uri)
    if config.pack.source not in BUILT_IN:
        # Shards would be overwritten while they are read.
        check_apart("data.uri", store.uri, "pack.source", config.pack.source)
    plan = plan_for(config)
    if not config.pack.replace:
        check_free(store, plan)
    if index := open_plan(store, plan):
        print(
            f"{store.uri} already holds these images, packed with these settings; if one has "
            "changed under its name, delete dataset.json there to pack them again",
            file=sys.stderr,
        )
        return index
    plan = fitted(plan, store)
    records = load_records(store, plan)
    todo = pending(plan, records)
    left = sum(len(unit.items) for unit in todo)
    if records:
        print(
            f"{plan.num_items - left} of {plan.num_items} images are packed already; if one of "
            f"them has changed under its name, delete {store.url(PLAN_NAME)} to begin anew",
            file=sys.stderr,
        )
    seen = [*records.values()]
    with progress_bar("pack", total=plan.num_items, unit="image") as bar:
        bar.update(plan.num_items - left)
        packed = _pack(plan, store, todo, config.cluster.cpus_per_worker)
        for record in packed:
            bar.update(len(record.images) + len(record.bad))
            # Images of another kind would make all the work left useless.
            try:
                common_channels([*seen, record])
            except DataError:
                # First the units under way, which would leave records of their own.
                packed.close()
                drop_records(store)
                raise
            # One stands for all that agree with it.
            seen = [record] if record.channels else seen
    return finish(store, plan, max_bad_fraction=config.data.max_bad_fraction)


def plan_for(config: Config) -> Plan:
    """Find the images of `pack.source` and plan how they are packed; reads no image."""
    chosen = config.pack
    items, known = _items(config)
    settings = PackSettings(
        name=chosen.source.rstrip("/").rsplit("/", 1)[-1],
        resolution=config.networks.resolution,
        seed=config.run.seed,
        mode=chosen.mode,
        tile_overlap=int(chosen.tile_overlap * config.networks.resolution),
        min_defect_pixels=chosen.min_defect_pixels,
        shard_samples=chosen.shard_samples,
        channels=chosen.channels,
        source=chosen.source,
        contamination=known,
        levels=(chosen.black_level, chosen.white_level),
        intensity=chosen.intensity,
        reading=f"format {chosen.format}",
    )
    final = items
    if known is None and chosen.contamination:
        final = contaminate(final, chosen.contamination, config.run.seed)
    if chosen.abnormal_list:
        final = call_abnormal(final, _listed_sources(chosen.abnormal_list))
    mixed_in = [
        new.key
        for old, new in zip(items, final, strict=True)
        if (old.split, new.split) == ("train-abnormal", "train-normal")
    ]
    return make_plan(final, settings, contaminants=mixed_in)


def _listed_sources(uri: str) -> list[str]:
    """Where the images lie that a list calls abnormal.

    Raises:
        UserError: If it is no such list.
    """
    folder, _, name = Store(uri).uri.rpartition("/")
    payload = Store(folder or "/").read_bytes(name)
    try:
        rows = pd.read_csv(io.BytesIO(payload), dtype=str, usecols=["source"])
    except ValueError as error:
        raise UserError(
            f"pack.abnormal_list={uri} is no CSV file with a column source, such as an audit's "
            f"suspects.csv: {str(error).splitlines()[0]}"
        ) from None
    found = [*rows["source"].dropna()]
    if not found:
        raise UserError(f"pack.abnormal_list={uri} names no image; leave the setting out")
    return found


def _items(config: Config) -> tuple[list[Item], float | None]:
    """Return the images with their splits, and the contamination of a built-in set."""
    chosen, seed = config.pack, config.run.seed
    share = CONTAMINATION if chosen.contamination is None else chosen.contamination
    if chosen.source in BUILT_IN:
        _check_built_in(config)
    if chosen.source == DIGITS:
        return mnist_subset(seed, contamination=share), share
    if chosen.source == SURFACES:
        side = config.networks.resolution
        return synthetic_surfaces(resolution=side, seed=seed, contamination=share), share
    options = ImportOptions(
        seed=seed,
        channels=chosen.channels,
        levels=(chosen.black_level, chosen.white_level),
        normal_kinds=chosen.normal_kinds,
    )
    found = import_items(chosen.source, chosen.format, options, **_of_format(config))
    fractions = (
        chosen.train_fraction,
        chosen.validation_fraction,
        1 - chosen.train_fraction - chosen.validation_fraction,
    )
    # Rounding must not make the rest negative.
    train, validation, test = fractions
    return assign_splits(found, seed, (train, validation, max(test, 0.0))), None


def _check_built_in(config: Config) -> None:
    """Refuse settings that a built-in set would ignore.

    Raises:
        UserError: If one is given.
    """
    for name in _OF_OWN_IMAGES:
        value = getattr(config.pack, name)
        if value != type(config.pack).model_fields[name].default:
            raise UserError(
                f"pack.{name}={value} tells of images of your own, and "
                f"pack.source={config.pack.source} is a built-in set; leave one out"
            )


def _of_format(config: Config) -> dict[str, Any]:
    """Return the settings that only one format has.

    Raises:
        UserError: If one is given for a source of another format.
    """
    settings = {}
    for name, format_ in (("num_inliers", "caltech256"), ("labelled_fraction", "mvtec")):
        value = getattr(config.pack, name)
        if config.pack.format == format_:
            settings[name] = value
        elif value != type(config.pack).model_fields[name].default:
            raise UserError(
                f"pack.{name}={value} belongs to pack.format={format_}, not to "
                f"{config.pack.format}; name the format or leave it out"
            )
    return settings


def _pack(plan: Plan, store: Store, units: list[Unit], cpus: float) -> Generator[UnitRecord]:
    """Pack in this process until it is clear that Ray would be faster, the rest on Ray."""
    started_s = time.monotonic()
    for done, unit in enumerate(units, start=1):
        yield pack_unit(unit, store, plan.settings, plan.digest)
        left = len(units) - done
        if (time.monotonic() - started_s) / done * left > RAY_PAYS_S:
            yield from pack_on_ray(plan, store, units[done:], cpus)
            return


def pack_on_ray(
    plan: Plan, store: Store, units: list[Unit], cpus_per_unit: float = 1.0
) -> Iterator[UnitRecord]:
    """Pack units on the Ray cluster, as many at a time as it has CPUs; yields them as they end.

    A unit whose worker dies, or whose store does not answer, is packed again.

    Args:
        plan: What the units belong to.
        store: Where to write.
        units: What to pack.
        cpus_per_unit: CPUs reserved for each unit; one thread works.

    Raises:
        DataError: If the store refuses.
        UserError: If a unit's worker is killed each time.
    """
    options: dict[str, Any] = {
        "num_cpus": cpus_per_unit,
        "max_retries": _MAX_RETRIES,
        "retry_exceptions": [StoreUnavailableError],
    }
    remote: Any = ray.remote(**options)(_pack_one)
    waiting = deque(units)
    running: dict[Any, Unit] = {}
    with ray_session(cpus_per_unit):
        try:
            while waiting or running:
                # Twice as many as can run, so that no worker waits for this loop.
                room = 2 * _num_slots(cpus_per_unit) - len(running)
                for _ in range(min(room, len(waiting))):
                    unit = waiting.popleft()
                    running[remote.remote(unit, store, plan.settings, plan.digest)] = unit
                (done,), _ = ray.wait([*running], num_returns=1)
                yield _result(done, running.pop(done))
        finally:
            for task in running:
                ray.cancel(task)


def _num_slots(cpus_per_unit: float) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1.0) // cpus_per_unit))


def _result(task: Any, unit: Unit) -> UnitRecord:
    """What became of a unit.

    Raises:
        UserError: If its worker was killed each time.
    """
    try:
        record: UnitRecord = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        # Its cause is the error a person can act on.
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise UserError(
            f"the process that packed {unit.items[0].source} to {unit.items[-1].source} was killed "
            f"each time ({str(error).splitlines()[0]}); if memory is short, raise "
            "cluster.cpus_per_worker, so that fewer units are packed at once, or take out of the "
            "source what it cannot bear, and run the same command again"
        ) from error
    return record


def _pack_one(unit: Unit, store: Store, settings: PackSettings, plan: str) -> UnitRecord:
    """Pack a unit in a worker, on one thread: the cores are shared out among units."""
    for name, limit in _THREADS.items():
        if module := sys.modules.get(name):
            limit(module)
    return pack_unit(unit, store, settings, plan)


_THREADS: dict[str, Callable[[Any], None]] = {
    "cv2": lambda module: module.setNumThreads(1),
    "torch": lambda module: module.set_num_threads(1),
}
