"""What is decided before Ray is started: who may reach the endpoint, and with which model."""

import socket
from pathlib import Path

import pytest
import torch
from ray.serve import Application

from cluster import examiner, serve
from cluster.calibration import calibration_for
from cluster.config import Config, dump_config, load_config
from cluster.errors import UserError
from cluster.model_store import load_card, save_card
from cluster.serve import EngineReplica, application_for, build, is_loopback, serve_model
from data.store import Store
from tests.tiny_model import SETTINGS, calibrated_model

TOKEN = "open sesame"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.delenv("BLEMISH_TOKEN", raising=False)
    config = load_config(None, SETTINGS | {"run.dir": str(tmp_path / "run")})
    calibrated_model(config)
    return config


def _with(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"serve": config.serve.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.4", "localhost.evil.org")),
    ],
)
def test_other_machines_need_a_token(
    config: Config, host: str, only_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _with(config, host=host, token_env="MY_TOKEN")
    assert is_loopback(host) is only_here
    if only_here:
        assert application_for(config)[1] is False
    else:
        with pytest.raises(UserError, match=r"serve\.host=.*MY_TOKEN holds no token"):
            application_for(config)
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    assert application_for(config)[1] is True


def test_a_cluster_needs_a_token_whatever_the_host(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Serve may run already, and then listens where it was told to first."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(UserError, match=r"whatever serve\.host says, .* BLEMISH_TOKEN holds"):
        application_for(config)
    monkeypatch.setenv("BLEMISH_TOKEN", TOKEN)
    assert application_for(config)[1] is True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_told(config: Config, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as other:
        port = other.getsockname()[1]
        told = rf"serve\.port={port} cannot be listened on \(Address already in use\)"
        with pytest.raises(UserError, match=told):
            serve_model(_with(config, host=host, port=port))


def test_a_configuration_file_of_serve_always_needs_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    with pytest.raises(UserError, match="BLEMISH_TOKEN holds no token"):
        build({"config": str(path)})
    monkeypatch.setenv("BLEMISH_TOKEN", TOKEN)
    assert isinstance(build({"config": str(path)}), Application)


def test_a_model_that_is_not_calibrated_is_not_served(config: Config) -> None:
    run = Store(config.run.dir)
    save_card(run, load_card(run).model_copy(update={"calibration": None}))
    with pytest.raises(UserError, match=r"is not calibrated; calibrate first.*inspect"):
        application_for(config)


def test_a_damaged_model_is_told_before_anything_is_started(config: Config) -> None:
    run = Store(config.run.dir)
    run.write_bytes("model/weights.safetensors", b"0" * 100)
    with pytest.raises(UserError, match="does not match its sha256"):
        application_for(config)


def test_a_model_is_checked_without_being_made_ready_to_search(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing the candidates of a search takes minutes at high resolutions."""
    monkeypatch.setattr(examiner, "Engine", lambda *_, **__: pytest.fail("made ready"))
    application_for(config)
    run = Store(config.run.dir)
    save_card(run, load_card(run).model_copy(update={"preparation": None}))
    with pytest.raises(UserError, match="does not tell how images are prepared"):
        application_for(config)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "cuda")])
def test_a_replica_computes_on_a_gpu_only_where_it_has_reserved_one(
    config: Config, monkeypatch: pytest.MonkeyPatch, gpus: float, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told: list[torch.device] = []

    class Examiner:
        def __init__(self, *_: object, device: torch.device, max_pixels: int) -> None:
            told.append(device)

        def examine(self) -> None:
            """Never asked."""

    monkeypatch.setattr(serve, "Examiner", Examiner)
    cluster = config.cluster.model_copy(update={"gpus_per_worker": gpus})
    EngineReplica(config.run.dir, calibration_for(config), config.serve, cluster)
    assert told == [torch.device(device)]
