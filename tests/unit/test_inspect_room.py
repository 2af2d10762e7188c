"""How many actors of an inspection there is room for, and what is told where they fail."""

import contextlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from cluster import inspect_plan, inspection
from cluster.config import load_config
from cluster.errors import UserError
from cluster.inspect_plan import fitting_actors
from cluster.progress import progress_bar

HEAD, WORKER = {"CPU": 1.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 1.0}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head, two workers and one that is gone."""
    alive = [(HEAD, True), (WORKER, True), (WORKER, True), (WORKER, False)]
    told = [{"Resources": have, "Alive": lives} for have, lives in alive]
    monkeypatch.setattr(inspect_plan.ray, "nodes", lambda: told)


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("cpus", "gpus", "room"),
    [(1, 0, 9), (3, 0, 2), (4, 0, 2), (1, 0.5, 4), (3, 0.5, 2), (0.8, 0, 11), (0.1, 0.2, 10)],
)
def test_an_actor_lies_on_one_node(cpus: float, gpus: float, room: int) -> None:
    chosen: dict[str, Any] = {"cluster.cpus_per_worker": cpus, "cluster.gpus_per_worker": gpus}
    assert fitting_actors(load_config(None, chosen)) == room


@pytest.mark.usefixtures("nodes")
def test_what_no_node_has_is_told_with_what_they_have() -> None:
    with pytest.raises(UserError) as caught:
        fitting_actors(load_config(None, {"cluster.cpus_per_worker": 5}))
    assert str(caught.value) == (
        "an inspection actor needs 5 CPU and 0 GPU, the cluster's nodes have 1 CPU and 0 GPU, or "
        "4 CPU and 1 GPU; lower cluster.cpus_per_worker or cluster.gpus_per_worker"
    )


@pytest.mark.usefixtures("nodes")
def test_missing_nodes_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    config, told = load_config(None, {}), set[int]()
    with progress_bar("inspect", total=1, unit="image") as bar:
        for num_actors in (9, 10, 10):
            inspection._tell_of_missing_nodes(num_actors, config, bar, told)
    said = capsys.readouterr().err
    assert said.count("nodes are missing: 10 actors inspect, the cluster has room for 9") == 1
    assert said.count("nodes are missing") == 1


class _Actor:
    """Takes units and does none of them."""

    def __init__(self) -> None:
        self.inspect = SimpleNamespace(remote=lambda _: object())


def _run(monkeypatch: pytest.MonkeyPatch, units: int, error: Exception) -> Exception:
    """What is told where two actors inspect, and all that they are given ends in an error."""
    actors = [_Actor(), _Actor()]
    monkeypatch.setattr(inspection, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(inspection, "_start_actors", lambda *_: actors)
    monkeypatch.setattr(inspection.ray, "wait", lambda refs, **_: (refs[:1], refs[1:]))

    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(inspection.ray, "get", fail)
    waiting: list[Any] = [SimpleNamespace(source=f"{n}.tar", num_inputs=1) for n in range(units)]
    with pytest.raises((UserError, RayActorError)) as caught:
        inspection.run_units(Mock(), waiting, load_config(None, {}))
    return caught.value


def test_all_units_of_an_actor_that_is_killed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are inspected at once, and nobody knows which of them killed it."""
    told = str(_run(monkeypatch, 4, RayActorError()))
    assert "inspected 0.tar and 2.tar was killed each time" in told


def test_an_actor_that_cannot_begin_is_not_told_as_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = RayActorError(error_msg="no module named scipy", actor_init_failed=True)
    assert _run(monkeypatch, 1, error) is error


@dataclass(frozen=True, eq=False)
class _Ref:
    result: str


def test_a_unit_that_kills_every_process_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(inspection, "_UNAVAILABLE_S", 0)
    monkeypatch.setattr(inspection.time, "monotonic", lambda: next(clock))
    told = str(_run(monkeypatch, 1, ActorUnavailableError("socket closed", None)))
    assert "inspected 0.tar was killed each time" in told
    assert "socket closed" in told
    assert next(clock) == 400, "cluster.max_failures were survived"


@pytest.mark.parametrize(
    ("times_s", "max_failures", "hopeless"),
    [
        (range(0, 30_000, 10_000), 3, False),
        (range(0, 40_000, 10_000), 3, True),
        (range(60), 3, False),  # its node is gone, and Ray has not noticed yet
        (range(600), 3, True),
        (range(600), -1, False),
    ],
)
def test_failures_of_a_unit_count_not_those_of_an_actor(
    times_s: range, max_failures: int, hopeless: bool
) -> None:
    assert inspection.is_hopeless([float(t) for t in times_s], max_failures) is hopeless


@pytest.mark.parametrize(("max_failures", "restarts"), [(0, 0), (3, -1), (-1, -1)])
@pytest.mark.usefixtures("nodes")
def test_an_actor_is_restarted_as_often_as_it_dies(
    monkeypatch: pytest.MonkeyPatch, max_failures: int, restarts: int
) -> None:
    asked: list[dict[str, Any]] = []

    def remote(**options: Any) -> Any:
        asked.append(options)
        return Mock()

    monkeypatch.setattr(inspection.ray, "remote", remote)
    config = load_config(None, {"cluster.max_failures": max_failures})
    inspection._start_actors(Mock(), 2, config)
    assert asked[0]["max_restarts"] == restarts
    assert asked[0]["max_task_retries"] == bool(max_failures)


@pytest.mark.parametrize("away", [1, 5])
def test_units_of_an_actor_out_of_reach_are_given_out_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], away: int
) -> None:
    """Its node may be gone: Ray's retries are over before it has noticed that."""
    given: list[str] = []
    killed: list[object] = []

    class Actor:
        def __init__(self, failures: int) -> None:
            self._failures = failures
            self.inspect = SimpleNamespace(remote=self._inspect)

        def _inspect(self, unit: Any) -> Any:
            assert self not in killed
            given.append(unit.source)
            self._failures -= 1
            return _Ref("" if self._failures >= 0 else unit.source)

    def get(ref: _Ref) -> str:
        if not ref.result:
            raise ActorUnavailableError("socket closed", None)
        return ref.result

    monkeypatch.setattr(inspection, "_UNAVAILABLE_S", 0)
    monkeypatch.setattr(inspection, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(inspection, "_start_actors", lambda *_: [Actor(0), Actor(away)])
    # What is done comes first, so that the other actor is no longer needed by then.
    monkeypatch.setattr(
        inspection.ray,
        "wait",
        lambda refs, **_: (sorted(refs, key=lambda ref: not ref.result)[:1], []),
    )
    monkeypatch.setattr(inspection.ray, "get", get)
    monkeypatch.setattr(inspection.ray, "kill", killed.append)
    units: list[Any] = [SimpleNamespace(source=f"{n}.tar", num_inputs=1) for n in range(4)]
    done = inspection.run_units(Mock(), units, load_config(None, {}))
    assert sorted(done) == [unit.source for unit in units]
    assert len(given) > len(units)
    told = [line for line in capsys.readouterr().err.splitlines() if "does not answer" in line]
    assert len(told) == len({name for name in given if given.count(name) > 1})
    assert "socket closed" in told[0]


def test_a_full_gpu_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 ...")
    told = str(_run(monkeypatch, 1, RayTaskError("inspect", "trace", full).as_instanceof_cause()))
    assert "does not fit into the GPU's memory (CUDA out of memory. Tried to" in told
    assert "lower search.batch" in told
    assert "\n" not in told
