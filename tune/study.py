"""A study: Optuna proposes, Ray Train trains, ASHA stops weak trials, validation AUROC decides."""

import os
from typing import Any

import pyarrow.fs
from ray import tune as ray_tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.table import Table

from cluster import tracking
from cluster.config import Config, dump_config
from cluster.errors import UserError
from cluster.ray_session import ray_session
from cluster.train import claim_run, fit
from cluster.train_loop import schedule_of
from data.store import Store
from tune.spaces import apply_point, search_space

METRIC = "validation_auroc"
_STUDY = "study"
# Only rank 0's checkpoints carry the metric, and a trial resumed at its end may report none.
_STRICT = "TUNE_DISABLE_STRICT_METRIC_CHECKING"


def tune(config: Config) -> int:
    """Run or continue a study and write the best configuration; the command `tune`.

    Raises:
        UserError: If no trial finished.
    """
    root = Store(config.run.dir)
    config = _with_validation(config)
    os.environ.setdefault(_STRICT, "1")
    cpus = config.cluster.num_workers * config.cluster.cpus_per_worker + 1
    with (
        ray_session(config.tune.max_concurrent * cpus),
        tracking.tracked_run(config, name="tune") as parent,
    ):
        try:
            results = _tuner(config, parent).fit()
        finally:
            _finish_trials(config)
    best = _best(results)
    assert best.config is not None
    point = {name: best.config[name] for name in search_space()}
    chosen = apply_point(config, point, run_dir=root.url("best"))
    root.write_bytes("best.yaml", dump_config(chosen).encode())
    _print(results, root)
    return 0


def trial(point: dict[str, Any], *, config: Config, parent_run_id: str | None) -> None:
    """Train one point of the search space; runs as a Ray Tune trial.

    A trial that was stopped with the study goes on from its own last checkpoint, because its run
    directory is named after its id.
    """
    run_dir = _trial_dir(config, ray_tune.get_context().get_trial_id())
    chosen = apply_point(config, point, run_dir=run_dir)
    claim_run(chosen)
    ref = tracking.open_run(chosen, name=Store(run_dir).uri, parent_run_id=parent_run_id)
    fit(chosen, ref, callbacks=[TuneReportCallback()])


def _tuner(config: Config, parent: tracking.RunRef) -> ray_tune.Tuner:
    store = Store(config.run.dir)
    filesystem, root = store.filesystem()
    arrow = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
    run = ray_tune.with_parameters(trial, config=config, parent_run_id=parent.run_id)
    # The trial itself only waits; its training workers reserve the real resources.
    trainable = ray_tune.with_resources(run, {"CPU": 0.1})
    if store.exists(f"{_STUDY}/tuner.pkl"):
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
    grace = min(round(config.tune.grace_kimg * 1000), total)
    return ray_tune.TuneConfig(
        metric=METRIC,
        mode="max",
        search_alg=OptunaSearch(seed=config.run.seed),
        scheduler=ASHAScheduler(
            time_attr="images_seen",
            max_t=total,
            grace_period=grace,
            reduction_factor=config.tune.reduction_factor,
        ),
        num_samples=config.tune.num_trials,
        max_concurrent_trials=config.tune.max_concurrent,
        # By default the folder's name would hold the whole configuration.
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _with_validation(config: Config) -> Config:
    if config.tracking.validation_images:
        return config
    track = config.tracking.model_copy(
        update={"validation_images": 128, "uri": tracking.tracking_uri(config)}
    )
    return config.model_copy(update={"tracking": track})


def _trial_dir(config: Config, trial_id: str) -> str:
    return Store(config.run.dir).url(f"trials/{trial_id}")


def _finish_trials(config: Config) -> None:
    """End the tracked runs of all trials, also of those ASHA stopped in the middle."""
    root = Store(config.run.dir)
    for name in root.list("trials/", "/tracking.json"):
        trial_config = config.run.model_copy(update={"dir": root.url(name.rpartition("/")[0])})
        tracking.finish_run(config.model_copy(update={"run": trial_config}), "FINISHED", name=name)


def _best(results: ray_tune.ResultGrid) -> ray_tune.Result:
    try:
        best = results.get_best_result(METRIC, "max", scope="all")
    except RuntimeError:
        raise UserError(
            f"none of {len(results)} trials reported {METRIC}; see their errors above, and check "
            "that cluster.checkpoint_kimg is below the length of the schedule"
        ) from None
    return best


def _print(results: ray_tune.ResultGrid, root: Store) -> None:
    frame = results.get_dataframe(METRIC, "max").sort_values(METRIC, ascending=False)
    table = Table("trial", *search_space(), METRIC, "images seen")
    for row in frame.to_dict("records"):
        point = (f"{row[f'config/{name}']:.4g}" for name in search_space())
        table.add_row(row["trial_id"], *point, f"{row[METRIC]:.3f}", str(row["images_seen"]))
    Console().print(table)
    print(f"best configuration: {root.url('best.yaml')}")
