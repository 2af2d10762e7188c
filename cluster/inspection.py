"""The batch job: latent search over every image of a split, one shard a unit of work.

A job that was killed is continued by running it again: it skips finished units (see
`cluster.inspection_files`) and repeats the others whole.
"""

import hashlib
import json
import time
from collections import deque
from typing import Any

import numpy as np
import pandas as pd
import ray
from ray.exceptions import RayActorError, RayTaskError
from sklearn.metrics import precision_recall_curve

from cluster import __version__
from cluster.config import Config
from cluster.errors import UserError
from cluster.inspection_files import (
    CLAIM,
    MANIFEST,
    finished_units,
    inspection_store,
    read_damaged,
    read_failed,
    read_manifest,
    read_scores,
    unit_name,
)
from cluster.inspector import Inspector, Job, UnitSummary
from cluster.model_store import Calibration, ModelCard, load_card, load_model, save_card
from cluster.progress import progress_bar
from cluster.ray_session import ray_session
from data.dataset import INDEX_NAME, DatasetIndex, ShardInfo, load_index
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
        config = config.model_copy(
            update={"inspect": config.inspect.model_copy(update={"dir": ""})}
        )
    else:
        inspect_split(config, calibration_for(config))
    manifest = read_manifest(inspection_store(config))
    print(f"{manifest['images']} images scored, {manifest['failed']} inputs failed")
    print(f"inspection: {inspection_store(config).uri}")
    return 0


def calibrate(config: Config) -> Calibration:
    """Score the validation split and fit the decision on it.

    Returns:
        The calibration, which is now part of the model.

    Raises:
        UserError: If the validation split has too few normal images.
    """
    # Always in the run directory: the scores belong to the model.
    inspect = config.inspect.model_copy(update={"split": "validation", "dir": ""})
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
    again = (
        "calibrate first, with the same settings and `python -m cluster inspect "
        f"--run.dir {config.run.dir} --inspect.split validation`"
    )
    if calibration is None:
        raise UserError(f"the model in {config.run.dir} is not calibrated; {again}")
    pairs = [
        (f"search.{field}", value, getattr(calibration.search, field))
        for field, value in config.search.model_dump().items()
    ]
    pairs.append(("run.seed", config.run.seed, calibration.seed))
    rate = config.inspect.false_positive_rate
    pairs.append(("inspect.false_positive_rate", rate, calibration.false_positive_rate))
    for field, value, fitted in pairs:
        if value != fitted:
            raise UserError(
                f"{field}={value!r} is not the {fitted!r} the model in {config.run.dir} was "
                f"calibrated with; use that value, or {again}"
            )
    return calibration


def inspect_split(
    config: Config, calibration: Calibration | None, *, tiles_apart: bool = False
) -> dict[str, Any]:
    """Score all shards of `inspect.split` that are not finished yet.

    Args:
        config: Configuration.
        calibration: What turns scores into decisions; None leaves them open.
        tiles_apart: Whether tiles count as images of their own.

    Returns:
        The manifest.

    Raises:
        UserError: If model and data set do not go together, or the directory holds another job.
    """
    index = load_index(Store(config.data.uri))
    # Whole, so that a damaged model is told here and not by actors that die of it.
    card = load_model(Store(config.run.dir)).card
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
        tiles_apart=tiles_apart,
    )
    _claim(job, card)
    shards = index.shards_of(config.inspect.split)
    done = set(finished_units(job.out))
    waiting = [shard for shard in shards if unit_name(shard) not in done]
    started_s = time.monotonic()
    summaries = run_units(job, waiting, config) if waiting else []
    return _write_manifest(job, card, shards, summaries, time.monotonic() - started_s)


def run_units(job: Job, shards: list[ShardInfo], config: Config) -> list[UnitSummary]:
    """Spread shards over a pool of actors; a dead actor is restarted and its shard repeated.

    Raises:
        UserError: If the cluster has no room for an actor, or a shard kills its actor every time.
    """
    cluster = config.cluster
    num_images = sum(shard.samples for shard in shards)
    with ray_session(min(cluster.num_actors, len(shards)) * cluster.cpus_per_worker):
        idle = _start_actors(job, min(cluster.num_actors, len(shards)), config)
        waiting, summaries = deque(shards), list[UnitSummary]()
        running: dict[Any, tuple[Any, ShardInfo]] = {}
        with progress_bar("inspect", total=num_images, unit="image") as bar:
            while waiting or running:
                while idle and waiting:
                    actor, shard = idle.pop(), waiting.popleft()
                    running[actor.inspect.remote(shard)] = (actor, shard)
                (ready, *_), _ = ray.wait(list(running), num_returns=1)
                actor, shard = running.pop(ready)
                summary = _result(ready, shard)
                summaries.append(summary)
                bar.update(shard.samples)
                idle.append(actor)
    return summaries


def _start_actors(job: Job, wanted: int, config: Config) -> list[Any]:
    """As many actors as fit into the cluster; one that waits for room would hold its shard."""
    cluster, have = config.cluster, ray.cluster_resources()
    fitting = int(have.get("CPU", 0.0) // cluster.cpus_per_worker)
    if cluster.gpus_per_worker:
        fitting = min(fitting, int(have.get("GPU", 0.0) // cluster.gpus_per_worker))
    if fitting < 1:
        raise UserError(
            f"an inspection actor needs {cluster.cpus_per_worker:g} CPU and "
            f"{cluster.gpus_per_worker:g} GPU, the cluster has {have.get('CPU', 0.0):g} and "
            f"{have.get('GPU', 0.0):g}; lower cluster.cpus_per_worker or cluster.gpus_per_worker"
        )
    actor: Any = ray.remote(
        num_cpus=cluster.cpus_per_worker,
        num_gpus=cluster.gpus_per_worker,
        max_restarts=cluster.max_failures,
        max_task_retries=cluster.max_failures,
    )(Inspector)
    return [actor.remote(job) for _ in range(min(wanted, fitting))]


def _result(ready: Any, shard: ShardInfo) -> UnitSummary:
    try:
        summary: UnitSummary = ray.get(ready)
    except RayActorError as error:
        raise UserError(
            f"{shard.path} killed the process that inspected it, each time "
            f"({str(error).splitlines()[0]}); look for a lack of memory, lower search.batch, or "
            "take the shard out of the data set"
        ) from error
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError | DataError) else error) from error
    return summary


def _write_manifest(
    job: Job,
    card: ModelCard,
    shards: tuple[ShardInfo, ...],
    summaries: list[UnitSummary],
    elapsed_s: float,
) -> dict[str, Any]:
    finished = set(finished_units(job.out))
    assert finished == {unit_name(shard) for shard in shards}, "units are missing or foreign"
    table, num_failed = read_scores(job.out), len(read_failed(job.out))
    num_images = len(table)
    expected = sum(shard.samples for shard in shards)
    # A row of an image cut into tiles accounts for each of them.
    accounted = int(table["tiles"].sum()) + num_failed
    assert accounted >= expected, "an input is neither in scores nor in failed"
    if not summaries and job.out.exists(MANIFEST):
        return read_manifest(job.out)
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
        "damaged_shards": read_damaged(job.out),
        # Speed of the call that finished the job: units finished by an earlier one do not count.
        "seconds": round(elapsed_s, 3),
        "images_per_s": round(sum(s.num_images for s in summaries) / elapsed_s, 3),
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
    """Let a directory hold one inspection only, so that scores of two are never mixed.

    Scores of the validation split belong to the calibration being fitted: those of an older one are
    removed.
    """
    identity = {
        "data_uri": job.dataset.uri,
        "dataset_sha256": hashlib.sha256(job.dataset.read_bytes(INDEX_NAME)).hexdigest(),
        "weights_sha256": card.weights_sha256,
        "search": job.search.model_dump(mode="json"),
        "seed": job.seed,
        "calibration": job.calibration.model_dump(mode="json") if job.calibration else None,
    }
    old = json.loads(job.out.read_bytes(CLAIM)) if job.out.exists(CLAIM) else identity
    differing = [name for name, value in identity.items() if value != old.get(name)]
    if differing and job.calibration:
        raise UserError(
            f"{job.out.uri} holds an inspection with another {' and '.join(differing)}; "
            "choose another inspect.dir or remove that folder"
        )
    if differing:
        for path in job.out.list():
            job.out.delete(path)
    job.out.write_bytes(CLAIM, json.dumps(identity, indent=1).encode())


def _best_f1_threshold(table: pd.DataFrame) -> float | None:
    known = table[table["label"] != "unlabelled"]
    truth = known["label"] == "abnormal"
    if not truth.any():
        return None
    precision, recall, thresholds = precision_recall_curve(truth, known["score"])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.argmax(f1[:-1])])
