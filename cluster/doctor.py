"""The command `doctor`: everything a job will need, looked at before the job is started."""

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import ray
import torch
from tqdm import tqdm

from cluster.config import Config
from cluster.errors import UserError
from cluster.mlflow_client import SQLITE, connect
from cluster.ray_session import ray_session
from cluster.tracking import public_uri, tracking_uri
from data.dataset import ShardInfo, load_index
from data.errors import DataError
from data.store import Store

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
_PROBE = "doctor-probe"
_TIMEOUT_S = 5
# What a difference of version has been seen to break.
_PINNED = ("torch", "ray", "mlflow", "webdataset", "s3fs", "numpy", "pyarrow", "pydantic")


def doctor(config: Config) -> int:
    """Check versions, compute, Ray, data set, run directory and MLflow; 1 if any check failed."""
    checks: dict[str, Callable[[Config], Iterator[str]]] = {
        "versions": check_versions,
        "compute": check_compute,
        "ray": check_ray,
        "data": check_data,
        "run.dir": check_run_dir,
        "mlflow": check_mlflow,
    }
    num_failed = 0
    for name, check in checks.items():
        try:
            for line in check(config):
                print(f"ok    {name}: {line}")
        except (UserError, DataError) as error:
            num_failed += 1
            print(f"FAIL  {name}: {error}")
        # A check that breaks in a way nobody thought of has failed, and the others still matter.
        except Exception as error:
            num_failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    return 1 if num_failed else 0


def check_versions(config: Config) -> Iterator[str]:
    """Python, and the installed versions against constraints.txt."""
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    wrong = []
    for name in _PINNED:
        try:
            installed = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        if installed != pins[name]:
            wrong.append(f"{name} is {installed}, pinned is {pins[name]}")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; run `make venv`")
    yield f"Python {sys.version.split()[0]}, {len(_PINNED)} pinned packages as in constraints.txt"


def check_compute(config: Config) -> Iterator[str]:
    """Cores and GPUs of this machine."""
    asked = config.cluster.gpus_per_worker
    # A job may be sent from a machine without to a cluster with GPUs.
    if asked and torch.version.cuda is None and "RAY_ADDRESS" not in os.environ:
        raise UserError(
            f"cluster.gpus_per_worker={asked:g}, but torch is installed here without CUDA; run "
            "`make clean`, then `make venv TORCH_INDEX=`, or set cluster.gpus_per_worker=0"
        )
    yield f"{os.cpu_count()} cores, {torch.cuda.device_count()} GPUs here"


def check_ray(config: Config) -> Iterator[str]:
    """A Ray session with enough resources for the workers."""
    cluster = config.cluster
    cluster.check_training()
    with ray_session(cluster.num_workers * cluster.cpus_per_worker):
        have = ray.cluster_resources()
    for resource, each in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        need = each * cluster.worker_counts[0]
        if have.get(resource, 0.0) < need:
            field = "min_workers" if cluster.min_workers else "num_workers"
            raise UserError(
                f"cluster.{field}={cluster.worker_counts[0]} need {need:g} {resource}, the cluster "
                f"has {have.get(resource, 0.0):g}; lower cluster.{field} or add nodes"
            )
    where = os.environ.get("RAY_ADDRESS", "in process")
    yield f"{where}, {have.get('CPU', 0.0):g} CPU, {have.get('GPU', 0.0):g} GPU"


def check_data(config: Config) -> Iterator[str]:
    """Every shard of the data set, byte for byte, and what the set holds."""
    store = Store(config.data.uri)
    index = load_index(store)
    faults = [
        fault
        for shard in tqdm(index.shards, desc="shards", unit="shard", leave=False)
        if (fault := _shard_fault(store, shard))
    ]
    if faults:
        raise UserError(
            f"{len(faults)} of {len(index.shards)} shards of {store.uri} are damaged: "
            f"{'; '.join(faults[:5])}; pack the data again"
        )
    yield f"{store.uri}: {len(index.shards)} shards whole, resolutions {list(index.resolutions)}"
    for split, labels in index.labels.items():
        yield f"{split}: " + ", ".join(f"{count} {label}" for label, count in labels.items())


def check_run_dir(config: Config) -> Iterator[str]:
    """A small object can be written to the run directory, read back and deleted."""
    store = Store(config.run.dir)
    _probe(store)
    yield f"{store.uri} can be written"


def check_mlflow(config: Config) -> Iterator[str]:
    """MLflow answers; a database that is not there yet could be made."""
    uri = tracking_uri(config)
    shown = public_uri(uri)
    database = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not database.exists():
        _probe(Store(str(database.parent)))
        yield f"{shown} will be made by the first job"
        return
    try:
        connect(uri).search_experiments(max_results=1)
    # Beneath MLflow lie HTTP clients and database drivers with errors of their own.
    except Exception as error:
        reason = public_uri(" ".join(str(error).split()))[:200]
        raise UserError(
            f"tracking.uri={shown} does not answer ({reason}); start the server or mend the URI"
        ) from None
    yield f"{shown} answers"


def _probe(store: Store) -> None:
    store.write_bytes(_PROBE, b"probe")
    if store.read_bytes(_PROBE) != b"probe":
        raise UserError(f"{store.uri} returns other bytes than were written; check the store")
    store.delete(_PROBE)


def _shard_fault(store: Store, shard: ShardInfo) -> str | None:
    if not store.exists(shard.path):
        return f"{shard.path} is missing"
    payload = store.read_bytes(shard.path)
    if len(payload) != shard.bytes:
        return f"{shard.path} has {len(payload)} bytes instead of {shard.bytes}"
    if hashlib.sha256(payload).hexdigest() != shard.sha256:
        return f"{shard.path} has another sha256 than dataset.json"
    return None
