"""The training job: check what can be checked, run the workers, calibrate the result."""

import os
from dataclasses import asdict
from typing import Any

import pyarrow.fs
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster import tracking
from cluster.checkpoint_store import FOLDER, last_metrics
from cluster.claims import (
    IDENTITY,
    check_dataset,
    check_places,
    check_same_run,
    check_shards,
    claim_dataset,
)
from cluster.config import Config, dump_config, load_config
from cluster.dry_run import dry_run
from cluster.encoder_job import add_encoder
from cluster.errors import UserError
from cluster.feature_weights import pretrained_of
from cluster.inspection import calibrate
from cluster.model_store import CARD, load_card
from cluster.progress import FailureNotes, last_line, remote_progress
from cluster.ray_session import ray_session
from cluster.stopping import stop_on_sigterm
from cluster.train_loop import schedule_of, train_worker
from cluster.training_data import run_store
from data.dataset import DatasetIndex, load_index
from data.errors import DataError
from data.store import Store

_CONFIG = "config.yaml"
_ALONE_S = 2 * 3600
"""How long rank 0 may assess a model while the others wait. Ray sees by itself a worker that dies;
ranks that cannot reach each other are told after so long."""


def train(config: Config) -> int:
    """Train, export and calibrate a model; continues a run that was stopped.

    Raises:
        UserError: If configuration, data set and run directory do not go together.
        DataError: If the data set cannot be read.
    """
    if config.cluster.dry_run:
        dry_run(config, check_run(config))
        return 0
    claim_run(config)
    with ray_session(config.cluster.num_workers * config.cluster.cpus_per_worker):
        name = Store(config.run.dir).uri.rpartition("/")[2]
        with tracking.tracked_run(config, name=name) as ref:
            train_and_calibrate(config, ref)
    print(f"model: {Store(config.run.dir).url('model')}")
    return 0


def train_and_calibrate(config: Config, ref: tracking.RunRef) -> None:
    """Train unless the run directory already holds the model, add its encoder, calibrate it."""
    run = run_store(config)
    if not run.exists(CARD):
        fit(config, ref)
    if config.encoder.kimg and load_card(run).encoder_sha256 is None:
        add_encoder(config)
    calibrate(config)


def check_run(config: Config) -> DatasetIndex:
    """Check data set and run directory; returns the index of the data set.

    Raises:
        UserError: If the data set does not fit, or the directory holds another run.
    """
    tracking.tracking_uri(config)
    config.cluster.check_training()
    dataset, run = Store(config.data.uri), Store(config.run.dir)
    index = load_index(dataset)
    check_places(config)
    check_dataset(config, index)
    check_shards(dataset, index)
    sections = IDENTITY
    if not run.exists(CARD):
        pretrained_of(config)
    elif load_card(run).encoder_sha256:
        # A model may be given an encoder later, or, where that failed, another one.
        sections = (*IDENTITY, "encoder")
    if run.exists(_CONFIG):
        check_same_run(config, load_config(run.url(_CONFIG)), sections=sections)
    return index


def claim_run(config: Config) -> None:
    """Check what `check_run` does, then record configuration and data set in the run directory.

    Raises:
        UserError: If the data set does not fit, or the directory holds another run.
    """
    check_run(config)
    run = Store(config.run.dir)
    claim_dataset(config, run)
    run.write_bytes(_CONFIG, dump_config(config).encode())


def fit(
    config: Config, ref: tracking.RunRef, *, callbacks: list[Any] | None = None
) -> dict[str, float]:
    """Run the training workers until the schedule ends, resuming from the newest checkpoint.

    Args:
        config: Configuration of the run.
        ref: Where rank 0 logs.
        callbacks: Ray Train callbacks, such as the one that reports to Ray Tune.

    Returns:
        Numbers reported with the last checkpoint.

    Raises:
        UserError: If workers failed, for a reason the user can mend or too often.
        KeyboardInterrupt: If it was told to stop, by Ctrl-C or by SIGTERM.
    """
    total = schedule_of(config)[-1].end
    with (
        remote_progress("train", total=total, unit="image") as board,
        stop_on_sigterm(board) as asked,
    ):
        if lack := missing_room(config):
            board.note.remote(lack)
        job = {"config": config.model_dump(), "tracking": asdict(ref), "board": board}
        try:
            _trainer(config, job, [FailureNotes(board), *(callbacks or [])]).fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
        except SystemExit:
            # Ray Train turns Ctrl-C into a quiet exit; whoever called must see that it is not done.
            raise KeyboardInterrupt from None
    if asked.is_set():
        raise KeyboardInterrupt
    return last_metrics(run_store(config))


def missing_room(config: Config) -> str:
    """What to tell a person whose workers must wait for nodes; empty where the cluster has room."""
    cluster, have = config.cluster, ray.cluster_resources()
    workers = cluster.worker_counts[0]
    wanted = {"CPU": workers * cluster.cpus_per_worker, "GPU": workers * cluster.gpus_per_worker}
    if all(have.get(name, 0.0) >= amount for name, amount in wanted.items()):
        return ""
    needed, there = (
        " and ".join(f"{numbers.get(name, 0.0):g} {name}" for name in wanted)
        for numbers in (wanted, have)
    )
    return (
        f"waiting for nodes: {workers} workers need {needed}, the cluster has {there}; add nodes, "
        "or stop (while it waits, Ctrl-C three times) and lower cluster.num_workers or what each "
        "worker reserves"
    )


def _trainer(config: Config, job: dict[str, Any], callbacks: list[Any]) -> TorchTrainer:
    filesystem, root = Store(config.run.dir).filesystem()
    # By default two seconds: so long a dead worker stays unseen and a report keeps workers waiting.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    return TorchTrainer(
        train_worker,
        train_loop_config=job,
        scaling_config=_scaling(config),
        torch_config=TorchConfig(timeout_s=int(_ALONE_S + config.data.retry_s)),
        run_config=ray.train.RunConfig(
            # Ray keeps nothing here but a mark, by which it sees that all nodes reach the place.
            name=FOLDER,
            storage_path=root,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
            failure_config=ray.train.FailureConfig(max_failures=config.cluster.max_failures),
            callbacks=callbacks,
        ),
    )


def _scaling(config: Config) -> ScalingConfig:
    resources = {"CPU": config.cluster.cpus_per_worker}
    if config.cluster.gpus_per_worker:
        resources["GPU"] = config.cluster.gpus_per_worker
    counts = config.cluster.worker_counts
    return ScalingConfig(
        num_workers=(counts[0], counts[-1]) if len(counts) > 1 else counts[-1],
        elastic_resize_monitor_interval_s=config.cluster.resize_s,
        use_gpu=config.cluster.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _cause(error: TrainingFailedError) -> Exception:
    """The error of a worker that a person can act on, else the last failure in one line."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    failures.append(getattr(error, "controller_failure", None) or error)
    for failure in failures:
        if isinstance(failure, UserError | DataError):
            return failure
    return UserError(
        f"training failed, at last with {type(failures[0]).__name__}: {last_line(failures[0])}; "
        "mend the cause, the same command goes on from the last checkpoint (Ray's logs hold more: "
        "logs/train in its session's folder, by default /tmp/ray/session_latest)"
    )
