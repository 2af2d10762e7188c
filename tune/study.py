"""A study: Optuna proposes, Ray Train trains, ASHA stops weak trials, validation AUROC decides.

Everything lies under <run.dir>/tune, apart from what `train` keeps in the same run directory:
best.yaml, study.yaml (the settings), study/ (Ray Tune's state) and one run directory for each trial
under trials/. `train --config best.yaml` trains into best/.
"""

import os
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs
from ray import tune as ray_tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.table import Table

from cluster import tracking
from cluster.claims import (
    IDENTITY,
    check_dataset,
    check_no_dry_run,
    check_places,
    check_same,
    check_same_run,
    check_shards,
    claim_dataset,
)
from cluster.config import Config, dump_config, load_config
from cluster.errors import UserError
from cluster.ray_session import ray_session
from cluster.train import claim_run, fit
from cluster.train_loop import schedule_of
from data.dataset import load_index
from data.store import Store
from tune.spaces import apply_point, search_space

METRIC = "validation_auroc"
_BEST_METRIC = "best_auroc"
_STUDY = "study"
_SETTINGS = "study.yaml"
_BEST = "best.yaml"
_VALIDATION_IMAGES = 128
_ENVIRONMENT = {
    # Only rank 0's checkpoints carry the metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Otherwise Tune takes Ctrl-C for the end of the study and returns what there is.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def tune(config: Config) -> int:
    """Run or continue the study in <run.dir>/tune and write its best.yaml; the command `tune`.

    Raises:
        UserError: If the directory holds another study, or no trial reported.
        DataError: If the data set cannot be read.
    """
    check_no_dry_run(config, "tune")
    config = study_config(config)
    root, metric = Store(config.run.dir), _BEST_METRIC if config.tracking.keep_best else METRIC
    claim(config)
    os.environ.update(_ENVIRONMENT)
    cpus = config.cluster.num_workers * config.cluster.cpus_per_worker
    with (
        ray_session(config.tune.max_concurrent * cpus, state_api=True),
        tracking.tracked_run(config, name="tune") as parent,
    ):
        results: list[ray_tune.Result] = []
        try:
            grid = _tuner(config, parent).fit()
            results = [grid[i] for i in range(len(grid))]
            ranked = rank(results, by=metric)
            chosen = apply_point(config, _point(ranked[0]), run_dir=root.url("best"))
            root.write_bytes(_BEST, dump_config(chosen).encode())
        finally:
            finish_trials(config, results, parent.run_id)
    _print(ranked, metric, num_trials=len(results))
    print(f"best configuration: {root.url(_BEST)}")
    return 0


def study_config(config: Config) -> Config:
    """Settings of a study: a directory of its own, one MLflow for all trials, validation on."""
    run = config.run.model_copy(update={"dir": Store(config.run.dir).url("tune")})
    track = config.tracking.model_copy(
        update={
            "validation_images": config.tracking.validation_images or _VALIDATION_IMAGES,
            "uri": tracking.tracking_uri(config),
        }
    )
    return config.model_copy(update={"run": run, "tracking": track})


def rank(results: list[ray_tune.Result], *, by: str = METRIC) -> list[ray_tune.Result]:
    """The trials that reported, by their last report: furthest first, then by AUROC.

    A trial that was stopped early was judged at a lower resolution, where numbers are not
    comparable with those at the end.

    Args:
        results: What became of the trials.
        by: The AUROC of the model that training would deliver: the last, or the best so far.

    Raises:
        UserError: If no trial reported and went without an error.
    """
    reported = [r for r in results if r.error is None and METRIC in _metrics(r)]
    if not reported:
        raise UserError(
            f"none of {len(results)} trials reported {METRIC} and did not fail; see their errors "
            "above, mend the cause and run the same command again"
        )
    return sorted(reported, key=lambda r: (_metrics(r)["images_seen"], _auroc(r, by)), reverse=True)


def trial(point: dict[str, Any], *, config: Config, parent_run_id: str | None) -> None:
    """Train one point of the search space; runs as a Ray Tune trial.

    A trial that was stopped with the study goes on from its own last checkpoint, because its run
    directory is named after its id.
    """
    trial_id = ray_tune.get_context().get_trial_id()
    run_dir = Store(config.run.dir).url(f"trials/{trial_id}")
    chosen = apply_point(config, point, run_dir=run_dir)
    claim_run(chosen)
    ref = tracking.open_run(chosen, name=trial_id, parent_run_id=parent_run_id)
    last = fit(chosen, ref, callbacks=[TuneReportCallback()])
    tracking.finish_run(chosen, "FINISHED", name=trial_id, parent_run_id=parent_run_id)
    # Resumed after its last checkpoint, a trial trains nothing, but Tune needs its result.
    ray_tune.report(last)


def _tuner(config: Config, parent: tracking.RunRef) -> ray_tune.Tuner:
    store = Store(config.run.dir)
    filesystem, root = store.filesystem()
    arrow = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
    run = ray_tune.with_parameters(trial, config=config, parent_run_id=parent.run_id)
    # The trial itself only waits for its workers, whose nodes may have room for nothing else.
    beside_head = ray_tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    trainable = ray_tune.with_resources(run, beside_head)
    # Ray can only restore a study that has saved the state of its trials once.
    if store.list(f"{_STUDY}/experiment_state-", ".json"):
        return ray_tune.Tuner.restore(
            f"{root}/{_STUDY}",
            trainable=trainable,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=arrow,
        )
    return ray_tune.Tuner(
        trainable,
        param_space=search_space(),
        tune_config=_tune_config(config),
        run_config=ray_tune.RunConfig(name=_STUDY, storage_path=root, storage_filesystem=arrow),
    )


def _tune_config(config: Config) -> ray_tune.TuneConfig:
    total = schedule_of(config)[-1].end
    grace = max(1, min(round(config.tune.grace_kimg * 1000), total))
    return ray_tune.TuneConfig(
        metric=METRIC,
        mode="max",
        search_alg=OptunaSearch(seed=config.run.seed),
        scheduler=ASHAScheduler(
            time_attr="images_seen",
            max_t=total,
            grace_period=grace,
            reduction_factor=config.tune.reduction_factor,
            # A trial that comes to its end ends itself.
            stop_last_trials=False,
        ),
        num_samples=config.tune.num_trials,
        max_concurrent_trials=config.tune.max_concurrent,
        # By default the folder's name would hold the whole configuration.
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def finish_trials(
    config: Config, results: list[ray_tune.Result], parent_run_id: str | None
) -> None:
    """End the tracked runs of all trials that did not do so themselves: ASHA stopped them, say.

    Once MLflow does not answer, the others are left to the next call.

    Args:
        config: Configuration of the study.
        results: What became of the trials; one that is missing and did not end before was cut off
            together with the study.
        parent_run_id: Tracked run of the study.
    """
    root = Store(config.run.dir)
    status = {_trial_id(r): "FAILED" if r.error else "FINISHED" for r in results}
    for path in root.list("trials/", f"/{tracking.RECORD}"):
        trial_id = path.split("/")[1]
        # The study may have been moved since.
        places = {"run.dir": root.url(f"trials/{trial_id}"), "tracking.uri": config.tracking.uri}
        trial = load_config(root.url(f"trials/{trial_id}/config.yaml"), places)
        ref = tracking.load_run(trial)
        ended = status.get(trial_id) or (ref and ref.ended) or "KILLED"
        if ref and ref.complete and ref.ended == ended:
            continue
        if not tracking.finish_run(trial, ended, name=trial_id, parent_run_id=parent_run_id):
            return


def claim(config: Config) -> None:
    """Check data set and directory of a study, then record its settings there.

    Raises:
        UserError: If the data set does not fit, or the directory holds another study.
    """
    config.cluster.check_training()
    dataset, root = Store(config.data.uri), Store(config.run.dir)
    index = load_index(dataset)
    check_places(config)
    check_dataset(config, index)
    check_shards(dataset, index)
    _check_batches(config)
    if not index.num_samples("train-abnormal"):
        raise UserError(
            f"{config.data.uri} has no images in train-abnormal, which a search over "
            "objective.alpha needs; add known abnormal images"
        )
    if root.exists(_SETTINGS):
        old = load_config(root.url(_SETTINGS))
        check_same_run(config, old, sections=(*IDENTITY, "search", "tune"))
        images, before = config.tracking.validation_images, old.tracking.validation_images
        check_same(config, "tracking.validation_images", images, before)
    claim_dataset(config, root)
    root.write_bytes(_SETTINGS, dump_config(config).encode())


def _check_batches(config: Config) -> None:
    """Refuse batches that trials cannot share out; they all have an alpha, whatever is set."""
    with_alpha = config.objective.model_copy(update={"alpha": 1.0})
    trial = config.model_copy(update={"objective": with_alpha})
    try:
        for num_workers in config.cluster.worker_counts:
            trial.stages(num_workers)
    except ValueError as error:
        raise UserError(str(error)) from None


def _metrics(result: ray_tune.Result) -> dict[str, Any]:
    return result.metrics or {}


def _auroc(result: ray_tune.Result, metric: str) -> float:
    """The best so far is only known at the last resolution, the last one always."""
    metrics = _metrics(result)
    return float(metrics.get(metric, metrics[METRIC]))


def _point(result: ray_tune.Result) -> dict[str, Any]:
    assert result.config is not None
    return {name: result.config[name] for name in search_space()}


def _trial_id(result: ray_tune.Result) -> str:
    """Its folder's name, see `trial_dirname_creator`."""
    return PurePosixPath(result.path).name


def _print(ranked: list[ray_tune.Result], metric: str, *, num_trials: int) -> None:
    table = Table("trial", *search_space(), metric, "images seen")
    for result in ranked:
        values = (f"{value:.4g}" for value in _point(result).values())
        auroc, seen = f"{_auroc(result, metric):.3f}", str(_metrics(result)["images_seen"])
        table.add_row(_trial_id(result), *values, auroc, seen)
    Console().print(table)
    if num_failed := num_trials - len(ranked):
        print(f"{num_failed} of {num_trials} trials failed; the same command tries them again")
