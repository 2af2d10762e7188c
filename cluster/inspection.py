"""The batch job: latent search over every image of a split, one shard a unit of work.

A job that was killed is continued by running it again: it skips finished units (see
`cluster.inspection_files`) and repeats the others whole.
"""

import json
import time
from typing import Any

import numpy as np
import pandas as pd
import ray
from ray.exceptions import RayTaskError
from ray.util import ActorPool
from sklearn.metrics import precision_recall_curve

from cluster import __version__
from cluster.config import Config
from cluster.errors import UserError
from cluster.inspection_files import (
    CLAIM,
    MANIFEST,
    finished_units,
    inspection_store,
    read_failed,
    read_scores,
    unit_name,
)
from cluster.inspector import Inspector, Job, UnitSummary
from cluster.model_store import Calibration, ModelCard, load_card, save_card
from cluster.progress import progress_bar
from cluster.ray_session import ray_session
from data.dataset import DatasetIndex, ShardInfo, load_index
from data.errors import DataError
from data.store import Store
from gan.scores import conformal_threshold

SCHEMA_VERSION = 1


def inspect_dataset(config: Config) -> int:
    """Inspect one split with the trained model of a run; the command `inspect`.

    Inspecting the validation split calibrates the model, with the search settings given.
    """
    if config.inspect.split == "validation":
        calibrate(config)
    else:
        inspect_split(config, calibration_for(config))
    print(f"inspection: {inspection_store(config).uri}")
    return 0


def calibrate(config: Config) -> Calibration:
    """Score the validation split and fit the decision on it.

    Returns:
        The calibration, which is now part of the model.

    Raises:
        UserError: If the validation split has too few normal images.
    """
    inspect = config.inspect.model_copy(update={"split": "validation"})
    config = config.model_copy(update={"inspect": inspect})
    inspect_split(config, None)
    calibration = fit_calibration(config, read_scores(inspection_store(config)))
    run = Store(config.run.dir)
    save_card(run, load_card(run).model_copy(update={"calibration": calibration}))
    return calibration


def fit_calibration(config: Config, table: pd.DataFrame) -> Calibration:
    """Fit threshold and map scale on scored validation images.

    Args:
        config: Configuration the images were scored with.
        table: Scores of the validation split.

    Raises:
        UserError: If there are too few normal images for the false-positive rate.
    """
    rate = config.inspect.false_positive_rate
    normal = table[table["label"] == "normal"]
    normal_scores = sorted(normal["score"])
    try:
        threshold = conformal_threshold(normal_scores, rate)
    except ValueError as error:
        raise UserError(f"cannot calibrate on {config.data.uri}: {error}") from None
    return Calibration(
        search=config.search,
        seed=config.run.seed,
        normal_scores=tuple(normal_scores),
        map_scale=2.0 * float(np.quantile(normal["peak"], 1.0 - rate)),
        false_positive_rate=rate,
        threshold=threshold,
        f1_threshold=_best_f1_threshold(table),
    )


def calibration_for(config: Config) -> Calibration:
    """The model's calibration, if it was fitted with the settings of this inspection.

    Raises:
        UserError: If it was not.
    """
    calibration = load_card(Store(config.run.dir)).calibration
    again = "calibrate with `python -m cluster inspect --inspect.split validation` first"
    if calibration is None:
        raise UserError(f"the model in {config.run.dir} is not calibrated; {again}")
    wanted = config.search.model_dump() | {"seed": config.run.seed}
    fitted = calibration.search.model_dump() | {"seed": calibration.seed}
    for field, value in wanted.items():
        if value != fitted[field]:
            raise UserError(
                f"search.{field}={value!r} is not the {fitted[field]!r} the model in "
                f"{config.run.dir} was calibrated with; use that value, or {again}"
            )
    return calibration


def inspect_split(config: Config, calibration: Calibration | None) -> dict[str, Any]:
    """Score all shards of `inspect.split` that are not finished yet.

    Args:
        config: Configuration.
        calibration: What turns scores into decisions; None leaves them open.

    Returns:
        The manifest.

    Raises:
        UserError: If model and data set do not go together, or the directory holds another job.
    """
    index = load_index(Store(config.data.uri))
    card = load_card(Store(config.run.dir))
    _check_dataset(config, card, index)
    job = Job(
        run=Store(config.run.dir),
        dataset=Store(config.data.uri),
        out=inspection_store(config),
        search=config.search,
        seed=config.run.seed,
        calibration=calibration,
        num_maps=config.inspect.num_maps,
        num_threads=max(1, int(config.cluster.cpus_per_worker)),
    )
    _claim(job, card)
    shards = index.shards_of(config.inspect.split)
    done = set(finished_units(job.out))
    waiting = [shard for shard in shards if unit_name(shard) not in done]
    started_s = time.monotonic()
    summaries = run_units(job, waiting, config) if waiting else []
    return _write_manifest(job, card, shards, summaries, time.monotonic() - started_s)


def run_units(job: Job, shards: list[ShardInfo], config: Config) -> list[UnitSummary]:
    """Spread shards over a pool of actors; a dead actor is restarted and its shard repeated."""
    cluster = config.cluster
    num_actors = min(cluster.num_actors, len(shards))
    with ray_session(num_actors * cluster.cpus_per_worker):
        actor = ray.remote(
            num_cpus=cluster.cpus_per_worker,
            num_gpus=cluster.gpus_per_worker,
            max_restarts=-1,
            max_task_retries=-1,
        )(Inspector)
        pool = ActorPool([actor.remote(job) for _ in range(num_actors)])
        results = pool.map_unordered(lambda worker, shard: worker.inspect.remote(shard), shards)
        summaries = []
        num_images = sum(shard.samples for shard in shards)
        with progress_bar("inspect", total=num_images, unit="image") as bar:
            try:
                for summary in results:
                    summaries.append(summary)
                    bar.update(summary.num_images + summary.num_failed)
            except RayTaskError as error:
                raise _cause(error) from error
    return summaries


def _write_manifest(
    job: Job,
    card: ModelCard,
    shards: tuple[ShardInfo, ...],
    summaries: list[UnitSummary],
    elapsed_s: float,
) -> dict[str, Any]:
    num_images, num_failed = len(read_scores(job.out)), len(read_failed(job.out))
    expected = sum(shard.samples for shard in shards)
    assert num_images + num_failed >= expected, "an input is neither in scores nor in failed"
    searched = sum(summary.num_images for summary in summaries)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        "run_dir": job.run.uri,
        "data_uri": job.dataset.uri,
        "split": shards[0].split,
        "resolution": card.architecture["resolution"],
        "channels": card.architecture["channels"],
        "units": len(shards),
        "images": num_images,
        "failed": num_failed,
        "damaged_shards": [s.unit for s in summaries if not s.intact],
        # Speed of this call alone: units finished by an earlier one do not count.
        "seconds": round(elapsed_s, 3),
        "images_per_s": round(searched / elapsed_s, 3) if searched else None,
        "search": job.search.model_dump(),
        "calibration": job.calibration.model_dump() if job.calibration else None,
    }
    job.out.write_bytes(MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _check_dataset(config: Config, card: ModelCard, index: DatasetIndex) -> None:
    for name in ("resolution", "channels"):
        packed, wanted = getattr(index, name), card.architecture[name]
        if packed != wanted:
            raise UserError(
                f"{config.data.uri} has {name}={packed}, the model in {config.run.dir} takes "
                f"{wanted}; pack the images as the model needs them"
            )
    if not index.shards_of(config.inspect.split):
        raise UserError(f"{config.data.uri} has no images in split {config.inspect.split}")


def _claim(job: Job, card: ModelCard) -> None:
    """Let a directory hold one inspection only, so that scores of two are never mixed."""
    identity = {
        "data_uri": job.dataset.uri,
        "weights_sha256": card.weights_sha256,
        "search": job.search.model_dump(mode="json"),
        "seed": job.seed,
        "calibration": job.calibration.model_dump(mode="json") if job.calibration else None,
    }
    if not job.out.exists(CLAIM):
        job.out.write_bytes(CLAIM, json.dumps(identity, indent=1).encode())
        return
    old = json.loads(job.out.read_bytes(CLAIM))
    differing = [name for name, value in identity.items() if value != old.get(name)]
    if differing:
        raise UserError(
            f"{job.out.uri} holds an inspection with another {' and '.join(differing)}; "
            "choose another inspect.dir or remove that folder"
        )


def _best_f1_threshold(table: pd.DataFrame) -> float | None:
    known = table[table["label"] != "unlabelled"]
    truth = known["label"] == "abnormal"
    if not truth.any():
        return None
    precision, recall, thresholds = precision_recall_curve(truth, known["score"])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.argmax(f1[:-1])])


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, UserError | DataError) else error
