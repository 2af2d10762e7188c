"""The endpoint on Ray Serve: `python -m cluster serve`, or `cluster.serve:build` in a RayService.

One ingress takes requests (see `cluster.endpoint`); replicas of the engine share them, each
searching what waits as one batch.
"""

import asyncio
import hashlib
import ipaddress
import logging
import os
import socket
import threading
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from cluster.batcher import Batcher
from cluster.calibration import calibration_for, describe
from cluster.cluster_config import Cluster
from cluster.config import Config, load_config
from cluster.endpoint import Gate, Limits, make_app
from cluster.errors import UserError
from cluster.examiner import Examiner, Picture, Verdict, preparation_of
from cluster.inspect_plan import fitting_actors
from cluster.model_store import Calibration, load_model
from cluster.ray_session import ray_session
from cluster.serve_config import Serve
from data.errors import DataError
from data.store import Store

APPLICATION = "blemish"
Handle = DeploymentHandle[Any]
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
_ATTEMPTS = 5
"""Replicas that may die of an image, or with it, before it is given up."""
_PAUSE_S = 0.2
_PING_S = 3.0
"""So long a replica that is there may take to say so."""
_PINGS = 16
"""Questions of that kind at a time, beside the images."""
_REFUSALS = 256
"""Requests beside those let in that can be refused, or answered about health, at a time."""


class EngineReplica:
    """A copy of the model.

    Args:
        run: URI of the run directory.
        calibration: How it searches and decides.
        settings: Settings of the endpoint.
        cluster: What a replica reserves.
    """

    def __init__(
        self, run: str, calibration: Calibration, settings: Serve, cluster: Cluster
    ) -> None:
        torch.set_num_threads(cluster.num_threads)
        examiner = Examiner(
            load_model(Store(run)),
            calibration,
            max_pixels=settings.max_pixels,
            device=cluster.device,
        )
        # In a thread of the batcher's, so that the replica can answer health checks meanwhile.
        self._batcher: Batcher[Picture, Verdict | DataError] = Batcher(
            examiner.examine,
            max_batch=settings.max_batch,
            wait_s=settings.batch_wait_ms / 1000,
        )

    async def ping(self) -> None:
        """Say that it is there."""

    async def examine(self, picture: Picture) -> Verdict | DataError:
        """Examine an image, together with others that come at the same time."""
        return await self._batcher(picture)


class Ingress:
    """Takes requests and hands the images on.

    Args:
        engine: Handle of the replicas.
        limits: What is let in.
    """

    def __init__(self, engine: Handle, limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        self._gate = Gate(limits.max_requests)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application Serve runs."""
        return make_app(
            self._examine,
            self._limits,
            self._gate,
            is_ready=self._is_ready,
        )

    async def drain(self) -> None:
        """Let in no image any more, and return when all are answered."""
        await self._gate.close()

    async def _is_ready(self) -> bool:
        """Whether a replica answers now: Serve itself only tells that there once was one."""
        try:
            async with asyncio.timeout(_PING_S):
                await self._engine.ping.remote()
        except (TimeoutError, RayActorError):
            return False
        return True

    async def _examine(self, picture: Picture) -> Verdict | DataError:
        for attempt in range(_ATTEMPTS):
            try:
                answer: Verdict | DataError = await self._engine.examine.remote(picture)
                return answer
            # The replica died; an image examined again gets the same answer.
            except RayActorError:
                if attempt == _ATTEMPTS - 1:
                    raise
                await asyncio.sleep(2**attempt * _PAUSE_S)
        raise AssertionError


def serve_model(config: Config) -> int:
    """Serve the model of a run until SIGINT or SIGTERM; the command `serve`.

    Raises:
        UserError: If there is no calibrated model, no token where one is needed, or no room.
    """
    settings, cluster = config.serve, config.cluster
    application, needs_token = application_for(config)
    _check_port(settings)
    with ray_session(settings.replicas * cluster.cpus_per_worker):
        if (room := fitting_actors(config)) < settings.replicas:
            raise UserError(
                f"serve.replicas={settings.replicas} do not fit, the cluster has room for {room}; "
                "lower it or cluster.cpus_per_worker"
            )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        http = {"host": settings.host, "port": settings.port}
        ray_serve.start("HeadOnly", http_options=http, logging_config=_QUIET)
        try:
            handle = ray_serve.run(application, name=APPLICATION, logging_config=_QUIET)
            print(_welcome(config, needs_token=needs_token), flush=True)
            _wait_and_drain(handle)
        finally:
            ray_serve.delete(APPLICATION)
            # In this process Serve goes with Ray; on a cluster others may use it.
            if os.environ.get("RAY_ADDRESS") and not ray_serve.status().applications:
                ray_serve.shutdown()
    return 0


def build(args: dict[str, str]) -> Application:
    """The application for a Serve configuration file, which says itself where to listen.

    Args:
        args: `config`, the YAML file with the settings; its serve.host and serve.port do not count.

    Raises:
        UserError: See `serve_model`.
    """
    return application_for(load_config(args["config"], {"serve.host": "0.0.0.0"}))[0]


def application_for(config: Config) -> tuple[Application, bool]:
    """The application, and whether it asks for a token.

    Raises:
        UserError: If there is no calibrated model, or no token where one is needed.
    """
    settings, cluster = config.serve, config.cluster
    token = os.environ.get(settings.token_env, "")
    if not token and os.environ.get("RAY_ADDRESS"):
        raise UserError(
            "the Ray Serve of a cluster may be reachable from other machines whatever serve.host "
            f"says, and the environment variable {settings.token_env} holds no token; set it"
        )
    if not token and not is_loopback(settings.host):
        raise UserError(
            f"serve.host={settings.host} is reachable from other machines, but the environment "
            f"variable {settings.token_env} holds no token; set it, or serve.host to 127.0.0.1"
        )
    calibration = calibration_for(config)
    # Whole, so that a damaged model is told here and not by replicas that die of it.
    preparation_of(load_model(Store(config.run.dir)).card)
    limits = Limits(
        max_bytes=settings.max_bytes,
        max_requests=settings.replicas * settings.max_batch + settings.max_queue,
        answer_s=settings.answer_s,
        token_sha256=hashlib.sha256(token.encode()).digest() if token else None,
    )
    engine: Any = ray_serve.deployment(
        EngineReplica,
        name="engine",
        num_replicas=settings.replicas,
        max_ongoing_requests=limits.max_requests + _PINGS,
        ray_actor_options={
            "num_cpus": cluster.cpus_per_worker,
            "num_gpus": cluster.gpus_per_worker,
        },
    )
    ingress: Any = ray_serve.deployment(
        ray_serve.ingress()(Ingress),
        name="ingress",
        max_ongoing_requests=limits.max_requests + _REFUSALS,
        max_queued_requests=limits.max_requests + _REFUSALS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": 0},
    )
    bound = engine.bind(config.run.dir, calibration, settings, cluster)
    return ingress.bind(bound, limits), bool(token)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on an interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port(settings: Serve) -> None:
    """Fail at once where Serve would start its proxy again and again."""
    if os.environ.get("RAY_ADDRESS"):
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise UserError(
                f"serve.host={settings.host} and serve.port={settings.port} cannot be listened on "
                f"({error.strerror}); choose others"
            ) from None


def _welcome(config: Config, *, needs_token: bool) -> str:
    host = f"[{config.serve.host}]" if ":" in config.serve.host else config.serve.host
    url = f"http://{host}:{config.serve.port}"
    token = f' -H "Authorization: Bearer ${config.serve.token_env}"' if needs_token else ""
    body = "-H 'Content-Type: image/png' --data-binary @IMAGE.png"
    return (
        f"decision: {describe(calibration_for(config))}\n"
        f"ready: {url} ({url}/openapi.json describes it; Ctrl-C stops)\n"
        f"curl{token} {body} '{url}/inspect?map=true'"
    )


def _wait_and_drain(handle: Handle) -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopping: what was accepted is answered first", flush=True)
        handle.drain.remote().result()
