"""One rank of a training run in this process; the few functions of Ray it calls are replaced."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import patch

import torch


@dataclass
class Board:
    """Stands for the actor that a worker writes on."""

    notes: list[str] = field(default_factory=list)
    asked: bool = False

    @property
    def note(self) -> SimpleNamespace:
        return SimpleNamespace(remote=self.notes.append)

    @property
    def start(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *_: None)

    @property
    def update(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *_: None)

    @property
    def stopping(self) -> SimpleNamespace:
        answer: Future[bool] = Future()
        answer.set_result(self.asked)
        return SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: answer))


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Lets `train_worker` run here as the only rank, for as long as the block lasts."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    num_threads = torch.get_num_threads()
    with (
        patch("ray.train.get_context", lambda: context),
        patch("ray.train.report", lambda _: None),
        patch("ray.train.torch.get_device", lambda: torch.device("cpu")),
        patch("cluster.stopping._POLL_S", 0.0),
    ):
        yield
    torch.set_num_threads(num_threads)
