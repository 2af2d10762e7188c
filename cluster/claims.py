"""What can be known to go wrong before a job costs anything."""

import os
from pathlib import Path

from cluster.config import Config
from cluster.errors import UserError
from data.dataset import INDEX_NAME, DatasetIndex
from data.sample import Split
from data.store import Store
from gan.thresholds import NEED_ABNORMAL, NEED_NORMAL, needed_images

# Sections that decide what a run computes; changing one of them makes another run.
IDENTITY: tuple[str, ...] = (
    "run",
    "data",
    "networks",
    "objective",
    "schedule",
    "optimizer",
    "augment",
)
_ALSO_IDENTITY = ("cluster.precision",)
_NOT_IDENTITY = (
    "run.dir",
    "data.max_bad_fraction",
    "data.loader_threads",
    "data.cache_dir",
    "data.cache_gib",
    "data.retry_s",
    # Where they lie; which they are is in every checkpoint, by their digest.
    "networks.feature_weights",
)


def check_no_dry_run(config: Config, command: str) -> None:
    """Refuse to begin in earnest what a person wants planned only."""
    if config.cluster.dry_run:
        raise UserError(
            f"cluster.dry_run=True is for `train`, `{command}` has no plan to print; run "
            "`python -m cluster train --dry-run` with the same settings, or leave it out"
        )


def check_places(config: Config) -> None:
    """Refuse places that vanish with a submitted job, which Ray runs in a copy of the tree."""
    here = Path.cwd().as_posix()
    if "/working_dir_files/" not in here:
        return
    for field, place in (("run.dir", config.run.dir), ("data.uri", config.data.uri)):
        if place.startswith(here):
            raise UserError(
                f"{field}={place} lies in the temporary copy of a submitted job; give an absolute "
                "path that all nodes share, or s3://bucket/prefix"
            )


def check_apart(field: str, place: str, source_field: str, source: str) -> None:
    """Refuse to write among the images that are read.

    Raises:
        UserError: If `place` is or lies in `source`.
    """
    places = [Store(source).uri, Store(place).uri]
    if Store(place).is_local:
        places = [os.path.realpath(each) for each in places]
    if f"{places[1]}/".startswith(f"{places[0]}/"):
        raise UserError(
            f"{field}={Store(place).uri} lies in {source_field}={source}; choose a place beside it"
        )


def check_dataset(config: Config, index: DatasetIndex) -> None:
    """Refuse a data set that cannot be trained on or calibrated with."""
    uri, resolution = config.data.uri, config.networks.resolution
    if resolution != index.resolution:
        raise UserError(
            f"networks.resolution={resolution} is not the {index.resolution} that {uri} is packed "
            f"at; pack again or set networks.resolution={index.resolution}"
        )
    if config.objective.alpha > 0 and not index.num_samples("train-abnormal"):
        raise UserError(
            f"objective.alpha={config.objective.alpha} needs known abnormal images, but {uri} "
            "has none in train-abnormal; set objective.alpha=0 or add some"
        )
    splits: tuple[Split, ...] = ("train-normal", "train-abnormal")
    if not index.num_samples("train-normal"):
        raise UserError(
            f"{uri} has no image in train-normal; pack again and say what is normal "
            "(pack.normal_kinds, or the labels and splits of a table)"
        )
    for split in splits if config.objective.alpha > 0 else splits[:1]:
        if index.num_samples(split) < config.cluster.num_workers:
            raise UserError(
                f"{uri} has {index.num_samples(split)} images in {split}, fewer than "
                f"cluster.num_workers={config.cluster.num_workers}; add images or lower it"
            )
    _check_validation(config, index)


def _check_validation(config: Config, index: DatasetIndex) -> None:
    """Refuse what would fail only after training, when thresholds are fitted."""
    uri, inspect = config.data.uri, config.inspect
    # Calibration puts tiles together; older indexes do not tell of how many images they are.
    counts = index.labels if index.images is None else index.images
    labels = counts.get("validation", {})
    num_normal, num_abnormal = labels.get("normal", 0), labels.get("abnormal", 0)
    rates = []
    if inspect.threshold in NEED_NORMAL:
        rates.append(("false_positive_rate", inspect.false_positive_rate, "normal", num_normal))
    if inspect.threshold == "reject_band" and inspect.miss_rate:
        rates.append(("miss_rate", inspect.miss_rate, "abnormal", num_abnormal))
    for field, rate, label, num in rates:
        if num < needed_images(rate):
            raise UserError(
                f"inspect.{field}={rate} needs {needed_images(rate)} {label} validation images, "
                f"{uri} has {num}; raise the rate or add images"
            )
    if inspect.threshold in NEED_ABNORMAL and not num_abnormal:
        raise UserError(
            f"inspect.threshold={inspect.threshold} needs known abnormal validation images, {uri} "
            "has none; add some, or set it to false_positive_rate, which works without"
        )
    if not num_normal:
        raise UserError(f"{uri} has no normal validation images to calibrate on; add some")
    # Tiles, too, judge a model in training one by one.
    wanted, held = config.tracking.validation_images, index.labels.get("validation", {})
    if wanted and not (held.get("normal") and held.get("abnormal")):
        raise UserError(
            f"tracking.validation_images={wanted} needs normal and abnormal validation images to "
            f"tell apart, {uri} has {held.get('normal', 0)} and {held.get('abnormal', 0)}; add "
            "some, or train with tracking.validation_images=0 (`tune` needs them)"
        )


def check_shards(dataset: Store, index: DatasetIndex) -> None:
    """Refuse a data set with missing shards."""
    missing = {shard.path for shard in index.shards} - set(dataset.list("", ".tar"))
    if missing:
        raise UserError(
            f"{len(missing)} of {len(index.shards)} shards are missing in {dataset.uri}, such as "
            f"{min(missing)}; pack the data again"
        )


def check_same_run(config: Config, old: Config, *, sections: tuple[str, ...] = IDENTITY) -> None:
    """Refuse settings that would make a run directory's run another one.

    Args:
        config: Settings now.
        old: Settings the directory was begun with.
        sections: Sections that decide what is computed.
    """
    now, then = config.model_dump(), old.model_dump()
    fields = [f"{section}.{field}" for section in sections for field in now[section]]
    for dotted in [*fields, *_ALSO_IDENTITY]:
        section, _, field = dotted.partition(".")
        if dotted not in _NOT_IDENTITY:
            check_same(config, dotted, now[section][field], then[section][field])


def check_same(config: Config, field: str, mine: object, theirs: object) -> None:
    """Refuse a value of a setting that is not the one the run directory was begun with."""
    if mine != theirs:
        raise UserError(
            f"run.dir={config.run.dir} holds a run with {field}={theirs!r}, not {mine!r}; "
            "choose another run.dir or the old value"
        )


def claim_dataset(config: Config, run: Store) -> None:
    """Record the data set's index in a directory; refuse another data set than the one there.

    Args:
        config: Settings now.
        run: Directory of the run or study.
    """
    content = Store(config.data.uri).read_bytes(INDEX_NAME)
    if run.exists(INDEX_NAME) and run.read_bytes(INDEX_NAME) != content:
        raise UserError(
            f"{config.data.uri} was packed anew since run.dir={config.run.dir} began; choose "
            "another run.dir"
        )
    run.write_bytes(INDEX_NAME, content)
