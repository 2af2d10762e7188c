"""The command `export`: the calibrated model as an MLflow model, with all it needs but packages."""

import tempfile
from pathlib import Path

import mlflow.pyfunc
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema

from cluster.calibration import calibration_for, describe
from cluster.config import Config
from cluster.doctor import CONSTRAINTS
from cluster.errors import UserError
from cluster.examiner import preparation_of
from cluster.model_store import MODEL, load_model, save_card
from data.store import Store

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gan", "data", "cluster")
REQUIREMENTS = (
    *("aiohttp", "boto3", "botocore", "fsspec", "kornia-rs", "matplotlib", "mlflow", "numpy"),
    *("opencv-python-headless", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "safetensors"),
    *("scipy", "torch", "webdataset"),
)
"""Packages the exported model imports; their versions are those of constraints.txt."""

_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("binary", "image"), ColSpec("string", "key", required=False)]),
    outputs=Schema(
        [
            *(ColSpec("double", name, required=False) for name in ("score", "p_value")),
            *(ColSpec("string", name, required=False) for name in ("decision", "regions", "error")),
        ]
    ),
)


def export_model(config: Config) -> int:
    """Write the model of a run as an MLflow model.

    Raises:
        UserError: If there is no calibrated model, or the place is taken.
    """
    calibration = calibration_for(config)
    run = Store(config.run.dir)
    target = Store(config.export.dir or run.url("mlflow-model"))
    if target.list():
        raise UserError(f"{target.uri} holds files already; give another folder or remove it")
    model = load_model(run).calibrated(calibration)
    # A model too old is told here, not to whoever loads it.
    preparation_of(model.card)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Store(temporary)
        for path in run.list(f"{MODEL}/", ".safetensors"):
            copy.write_bytes(path, run.read_bytes(path))
        save_card(copy, model.card)
        mlflow.pyfunc.save_model(
            path=f"{temporary}/mlflow",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"model": f"{temporary}/{MODEL}"},
            code_paths=[str(ROOT / package) for package in PACKAGES],
            pip_requirements=_pinned(),
            signature=_SIGNATURE,
            metadata={"weights_sha256": model.card.weights_sha256},
        )
        _upload(Store(f"{temporary}/mlflow"), target)
    print(f"decision: {describe(calibration)}")
    print(f"model: {target.uri}")
    print(f"mlflow models serve --env-manager local -m {target.uri}")
    return 0


def _pinned() -> list[str]:
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    by_name = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    return [f"{name}=={by_name[name]}" for name in REQUIREMENTS]


def _upload(source: Store, target: Store) -> None:
    """Copy all files; the one that makes them a model comes last."""
    for path in sorted(source.list(), key=lambda path: path == "MLmodel"):
        target.write_bytes(path, source.read_bytes(path))
