"""The batch job: latent search over every image of a split or folder, in units of work.

A job that was killed is continued by running it again: it skips finished units (see
`cluster.inspection_files`) and repeats the others whole.
"""

import json
import sys
import time
from collections import defaultdict, deque
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from tqdm import tqdm

from cluster import __version__
from cluster.calibration import (
    calibration_for,
    choosing,
    describe,
    fit_calibration,
    fit_score,
    fused_scores,
)
from cluster.coco import write_regions
from cluster.config import Config
from cluster.errors import UserError
from cluster.inputs import Inputs, Inspected, find_inputs, first_units
from cluster.inspect_plan import actionable, fitting_actors, num_fitting, print_plan
from cluster.inspection_claim import claim, kept_units
from cluster.inspection_files import (
    MANIFEST,
    METRICS,
    REPORT,
    drop_summary,
    finished_units,
    inspection_store,
    read_damaged,
    read_failed,
    read_manifest,
    read_scores,
    update_rows,
)
from cluster.inspector import UNITS_AT_ONCE, Inspector, Job, UnitSummary
from cluster.model_store import Calibration, ModelCard, load_card, load_model, save_card
from cluster.progress import progress_bar
from cluster.ray_session import ray_session
from data.patience import PatientStore
from data.store import Store

SCHEMA_VERSION = 1
_STILL_S = 30.0
"""Where no unit is done for so long, it is looked whether nodes are missing."""
_UNAVAILABLE_S = 1.0
"""Pause after an actor could not be reached."""
_MISSED_S = 180.0
"""So long after its node is gone, at most, an actor is out of reach until Ray has noticed."""


def inspect_dataset(config: Config) -> int:
    """Inspect one split with the trained model of a run; the command `inspect`.

    Inspecting the validation split calibrates the model, with the search settings given.
    """
    calibrates = config.inspect.split == "validation" and not config.inspect.source
    if calibrates:
        config = _whole_validation(config)
    if config.inspect.dry_run:
        job, card, inspected = _find(config, None if calibrates else calibration_for(config))
        print_plan(config, inspected, kept_units(job, card, inspected))
        return 0
    if calibrates:
        calibration = calibrate(config)
    else:
        calibration = calibration_for(config)
        inspect_split(config, calibration)
    manifest = read_manifest(inspection_store(config))
    print(f"{manifest['images']} images scored, {manifest['failed']} inputs failed")
    if ignored := manifest["files_ignored"]:
        print(f"{ignored} files are hidden or no images by their names: not looked at")
    if manifest["units_left"]:
        print(f"{manifest['units_left']} units are left; run again without inspect.limit")
    print(f"decision: {describe(calibration)}")
    print(f"inspection: {inspection_store(config).uri}")
    return 0


def calibrate(config: Config) -> Calibration:
    """Score the validation split and fit the decision on it.

    Returns:
        The calibration, which is now part of the model.

    Raises:
        UserError: If the validation split has too few images for inspect.threshold.
    """
    config = _whole_validation(config)
    inspect_split(config, None)
    out = inspection_store(config)
    # They may tell of another calibration.
    for path in (METRICS, REPORT):
        out.delete(path)
    table = read_scores(out)
    chooses = choosing(config, table)
    fusion = fit_score(config, table, chooses)
    if fusion:
        # In the files as well: an audit, say, compares with them.
        update_rows(out, lambda rows: [{"score": s} for s in fused_scores(fusion, rows)])
        table = read_scores(out)
    calibration = fit_calibration(config, table[~chooses], fusion)
    run = Store(config.run.dir)
    save_card(run, load_card(run).model_copy(update={"calibration": calibration}))
    return calibration


def _whole_validation(config: Config) -> Config:
    """Always in the run directory: the scores belong to the model."""
    whole = {"split": "validation", "dir": "", "source": "", "limit": 0}
    return config.model_copy(update={"inspect": config.inspect.model_copy(update=whole)})


def inspect_split(
    config: Config, calibration: Calibration | None, *, tiles_apart: bool = False
) -> dict[str, Any]:
    """Score all inputs, or as many as asked for, that are not finished yet.

    Args:
        config: Configuration.
        calibration: What turns scores into decisions; None leaves them open.
        tiles_apart: Whether tiles count as images of their own.

    Returns:
        The manifest.

    Raises:
        UserError: If model and data set do not go together, or the directory holds another job.
    """
    job, card, inspected = _find(config, calibration, tiles_apart=tiles_apart)
    claim(job, card, inspected)
    done = set(finished_units(job.out))
    wanted = first_units(inspected.units, config.inspect.limit)
    waiting = [unit for unit in wanted if unit.name not in done]
    started_s = time.monotonic()
    if waiting:
        # Until all of them are done, what was told of fewer images is nothing finished.
        drop_summary(job.out)
    summaries = run_units(job, waiting, config) if waiting else []
    return _write_manifest(job, card, inspected, summaries, time.monotonic() - started_s)


def _find(
    config: Config, calibration: Calibration | None, *, tiles_apart: bool = False
) -> tuple[Job, ModelCard, Inspected]:
    """What is to be done, with which model, and on what; see `inspect_split`."""
    # Whole, so that a damaged model is told here and not by actors that die of it.
    card = load_model(Store(config.run.dir)).card
    _check_encoder(config, card)
    inspected = find_inputs(config, card)
    job = Job(
        run=PatientStore(config.run.dir, config.data.retry_s),
        out=inspection_store(config),
        search=config.search,
        seed=config.run.seed,
        calibration=calibration,
        num_maps=config.inspect.num_maps,
        cluster=config.cluster,
        tile_overlap=inspected.tile_overlap,
        # Training has some tiles of an image and not others.
        tiles_apart=tiles_apart or inspected.split in ("train-normal", "train-abnormal"),
    )
    return job, card, inspected


def run_units(job: Job, units: list[Inputs], config: Config) -> list[UnitSummary]:
    """Spread units over a pool of actors; a dead actor is restarted and its unit repeated.

    Raises:
        UserError: If the cluster has no room for an actor, or a unit kills its actor every time.
    """
    cluster = config.cluster
    num_inputs = sum(unit.num_inputs for unit in units)
    with ray_session(min(cluster.num_actors, len(units)) * cluster.cpus_per_worker):
        actors = _start_actors(job, min(cluster.num_actors, len(units)), config)
        idle = actors * UNITS_AT_ONCE
        waiting, summaries, told = deque(units), list[UnitSummary](), set[int]()
        running: dict[Any, tuple[Any, Inputs]] = {}
        failed_s: dict[str, list[float]] = defaultdict(list)
        with progress_bar("inspect", total=num_inputs, unit="image") as bar:
            while waiting or running:
                while idle and waiting:
                    actor, unit = idle.pop(), waiting.popleft()
                    running[actor.inspect.remote(unit)] = (actor, unit)
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_STILL_S)
                if not ready:
                    _tell_of_missing_nodes(len(actors), config, bar, told)
                    continue
                actor, unit = running.pop(ready[0])
                beside = [other for mate, other in running.values() if mate is actor]
                try:
                    summaries.append(_result(ready[0], [unit, *beside]))
                except ActorUnavailableError as error:
                    # Its node may be gone; the actor is restarted once Ray has noticed.
                    times_s = failed_s[unit.source]
                    times_s.append(time.monotonic())
                    if is_hopeless(times_s, cluster.max_failures):
                        raise _killed([unit, *beside], error) from error
                    if len(times_s) == 1:
                        bar.write(
                            f"the process that inspects {unit.source} does not answer "
                            f"({str(error).splitlines()[0]}); the unit is given out again",
                            file=sys.stderr,
                        )
                    waiting.append(unit)
                    idle.insert(0, actor)
                    time.sleep(_UNAVAILABLE_S)
                    continue
                bar.update(unit.num_inputs)
                idle.append(actor)
                if not waiting and all(actor is not other for other, _ in running.values()):
                    # Its room may be what an actor waits for whose node is gone.
                    ray.kill(actor)
                    idle = [other for other in idle if other is not actor]
    return summaries


def _tell_of_missing_nodes(
    num_actors: int, config: Config, bar: "tqdm[Any]", told: set[int]
) -> None:
    """Say once of each number of actors, fewer than there are, that the nodes have room for it."""
    room = num_fitting(config)
    if room < num_actors and room not in told:
        told.add(room)
        bar.write(
            f"nodes are missing: {num_actors} actors inspect, the cluster has room for {room}; the "
            "units of the others go on when these are done, or on nodes that are added",
            file=sys.stderr,
        )


def _start_actors(job: Job, wanted: int, config: Config) -> list[Any]:
    """As many actors as fit into the cluster; one that waits for room would hold its unit."""
    cluster, fitting = config.cluster, fitting_actors(config)
    actor: Any = ray.remote(
        num_cpus=cluster.cpus_per_worker,
        num_gpus=cluster.gpus_per_worker,
        # Of an actor's whole life; a unit is given up by its own failures.
        max_restarts=-1 if cluster.max_failures else 0,
        # With none, Ray would refuse units while an actor is restarted; so they wait.
        max_task_retries=1 if cluster.max_failures else 0,
    )(Inspector)
    at_once = actor.options(max_concurrency=UNITS_AT_ONCE)
    return [at_once.remote(job) for _ in range(min(wanted, fitting))]


def is_hopeless(times_s: list[float], max_failures: int) -> bool:
    """Whether a unit failed too often at these times, and not only since its node is gone."""
    return 0 <= max_failures < len(times_s) and times_s[-1] - times_s[0] > _MISSED_S


def _killed(units: list[Inputs], error: Exception) -> UserError:
    return UserError(
        f"the process that inspected {' and '.join(unit.source for unit in units)} was killed "
        f"each time ({str(error).splitlines()[0]}); look for a lack of memory, lower "
        "search.batch, or take out of what is inspected what it cannot bear"
    )


def _result(ready: Any, units: list[Inputs]) -> UnitSummary:
    """What became of the first of the units that its actor was given.

    Raises:
        UserError: If the actor was killed, by any of them.
        ActorUnavailableError: If it cannot be reached, and may not be dead.
    """
    try:
        summary: UnitSummary = ray.get(ready)
    except ActorUnavailableError:
        raise
    except RayActorError as error:
        if error.actor_init_failed:
            raise
        raise _killed(units, error) from error
    except RayTaskError as error:
        raise actionable(error) from error
    return summary


def _write_manifest(
    job: Job,
    card: ModelCard,
    inspected: Inspected,
    summaries: list[UnitSummary],
    elapsed_s: float,
) -> dict[str, Any]:
    finished = set(finished_units(job.out))
    done = [unit for unit in inspected.units if unit.name in finished]
    if foreign := finished - {unit.name for unit in done}:
        raise UserError(
            f"{job.out.uri} holds scores of {min(foreign)}, which is not in {inspected.uri}; "
            "choose another inspect.dir, or delete the folder to begin anew"
        )
    if job.out.exists(MANIFEST):
        manifest = read_manifest(job.out)
        if manifest["units"] == len(done):
            return manifest
    table, num_failed = read_scores(job.out, ["tiles"]), len(read_failed(job.out))
    num_images = len(table)
    expected = sum(unit.num_inputs for unit in done)
    # Inputs of a data set are its samples: the row of an image accounts for each of its tiles.
    accounted = (int(table["tiles"].sum()) if inspected.split else num_images) + num_failed
    if accounted < expected:
        raise UserError(
            f"{job.out.uri}: only {accounted} of {expected} inputs are in scores/ or failed/, the "
            "others were deleted; delete the folder to begin anew, or choose another inspect.dir"
        )
    drop_summary(job.out)
    if job.calibration:
        write_regions(job.out)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        "run_dir": job.run.uri,
        "data_uri": inspected.uri,
        "split": inspected.split,
        "resolution": card.architecture["resolution"],
        "channels": card.architecture["channels"],
        "units": len(done),
        "units_left": len(inspected.units) - len(done),
        "files_ignored": len(inspected.ignored),
        "images": num_images,
        "failed": num_failed,
        "damaged_shards": read_damaged(job.out),
        # Speed of the call that finished the job: units finished by an earlier one do not count.
        "seconds": round(elapsed_s, 3),
        "images_per_s": round(sum(s.num_images for s in summaries) / elapsed_s, 3),
        "search": job.search.model_dump(),
        "calibration": job.calibration.model_dump() if job.calibration else None,
        "decision": describe(job.calibration) if job.calibration else None,
    }
    job.out.write_bytes(MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _check_encoder(config: Config, card: ModelCard) -> None:
    if config.search.encoder and card.encoder_sha256 is None:
        raise UserError(
            f"search.encoder=True, but the model in {config.run.dir} has no encoder; run "
            "`python -m cluster train` with this run.dir and encoder.kimg above 0, or set it False"
        )
